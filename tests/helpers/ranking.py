"""Small ranking problems."""

import numpy as np

from jaxrec.ranking.adjustments import exclude, no_adjustments
from jaxrec.ranking.top_k import rank_host_scores


def from_mask(mask):
    """The exclusions of a dense [Q, I] mask, block by block."""
    return lambda start, stop: exclude(*np.nonzero(mask[start:stop]))


def catalogue(num_items, capacity):
    """Row 0 is the unknown item, rows from num_items on are unused capacity."""
    rows = np.arange(capacity)
    return (rows > 0) & (rows < num_items)


def rank_dense(scores, targets, excluded=no_adjustments, valid=None, **options):
    scores = np.asarray(scores, np.float32)
    valid = catalogue(scores.shape[1], scores.shape[1]) if valid is None else valid
    return rank_host_scores(
        lambda start, stop: scores[start:stop], np.asarray(targets), excluded, valid, **options
    )


def small_integers(seed, *shape):
    """Vectors whose products are exact in float32, with many equal ones."""
    return np.random.default_rng(seed).integers(-2, 3, shape).astype(np.float32)
