"""What users are interested in now, and how that moved: weights over the entities of a type."""

import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy.special import logsumexp

from jaxrec.ranking.top_k import AdjustmentBlocks, best_items, no_adjustments


def strongest(
    now: Float[np.ndarray, "U D"],
    before: Float[np.ndarray, "U D"],
    nodes: Float[Array, "n D"],
    valid: Bool[np.ndarray, " n"],
    top: int,
    pairs: AdjustmentBlocks = no_adjustments,
) -> tuple[Int[np.ndarray, "U K"], Float[np.ndarray, "U K"], Float[np.ndarray, "U K"]]:
    """The nodes of largest weight for every user, their weights, and their weights before.

    A weight is the softmax of the scores over the valid nodes of the type that `pairs` leave,
    so that those of a user add up to 1. A node of 0 stands where none is left.

    Args:
        now, before: user vectors at two moments, times the inverse temperature.
        nodes: vectors of a block of nodes.
        valid: rows of the block that are nodes.
    """
    top = min(top, int(valid.sum()))
    best = best_items(now, nodes, pairs, valid, top)
    earlier = best_items(before, nodes, pairs, valid, 1)
    scores = np.einsum("ud,ukd->uk", before, np.asarray(nodes)[best.items])
    assert best.log_z is not None and earlier.log_z is not None

    def weights(scores: Float[np.ndarray, "U K"], log_z: Float[np.ndarray, " U"]) -> np.ndarray:
        return np.exp(np.where(best.items > 0, scores - log_z[:, None], -np.inf))

    return best.items, weights(best.scores, best.log_z), weights(scores, earlier.log_z)


def weights_over_time(
    vectors: Float[np.ndarray, "T D"],
    nodes: Float[np.ndarray, "n D"],
    valid: Bool[np.ndarray, " n"],
    top: int,
) -> tuple[Int[np.ndarray, " K"], Float[np.ndarray, "T K"]]:
    """The nodes that matter most to one user over T moments, and their weights at each.

    Those of the largest weight summed over the moments; arguments as in `strongest`.
    """
    scores = np.where(valid[None], vectors @ nodes.T, -np.inf)
    weights = np.exp(scores - logsumexp(scores, axis=1, keepdims=True))
    chosen = np.argsort(-weights.sum(0), kind="stable")[: min(top, int(valid.sum()))]
    return chosen, weights[:, chosen]
