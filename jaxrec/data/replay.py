"""The events that a warm start predicts: all new ones, and a sample of old ones (replay)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from jaxrec.data.packing import Windows, ranges
from jaxrec.data.slices import counts_before
from jaxrec.types import EventLog


def replayed_weights(
    log: EventLog,
    weights: Float[np.ndarray, " M"],
    new: Bool[np.ndarray, " M"],
    windows: Windows,
    *,
    share: float,
    seed: Sequence[int],
) -> Float[np.ndarray, " M"]:
    """The target weights with 0 for old events that are not replayed.

    Windows are drawn at random until their old targets are a share `share` of all targets, so the
    replayed events of a user lie side by side. Every other old event only updates a state.

    Args:
        weights: target weight of every event of the log.
        new: the training events that are new since the earlier run.
        windows: of all training events.
        share: below 1.
    """
    # the first event of a window is predicted only where a history begins
    begins = np.isin(windows.starts, log.offsets[:-1])
    first = windows.starts + windows.burn_ins + ~begins
    counts = windows.starts + windows.lengths + 1 - first
    old = ~new & (weights > 0)
    total = counts_before(old)
    old_targets = total[first + counts] - total[first]
    num_new = int(np.count_nonzero(new & (weights > 0)))
    order = np.random.default_rng(seed).permutation(len(counts))
    before = np.cumsum(old_targets[order]) - old_targets[order]
    drawn = order[before < num_new * share / (1 - share)]
    kept = new.copy()
    kept[ranges(first[drawn], counts[drawn])] = True
    return np.where(kept, weights, 0)
