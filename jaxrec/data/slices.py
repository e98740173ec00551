"""Operations on the arrays of many events, some millions at a time.

NumPy copies the indices of a look-up and the numbers to count as integers of eight bytes. Slices
keep these copies small.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Int, Integer, Shaped, UInt32

SLICE = 4_000_000  # events


def slices(length: int) -> Iterator[slice]:
    """The slices of an array."""
    return (slice(start, start + SLICE) for start in range(0, length, SLICE))


def counts(numbers: Integer[np.ndarray, " M"], size: int) -> Int[np.ndarray, " size"]:
    """How often each number from 0 to `size` - 1 occurs."""
    total = np.zeros(size, np.int64)
    for part in slices(len(numbers)):
        total += np.bincount(numbers[part], minlength=size)
    return total


def look_up(
    values: Shaped[np.ndarray, " size"], numbers: Integer[np.ndarray, " M"]
) -> Shaped[np.ndarray, " M"]:
    """`values[numbers]`."""
    result = np.empty(len(numbers), values.dtype)
    for part in slices(len(numbers)):
        result[part] = values[numbers[part]]
    return result


def counts_before(present: Bool[np.ndarray, " M"]) -> Int[np.ndarray, " offsets"]:
    """How many of the first 0, 1, ..., M values are true."""
    kind = np.int32 if len(present) <= np.iinfo(np.int32).max else np.int64
    total = np.zeros(len(present) + 1, kind)
    np.cumsum(present, out=total[1:])
    return total


def user_blocks(
    users: Integer[np.ndarray, " M"], lengths: Int[np.ndarray, " U"]
) -> Iterator[Int[np.ndarray, " rows"]]:
    """The rows of the first users, then those of the next ones, and so on.

    A block holds all rows of its users, at most `SLICE` if no user has more.

    Args:
        users: user number of every row.
        lengths: number of rows of every user.
    """
    if len(users) <= SLICE:
        yield np.arange(len(users))
        return
    ends = np.cumsum(lengths)
    first = done = 0
    while first < len(lengths):
        last = max(first + 1, int(np.searchsorted(ends, done + SLICE, side="right")))
        yield np.flatnonzero((users >= first) & (users < last))
        first, done = last, int(ends[last - 1])


def time_order(
    users: Integer[np.ndarray, " rows"],
    times: Int[np.ndarray, " rows"],
    ties: Integer[np.ndarray, " rows"] | None = None,
) -> UInt32[np.ndarray, " rows"]:
    """The rows by user, then by time, then by `ties`; equal rows keep their order."""
    import polars as pl  # not needed on machines that only compute

    keys = {"user": users, "time": times, **({} if ties is None else {"tie": ties})}
    if len(users):
        first, span = int(times.min()), int(times.max()) - int(times.min()) + 1
        start, num_users = int(users.min()), int(users.max()) - int(users.min()) + 1
        if num_users * span < 2**63:  # sorting one number takes a third of the time of two
            keys["user"] = (users.astype(np.int64) - start) * span + (times - first)
            del keys["time"]
    order = pl.arg_sort_by(*keys, maintain_order=True)
    return pl.DataFrame(keys).select(order).to_series().to_numpy()
