"""The nodes that a forecast follows one by one."""

from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from jaxrec.ranking.adjustments import AdjustmentBlocks, no_adjustments
from jaxrec.ranking.item_table import ItemTable, PreparedItems
from jaxrec.ranking.top_k import best_items, padded
from jaxrec.types import NEG_INF

CANDIDATES = 256  # nodes that a forecast follows


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Candidates:
    """The nodes of one type that the forecasts of U users follow; inside `vmap` of one user."""

    rows: Int[Array | np.ndarray, "U P"]  # 0: none
    scores: Float[Array | np.ndarray, "U P"]  # now, at the calibrated temperature
    rest: Float[Array | np.ndarray, " U"]  # log of the sum of exp(score) over all other nodes

    def part(self, start: int, size: int) -> "Candidates":
        """The candidates of `size` users; rows of padding follow the last user."""
        end = slice(start, start + size)
        return jax.tree.map(lambda rows: padded(rows[end], size), self)


def find_candidates(
    nodes: ItemTable | PreparedItems,
    scale: float,
    users: Float[np.ndarray, "U F"],
    adjustments: AdjustmentBlocks = no_adjustments,
) -> Candidates:
    """The likeliest nodes of every user.

    Args:
        scale: of the scores: the calibrated inverse temperature.
        adjustments: of the scores before they are scaled.
    """
    best = best_items(
        users, nodes, CANDIDATES, adjustments, with_log_z=True, inverse_temperature=scale
    )
    assert best.log_z is not None
    scores = np.where(best.items > 0, best.scores, NEG_INF).astype(np.float32)
    return Candidates(best.items, scores, _log_rest(scores, best.log_z))


def with_nodes(
    candidates: Candidates,
    nodes: ItemTable,
    scale: float,
    user: Float[np.ndarray, " F"],
    rows: Int[np.ndarray, " K"],
) -> Candidates:
    """Candidates of one user, without adjustments, whose last ones make room for missing `rows`."""
    own = candidates.rows[0]
    log_z = np.logaddexp(candidates.rest, np.logaddexp.reduce(candidates.scores, 1))
    kept = np.concatenate([rows, own[~np.isin(own, rows)]])[: len(own)]
    scores = scale * (np.asarray(nodes.vectors)[kept] @ user + nodes.biases[kept])
    scores = np.where(kept > 0, scores, NEG_INF).astype(np.float32)[None]
    return Candidates(kept[None], scores, _log_rest(scores, log_z))


def _log_rest(
    scores: Float[np.ndarray, "U P"], log_z: Float[np.ndarray, " U"]
) -> Float[np.ndarray, " U"]:
    share = 1 - np.exp(scores - log_z[:, None]).sum(1)
    # a smaller share is rounding
    rest = np.where(share > 1e-5, log_z + np.log(np.maximum(share, 1e-5)), NEG_INF)
    return rest.astype(np.float32)
