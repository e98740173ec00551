"""Packed training batches as a pure function of (log, seed, epoch, step).

Histories are cut into windows and windows are packed into rows by best fit over the histogram
of their lengths (arXiv:2107.02027). The packing is made once; an epoch only permutes the windows
of equal length among themselves and the rows, so every epoch has the same number of steps.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int

from jaxrec.types import MAX_GAP, NO_GAP, Batch, EventLog


@dataclass(frozen=True)
class Windows:
    """Stretches of histories: events `starts[w] : starts[w] + lengths[w]` of the log are read.

    The first `burn_ins[w]` of them only warm the state up.
    """

    starts: Int[np.ndarray, " W"]
    lengths: Int[np.ndarray, " W"]
    burn_ins: Int[np.ndarray, " W"]


def cut_windows(
    offsets: Int[np.ndarray, "U+1"],
    train_lengths: Int[np.ndarray, " U"],
    slots: int,
    burn_in: int = 0,
) -> Windows:
    """Cut every user's training events into windows of at most `slots` events.

    The last event of a user is only a target, so n events fill n - 1 slots. Windows are laid
    from the end, so that the newest always fills its slots; each predicts `slots - burn_in`
    events that no other window predicts.

    Raises:
        ValueError: `burn_in` leaves no slot to predict from.
    """
    if not 0 <= burn_in < slots:
        raise ValueError(f"burn_in must be at least 0 and below slots={slots}, not {burn_in}")
    inputs = np.maximum(train_lengths - 1, 0)
    stride = slots - burn_in
    extra = np.maximum(inputs - slots, 0)
    counts = np.where(inputs > 0, 1 + -(-extra // stride), 0)
    users = np.repeat(np.arange(len(inputs)), counts)
    from_end = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    ends = inputs[users] - from_end * stride
    starts = np.maximum(ends - slots, 0)
    return Windows(
        starts=offsets[:-1][users] + starts,
        lengths=ends - starts,
        burn_ins=np.where(starts > 0, burn_in, 0),
    )


def pack(
    lengths: Int[np.ndarray, " W"], slots: int
) -> tuple[Int[np.ndarray, " W"], Int[np.ndarray, " W"]]:
    """Row and first slot of every window, given that lengths do not increase.

    Windows of equal length are placed together: into the fullest rows that still hold them,
    else into just as many new rows as they fill.
    """
    placed_row, placed_slot = np.empty(len(lengths), np.int64), np.empty(len(lengths), np.int64)
    open_rows: dict[int, Int[np.ndarray, " R"]] = {}  # free slots -> rows
    num_rows = done = 0
    while done < len(lengths):
        length = int(lengths[done])
        waiting = int(np.searchsorted(-lengths, -length, side="right")) - done
        free = min((space for space in open_rows if space >= length), default=None)
        if free is None:
            opened = -(-waiting // (slots // length))
            free, open_rows[slots] = slots, np.arange(num_rows, num_rows + opened)
            num_rows += opened
        rows, rest = np.split(open_rows.pop(free), [waiting])
        if len(rest):
            open_rows[free] = rest
        placed_row[done : done + len(rows)] = rows
        placed_slot[done : done + len(rows)] = slots - free
        left = free - length
        if left:
            open_rows[left] = np.append(open_rows.get(left, rows[:0]), rows)
        done += len(rows)
    return placed_row, placed_slot


class Packing:
    """The batches of a training log: `batch(epoch, step)` depends on nothing but its arguments.

    Args:
        train_lengths: events of each user that may be used.
        weights: weight of every event of the log as a target.
        rows, slots: shape [B, T] of a batch.
    """

    def __init__(
        self,
        log: EventLog,
        train_lengths: Int[np.ndarray, " U"],
        weights: Float[np.ndarray, " M"],
        *,
        rows: int,
        slots: int,
        burn_in: int = 0,
        seed: int = 0,
    ):
        windows = cut_windows(log.offsets, train_lengths, slots, burn_in)
        order = np.argsort(-windows.lengths, kind="stable")
        self.windows = Windows(
            windows.starts[order], windows.lengths[order], windows.burn_ins[order]
        )
        self.log, self.weights, self.seed = log, weights, seed
        self.shape = (rows, slots)
        placed_row, self.slot_of_place = pack(self.windows.lengths, slots)
        self.places_by_row = np.argsort(placed_row, kind="stable")
        self.row_offsets = np.concatenate([[0], np.cumsum(np.bincount(placed_row))])
        self.gaps = event_gaps(log)
        self.epoch_order = lru_cache(maxsize=2)(self._epoch_order)

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch; the last one may be partly empty."""
        return -(-self.num_rows // self.shape[0])

    @property
    def num_rows(self) -> int:
        """Packed rows of an epoch."""
        return len(self.row_offsets) - 1

    @property
    def fill(self) -> float:
        """Share of the slots of all rows that hold an event."""
        return float(self.windows.lengths.sum() / (self.num_rows * self.shape[1]))

    def batch(self, epoch: int, step: int, part: slice = slice(None)) -> Batch:
        """Rows `part` of the batch number `step` of an epoch."""
        row_order, window_of_place = self.epoch_order(epoch)
        rows, slots = self.shape
        chosen = row_order[step * rows : (step + 1) * rows][part]
        count = len(range(rows)[part])
        first, last = self.row_offsets[chosen], self.row_offsets[chosen + 1]
        places = self.places_by_row[ranges(first, last - first)]
        windows = window_of_place[places]
        lengths = self.windows.lengths[windows]
        inner = ranges(np.zeros_like(lengths), lengths)  # position inside the window
        events = np.repeat(self.windows.starts[windows], lengths) + inner
        where = (
            np.repeat(np.repeat(np.arange(len(chosen)), last - first), lengths),
            np.repeat(self.slot_of_place[places], lengths) + inner,
        )

        def spread(values: np.ndarray, fill: int = 0) -> np.ndarray:
            grid = np.full((count, slots), fill, values.dtype)
            grid[where] = values
            return grid

        users = np.searchsorted(self.log.offsets, events, side="right") - 1
        is_first = events == self.log.offsets[users]
        predicted = inner >= np.repeat(self.windows.burn_ins[windows], lengths)
        return Batch(
            users=spread(users.astype(np.int32)),
            items=spread(self.log.items[events]),
            event_types=spread(self.log.event_types[events].astype(np.int32)),
            gaps=spread(self.gaps[events], NO_GAP),
            starts=spread(inner == 0),
            firsts=spread(is_first * self.weights[events].astype(np.float32)),
            targets=spread(self.log.items[events + 1]),
            target_event_types=spread(self.log.event_types[events + 1].astype(np.int32)),
            target_gaps=spread(self.gaps[events + 1], NO_GAP),
            weights=spread(np.where(predicted, self.weights[events + 1], 0).astype(np.float32)),
        )

    def _epoch_order(self, epoch: int) -> tuple[Int[np.ndarray, " R"], Int[np.ndarray, " W"]]:
        """A permutation of the rows, and the window at every place: one of the place's length."""
        random = np.random.default_rng([self.seed, epoch])
        row_order = random.permutation(self.num_rows)
        lengths = self.windows.lengths
        window_of_place = np.lexsort((random.random(len(lengths)), -lengths))
        return row_order, window_of_place


def event_gaps(
    log: EventLog, last_times: Int[np.ndarray, " U"] | None = None
) -> Int[np.ndarray, " M"]:
    """Seconds since the event before of the same user; NO_GAP where none is known.

    Args:
        last_times: times of the events before those of the log, negative where there are none.
    """
    gaps = np.full(len(log.items), NO_GAP, np.int32)
    if log.has_time and len(gaps):
        gaps[1:] = np.clip(np.diff(log.times), 0, MAX_GAP)
        active = log.lengths > 0
        firsts = log.offsets[:-1][active]
        gaps[firsts] = NO_GAP
        if last_times is not None:
            before = last_times[active]
            since = np.clip(log.times[firsts] - before, 0, MAX_GAP)
            gaps[firsts] = np.where(before < 0, NO_GAP, since)
    return gaps


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """`starts[0] ... starts[0] + lengths[0] - 1, starts[1], ...`, one after another."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + lengths, lengths)
