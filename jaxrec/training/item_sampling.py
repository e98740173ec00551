"""Draws the items that a training step encodes and scores, instead of the whole catalogue."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxrec.config import TrainConfig
from jaxrec.data.packing import Packing, Windows, ranges
from jaxrec.data.slices import SLICE
from jaxrec.models.graph.neighbourhoods import distinct
from jaxrec.training.losses.sampled_softmax import log_probability
from jaxrec.types import STATIC, Batch, padded_size

LEVELS = 2**32  # of the random numbers that items are drawn with


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ItemSample:
    """Distinct items of a training step, ascending; the last row of the catalogue fills up."""

    rows: Int[Array, " K"]  # items to score, with the unknown item first
    valid: Bool[Array, " K"]  # those that can be predicted
    log_p: Float[Array, " K"]  # see `log_probability`

    def places(self, items: Int[Array | np.ndarray, "*shape"]) -> Int[Array, "*shape"]:
        """Where items stand in the sample."""
        return jnp.searchsorted(self.rows, jnp.asarray(items))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ItemSampler:
    """Draws the items of a batch, and random ones.

    A sample has room for the items of any batch, so none is ever left out.
    """

    windows: Float[Array, " I"]  # windows of an epoch that hold each item
    levels: UInt32[Array, " I"]  # item i is drawn by numbers below levels[i], from levels[i - 1] on
    num_windows: int = field(metadata=STATIC)
    negatives: int = field(metadata=STATIC)
    size: int = field(metadata=STATIC)
    takes_all: bool = field(metadata=STATIC)
    encodes_all: bool = field(metadata=STATIC)  # because experts read the whole graph

    def sample(self, batch: Batch, candidates: Bool[Array, " I"], key: Array) -> ItemSample:
        """The sample of a step; all items are in it for certain if the sampler takes all."""
        if self.takes_all:
            return ItemSample(
                jnp.arange(self.size), candidates, jnp.zeros(self.size, self.windows.dtype)
            )
        numbers = jax.random.bits(key, (self.negatives,), jnp.uint32)
        # the last level is LEVELS - 1
        drawn = jnp.searchsorted(
            self.levels, jnp.minimum(numbers, np.uint32(LEVELS - 2)), side="right"
        )
        parts = (jnp.zeros(1, int), jnp.ravel(batch.items), jnp.ravel(batch.targets), drawn)
        rows = distinct(jnp.concatenate(parts), self.size, len(self.windows) - 1)
        log_p = log_probability(
            self.windows[rows],
            jnp.maximum(jnp.asarray(batch.starts).sum() - 1, 0),
            self.num_windows - 1,
            self.draw_probability(rows),
            self.negatives,
        )
        return ItemSample(rows, candidates[rows], log_p)

    def draw_probability(self, rows: Int[Array, " K"]) -> Float[Array, " K"]:
        """The probability that a draw is each of these items."""
        below = jnp.where(rows == 0, 0, self.levels[jnp.maximum(rows - 1, 0)])
        return (self.levels[rows] - below).astype(jnp.float32) / float(LEVELS)


def item_sampler(
    config: TrainConfig,
    packing: Packing,
    windows: Int[np.ndarray, " I"],
    candidates: Bool[np.ndarray, " I"],
    *,
    encodes_all: bool = False,
) -> ItemSampler:
    """The sampler of the batches of a training.

    Args:
        windows: `windows_of_items` of the packing.
        candidates: items that can be predicted.
        encodes_all: whether steps encode all items, though they score a sample.
    """
    num_items = len(candidates)
    chances = np.where(candidates, np.maximum(windows, 1.0) ** config.negative_power, 0)
    shares = np.cumsum(chances) / max(chances.sum(), 1)
    takes_all = config.negatives >= candidates.sum()
    items = min(largest_batch(packing), int((windows > 0).sum()))
    size = min(padded_size(1 + items + config.negatives), num_items)
    return ItemSampler(
        windows=jnp.asarray(windows, jnp.float32),
        levels=jnp.asarray(np.floor(shares * (LEVELS - 1)).astype(np.uint32)),
        num_windows=len(packing.packed.lengths),
        negatives=config.negatives,
        size=num_items if takes_all else size,
        takes_all=bool(takes_all),
        encodes_all=encodes_all,
    )


def windows_of_items(packing: Packing, num_items: int) -> Int[np.ndarray, " I"]:
    """The number of windows that read or predict each item."""
    total = np.zeros(num_items, np.int64)
    for part in window_blocks(packing.packed):
        lengths = part.lengths + 1  # the last event is only predicted
        items = packing.log.items[ranges(part.starts, lengths)].astype(np.int64)
        numbers = np.repeat(np.arange(len(lengths)), lengths)
        distinct_items = np.unique(numbers * num_items + items) % num_items
        total += np.bincount(distinct_items, minlength=num_items)
    return total


def window_blocks(windows: Windows) -> Iterator[Windows]:
    """The windows in blocks of about `SLICE` events."""
    ends = np.cumsum(windows.lengths + 1)
    bounds = np.searchsorted(ends, np.arange(0, ends[-1] if len(ends) else 0, SLICE))
    for first, last in zip(bounds, [*bounds[1:], len(ends)], strict=True):
        yield windows[first:last]


def largest_batch(packing: Packing) -> int:
    """The most events that the windows of a batch hold."""
    if not packing.num_rows:
        return 0
    events = (packing.packed.lengths + 1)[packing.packed.places_by_row]
    by_row = np.add.reduceat(events, packing.packed.row_offsets[:-1])
    return int(np.sort(by_row)[-packing.shape[0] :].sum())
