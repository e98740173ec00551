"""The nodes that a forecast follows one by one, and how further events change their scores."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from jaxrec.ranking.adjustments import AdjustmentBlocks, masked_event_types, no_adjustments
from jaxrec.ranking.history_bias import ItemNeighbours
from jaxrec.ranking.item_table import ItemTable, PreparedItems
from jaxrec.ranking.top_k import best_items, padded
from jaxrec.types import NEG_INF, STATIC, EventLog, Queries

if TYPE_CHECKING:
    from jaxrec.inference.trained_model import TrainedModel  # whose methods call these

CANDIDATES = 256  # nodes that a forecast follows


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NeighbourScores:
    """What item neighbours add to the scores of the candidates of U users; inside `vmap` of one."""

    now: Float[Array | np.ndarray, "U P"]  # by the events of the history
    by_event: Float[Array | np.ndarray, "U P P"]  # by an event of each candidate
    decay: Float[Array | np.ndarray, " U"]  # of both, at every further event


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FurtherEvents:
    """How further events change the scores of candidate items, beside the user vector.

    Attributes:
        neighbours: at the calibrated temperature.
        are_masked: whether their items are left out afterwards, as those of the history are.
    """

    neighbours: tuple[NeighbourScores, ...] = ()
    are_masked: bool = field(default=False, metadata=STATIC)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Candidates:
    """The nodes of one type that the forecasts of U users follow; inside `vmap` of one user."""

    rows: Int[Array | np.ndarray, "U P"]  # 0: none
    scores: Float[Array | np.ndarray, "U P"]  # now, at the calibrated temperature
    rest: Float[Array | np.ndarray, " U"]  # log of the sum of exp(score) over all other nodes
    further: FurtherEvents = field(default_factory=FurtherEvents)

    def part(self, start: int, size: int) -> "Candidates":
        """The candidates of `size` users; rows of padding follow the last user."""
        end = slice(start, start + size)
        return jax.tree.map(lambda rows: padded(rows[end], size), self)


class Histories(NamedTuple):
    """What the candidates of users follow: moments of a log, and the history to leave out."""

    log: EventLog
    queries: Queries
    mask: tuple[str, ...] = ()  # empty: as in the run's evaluation

    def part(self, start: int, size: int) -> "Histories":
        """Those of `size` users; rows of padding follow the last user."""
        rows = np.minimum(np.arange(start, start + size), len(self.queries) - 1)
        return self._replace(queries=self.queries[rows])


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


def with_further_events(
    items: Candidates, model: "TrainedModel", histories: Histories
) -> Candidates:
    """Candidate items, and how further events would change their scores."""
    log, queries, mask = histories
    encoder, scale = model.encoder, model.inverse_temperature
    names, target = encoder.event_type_names, encoder.target_event_type
    predicted = [encoder.is_predicted(name) for name in names]
    masked = masked_event_types(mask or model.config.evaluation.mask, names)
    neighbours = model.ranker.history_bias[target].neighbours.values()
    scores = tuple(
        neighbour_scores(of, np.asarray(items.rows), of.adjustments(log, queries), scale, predicted)
        for of in neighbours
    )
    return replace(items, further=FurtherEvents(scores, bool(masked[predicted].all())))


def neighbour_scores(
    neighbours: ItemNeighbours,
    rows: Int[np.ndarray, "U P"],
    adjustments: AdjustmentBlocks,
    scale: float,
    predicted: Sequence[bool],
) -> NeighbourScores:
    """The scores of one kind of neighbours; `predicted` marks the types of further events."""
    users, count = rows.shape
    size = max(int(rows.max(initial=0)) + 1, len(neighbours.items))
    places = np.arange(users)[:, None] * size + rows
    order = np.argsort(places, axis=None)
    ascending = places.ravel()[order]

    def place_of(user, item):
        """Where an item is among all candidates, and whether it is there."""
        wanted = user * size + item
        found = np.minimum(np.searchsorted(ascending, wanted), len(ascending) - 1)
        return order[found], (ascending[found] == wanted) & (item > 0)

    now, by_event = np.zeros(users * count), np.zeros((users, count, count), np.float32)
    added = adjustments(0, users)
    place, is_candidate = place_of(added.rows, added.items)
    np.add.at(now, place[is_candidate], added.amounts[is_candidate])
    if neighbours.event_types[list(predicted)].all():
        known = np.where(rows < len(neighbours.items), rows, 0)
        place, is_candidate = place_of(np.arange(users)[:, None, None], neighbours.items[known])
        amounts = neighbours.amounts[known]
        user, event, _ = np.nonzero(is_candidate)
        np.add.at(by_event, (user, event, place[is_candidate] % count), amounts[is_candidate])
    return NeighbourScores(
        now=(scale * now).astype(np.float32).reshape(users, count),
        by_event=scale * by_event,
        decay=np.full(users, 0.5 ** (1 / neighbours.half_life), np.float32),
    )


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
