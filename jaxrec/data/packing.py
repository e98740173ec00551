"""Packed training batches as a pure function of (log, seed, epoch, step).

Histories are cut into windows, which are packed into rows once, by best fit over the histogram of
their lengths (arXiv:2107.02027). An epoch only permutes the rows and the windows of equal length,
so every epoch has the same number of steps.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxrec.data.slices import counts_before
from jaxrec.errors import ConfigError
from jaxrec.types import MAX_GAP, NO_GAP, Batch, EventLog


@dataclass(frozen=True)
class Windows:
    """Parts of histories: window w holds the events `starts[w] : starts[w] + lengths[w]`.

    Its first `burn_ins[w]` events warm up the state and predict nothing.
    """

    starts: Int[np.ndarray, " W"]
    lengths: Int[np.ndarray, " W"]
    burn_ins: Int[np.ndarray, " W"]

    def __getitem__(
        self, selected: Int[np.ndarray, " n"] | Bool[np.ndarray, " W"] | slice
    ) -> "Windows":
        return Windows(self.starts[selected], self.lengths[selected], self.burn_ins[selected])


def cut_windows(
    offsets: Int[np.ndarray, " offsets"],
    train_lengths: Int[np.ndarray, " U"],
    sequence_length: int,
    burn_in: int = 0,
) -> Windows:
    """Cut every user's training events into windows of at most `sequence_length` events.

    The last event of a user is only a target, so n events give n - 1 inputs. Windows are cut from
    the end, so only the oldest one may be short. Consecutive windows overlap by `burn_in` events,
    so every target is predicted once. Raises a ConfigError if `burn_in` leaves no other event.
    """
    if not 0 <= burn_in < sequence_length:
        limits = f"at least 0 and below sequence_length={sequence_length}"
        raise ConfigError(f"burn_in must be {limits}, not {burn_in}")
    inputs = np.maximum(train_lengths - 1, 0)
    stride = sequence_length - burn_in
    extra = np.maximum(inputs - sequence_length, 0)
    counts = np.where(inputs > 0, 1 + -(-extra // stride), 0)
    users = np.repeat(np.arange(len(inputs)), counts)
    from_end = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    ends = inputs[users] - from_end * stride
    starts = np.maximum(ends - sequence_length, 0)
    return Windows(
        starts=offsets[:-1][users] + starts,
        lengths=ends - starts,
        burn_ins=np.where(starts > 0, burn_in, 0),
    )


def with_targets(windows: Windows, weights: Float[np.ndarray, " M"]) -> Windows:
    """The windows that predict an event, or begin with one, whose weight is above 0."""
    total = counts_before(weights > 0)
    first = windows.starts + windows.burn_ins
    used = total[windows.starts + windows.lengths + 1] > total[first]
    return windows[used]


def target_counts(windows: Windows, weights: Float[np.ndarray, " M"]) -> Int[np.ndarray, " W"]:
    """How many events with a weight above 0 each window predicts."""
    total, ends = counts_before(weights > 0), windows.starts + windows.lengths
    return total[ends + 1] - total[windows.starts + windows.burn_ins + 1]


def pack(
    lengths: Int[np.ndarray, " W"], sequence_length: int
) -> tuple[Int[np.ndarray, " W"], Int[np.ndarray, " W"]]:
    """Row and first time step of every window, in rows of `sequence_length` time steps.

    Windows of equal length are placed together, into the fullest rows that can hold them, or else
    into new rows.

    Args:
        lengths: of the windows, in descending order.
    """
    row_of_window = np.empty(len(lengths), np.int64)
    first_steps = np.empty(len(lengths), np.int64)
    open_rows: dict[int, Int[np.ndarray, " rows"]] = {}  # free time steps -> rows
    num_rows = done = 0
    while done < len(lengths):
        length = int(lengths[done])
        waiting = int(np.searchsorted(-lengths, -length, side="right")) - done
        free = min((space for space in open_rows if space >= length), default=None)
        if free is None:
            num_new = -(-waiting // (sequence_length // length))
            free = sequence_length
            open_rows[free] = np.arange(num_rows, num_rows + num_new)
            num_rows += num_new
        rows, other_rows = np.split(open_rows.pop(free), [waiting])
        if len(other_rows):
            open_rows[free] = other_rows
        row_of_window[done : done + len(rows)] = rows
        first_steps[done : done + len(rows)] = sequence_length - free
        left = free - length
        if left:
            open_rows[left] = np.append(open_rows.get(left, rows[:0]), rows)
        done += len(rows)
    return row_of_window, first_steps


@dataclass(frozen=True)
class PackedWindows(Windows):
    """Windows in rows, the longest first.

    A place is a row and a first time step, for a window of a certain length. The places of row r
    are `places_by_row[row_offsets[r] : row_offsets[r + 1]]`.
    """

    targets: Int[np.ndarray, " W"]  # how many events each window predicts
    first_steps: Int[np.ndarray, " W"]  # of every place
    places_by_row: Int[np.ndarray, " W"]
    row_offsets: Int[np.ndarray, " offsets"]


def pack_windows(
    log: EventLog,
    train_lengths: Int[np.ndarray, " U"],
    weights: Float[np.ndarray, " M"],
    sequence_length: int,
    burn_in: int = 0,
) -> PackedWindows:
    """The windows of a training log, in rows.

    Args:
        train_lengths: number of events of each user that may be used.
        weights: target weight of every event of the log.
        burn_in: events that only warm up the state of a window inside a history.
    """
    windows = with_targets(
        cut_windows(log.offsets, train_lengths, sequence_length, burn_in), weights
    )
    windows = windows[np.argsort(-windows.lengths, kind="stable")]
    row_of_place, first_steps = pack(windows.lengths, sequence_length)
    return PackedWindows(
        **vars(windows),
        targets=target_counts(windows, weights),
        first_steps=first_steps,
        places_by_row=np.argsort(row_of_place, kind="stable"),
        row_offsets=np.concatenate([[0], np.cumsum(np.bincount(row_of_place))]),
    )


class Packing:
    """The batches of a training log; `batch(epoch, step)` depends on its arguments only.

    Args:
        weights: target weight of every event of the log.
        packed: the windows of the log.
        batch_size, sequence_length: shape [B, T] of a batch.
    """

    def __init__(
        self,
        log: EventLog,
        weights: Float[np.ndarray, " M"],
        packed: PackedWindows,
        *,
        batch_size: int,
        sequence_length: int,
        seed: int = 0,
    ):
        self.log, self.weights, self.packed, self.seed = log, weights, packed, seed
        self.shape = (batch_size, sequence_length)
        self.epoch_order = lru_cache(maxsize=2)(self._epoch_order)

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches of an epoch; the last one may have empty rows."""
        return -(-self.num_rows // self.shape[0])

    @property
    def num_rows(self) -> int:
        """Number of packed rows of an epoch."""
        return len(self.packed.row_offsets) - 1

    def batch(
        self, epoch: int, step: int, part: slice | Int[np.ndarray, " rows"] = slice(None)
    ) -> Batch:
        """The rows `part` of the batch at a step of an epoch, in ascending order."""
        batch_size, sequence_length = self.shape
        places, windows, counts = self._windows(epoch, step, part)
        return filled_batch(
            self.log,
            self.weights,
            self.packed[windows],
            rows=np.repeat(np.arange(len(counts)), counts),
            first_steps=self.packed.first_steps[places],
            shape=(len(np.arange(batch_size)[part]), sequence_length),
        )

    def num_targets(self, epoch: int, step: int) -> int:
        """Targets with a weight in the whole batch at a step of an epoch."""
        _, windows, _ = self._windows(epoch, step, slice(None))
        return int(self.packed.targets[windows].sum())

    def _windows(
        self, epoch: int, step: int, part: slice | Int[np.ndarray, " rows"]
    ) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"], Int[np.ndarray, " used"]]:
        """Places of a batch, the windows there, and the number of them in every used row."""
        row_order, window_of_place = self.epoch_order(epoch)
        numbers = step * self.shape[0] + np.arange(self.shape[0])[part]
        rows = row_order[numbers[numbers < self.num_rows]]
        offsets = self.packed.row_offsets
        first, last = offsets[rows], offsets[rows + 1]
        places = self.packed.places_by_row[ranges(first, last - first)]
        return places, window_of_place[places], last - first

    def _epoch_order(self, epoch: int) -> tuple[Int[np.ndarray, " rows"], Int[np.ndarray, " W"]]:
        """A permutation of the rows, and for every place a window of the place's length."""
        random = np.random.default_rng([self.seed, epoch])
        row_order = random.permutation(self.num_rows)
        lengths = self.packed.lengths
        window_of_place = np.lexsort((random.random(len(lengths)), -lengths))
        return row_order, window_of_place


def filled_batch(
    log: EventLog,
    weights: Float[np.ndarray, " M"],
    windows: Windows,
    *,
    rows: Int[np.ndarray, " W"],
    first_steps: Int[np.ndarray, " W"],
    shape: tuple[int, int],
) -> Batch:
    """A batch [B, T] of windows of a log.

    Args:
        weights: target weight of every event.
        rows, first_steps: where each window begins.
        shape: of the batch.
    """
    lengths = windows.lengths
    in_window = ranges(np.zeros_like(lengths), lengths)  # position inside the window
    events = np.repeat(windows.starts, lengths) + in_window
    cells = np.repeat(rows, lengths), np.repeat(first_steps, lengths) + in_window

    def spread(values: np.ndarray, fill: int = 0) -> np.ndarray:
        grid = np.full(shape, fill, values.dtype)
        grid[cells] = values
        return grid

    users = np.repeat(log.users_at(windows.starts), lengths)
    is_first = events == log.offsets[users]
    predicted = in_window >= np.repeat(windows.burn_ins, lengths)
    return Batch(
        users=spread(users.astype(np.int32)),
        items=spread(log.items[events]),
        event_types=spread(log.event_types[events].astype(np.int32)),
        gaps=spread(event_gaps(log, events, users), NO_GAP),
        starts=spread(in_window == 0),
        first_weights=spread(is_first * weights[events].astype(np.float32)),
        targets=spread(log.items[events + 1]),
        target_event_types=spread(log.event_types[events + 1].astype(np.int32)),
        target_gaps=spread(event_gaps(log, events + 1, users), NO_GAP),
        weights=spread(np.where(predicted, weights[events + 1], 0).astype(np.float32)),
    )


def event_gaps(
    log: EventLog,
    numbers: Int[np.ndarray, "*shape"],
    users: Int[np.ndarray, "*shape"],
    last_times: Int[np.ndarray, " U"] | None = None,
) -> Int[np.ndarray, "*shape"]:
    """Seconds from the user's previous event to some events; NO_GAP where they are unknown.

    Args:
        numbers: of the events in the log.
        users: of the events; see `EventLog.users_at`.
        last_times: time of every user's last event before the log, negative if there is none.
    """
    if not log.has_time:
        return np.full(numbers.shape, NO_GAP, np.int32)
    times = log.times[numbers]
    before = np.int64(-1) if last_times is None else last_times[users]
    is_first = numbers == log.offsets[users]
    previous = np.where(is_first, before, log.times[np.maximum(numbers - 1, 0)])
    gaps = np.clip(times - previous, 0, MAX_GAP)
    return np.where(is_first & (before < 0), NO_GAP, gaps).astype(np.int32)


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The ranges `start, start + 1, ..., start + length - 1`, concatenated."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + lengths, lengths)
