"""Which events of histories are read together: rows of a batch, and time steps at a time.

Each shape of a batch is a program to compile, so shapes are few.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jaxrec.data.packing import ranges

CHUNK = 4  # time steps at a time; 1 where one is left, as for most live events
MAX_CHUNK = 32  # time steps at a time of large states
LARGE = 4096  # numbers of a state from which chunks grow, as each reads and writes whole states
SLOTS = 2048  # rows x time steps of the longer chunks that few rows are read in
LONG = 1024  # time steps from which such chunks are worth their compilation
FEWER = 8  # batches shrink by this factor when rows have ended


class HistoryRows(NamedTuple):
    """Histories in rows, one after another; rows with more events come first.

    Row r holds the events `numbers[offsets[r] : offsets[r + 1]]` in time order.
    """

    numbers: Int[np.ndarray, " M"]  # of the events in the log
    histories: Int[np.ndarray, " M"]  # that the events belong to
    offsets: Int[np.ndarray, " offsets"]  # B + 1

    @property
    def lengths(self) -> Int[np.ndarray, " B"]:
        """Number of events of every row."""
        return np.diff(self.offsets)

    def slots(self, width: int, steps: slice) -> Int[np.ndarray, "B T"]:
        """Places in `numbers` of the first `width` rows at some time steps; -1 after their ends."""
        places = self.offsets[:width, None] + np.arange(steps.start, steps.stop)
        return np.where(places < self.offsets[1 : width + 1, None], places, -1)


def in_rows(begins: Int[np.ndarray, " n"], ends: Int[np.ndarray, " n"], rows: int) -> HistoryRows:
    """Put histories into rows, one after another.

    Each of the first B histories gets a row of its own. Rows are about equally long if longer
    histories come first. Memory is in proportion to the events, however long one history is.
    """
    lengths = ends - begins
    row = np.empty(len(lengths), np.int64)
    filled = np.zeros(rows, np.int64)
    for begin in range(0, len(lengths), rows):
        part = slice(begin, begin + rows)
        row[part] = emptiest = np.argsort(filled, kind="stable")[: len(lengths[part])]
        filled[emptiest] += lengths[part]
    longest_first = np.argsort(-filled, kind="stable")
    order = np.argsort(np.argsort(longest_first)[row], kind="stable")
    return HistoryRows(
        numbers=ranges(begins[order], lengths[order]),
        histories=np.repeat(order, lengths[order]),
        offsets=np.concatenate([[0], np.cumsum(filled[longest_first])]),
    )


def groups(members: Int[np.ndarray, " n"], size: int) -> list[Int[np.ndarray, " g"]]:
    """The members in their order, in the fewest groups of about equal size."""
    return np.array_split(members, -(-len(members) // size)) if len(members) else []


def chunk_steps(state_size: int) -> int:
    """Time steps to read at a time into states of S numbers."""
    return max(CHUNK, min(1 << (state_size // LARGE).bit_length(), MAX_CHUNK))


def batches(lengths: Int[np.ndarray, " B"], chunk: int = CHUNK) -> Iterator[tuple[int, slice]]:
    """How many rows to read at a time, and which of their time steps; lengths descend.

    Without long histories, all rows are read in chunks of two sizes. A few rows that are longer
    than the others are read alone, in longer chunks of as many slots, so that slots stay in
    proportion to events.
    """
    width, begin, end = len(lengths), 0, int(lengths.max(initial=0))
    while begin < end:
        fewer, stop = -(-width // FEWER), end
        if fewer < width and end - lengths[fewer] >= LONG:
            stop = max(int(lengths[fewer]), begin)
        is_long = width < len(lengths) or stop - begin >= LONG
        size = max(SLOTS // width, chunk) if is_long else chunk
        for steps in _chunks(begin, stop, min(size, LONG // 4), chunk):
            yield width, steps
            begin = steps.stop
        width = fewer


def _chunks(begin: int, end: int, size: int, chunk: int) -> list[slice]:
    """Time steps in chunks, padded so that few sizes are compiled."""
    steps = end - begin
    is_one_left = size == chunk and steps % chunk == 1  # a size of its own
    whole = end if is_one_left else end + -steps % size
    return [slice(first, min(first + size, whole)) for first in range(begin, whole, size)]
