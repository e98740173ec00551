"""Ranking under a strategy: lists are filled up, however much a step takes out of them."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from jaxrec.data.graph import first_neighbours
from jaxrec.ranking.context import (
    ItemContext,
    RankedLists,
    ReorderedLists,
    Reordering,
    RerankContext,
    Scoring,
    Step,
)
from jaxrec.ranking.steps import Caps, Epsilon, Feedback, Filter, Session, take
from jaxrec.ranking.top_k import NEG_INF, AdjustmentBlocks, Candidates, at_least, best_items, padded
from jaxrec.types import Catalog, EventLog

UserAdjustments = Callable[[Int[np.ndarray, " R"]], AdjustmentBlocks]
"""What some of the queries change in the scores of items."""
Moves = dict[int, dict[int, Float[np.ndarray, " I"]]]
"""Number of a feedback step -> number of a query -> what is added to every item's score, as a
share of the span of the query's scores."""
SLICE = 256


@dataclass(frozen=True)
class RerankPipeline:
    """Steps made ready for a catalogue."""

    steps: tuple[Step, ...]
    shop: ItemContext
    biases: dict[int, Float[np.ndarray, " I"]]  # number of a scoring step -> what it adds
    bias: Float[np.ndarray, " I"]  # all of them; -inf keeps an item out

    @property
    def removed(self) -> dict[str, int]:
        """Filters and the items that they keep out of every list."""
        valid = self.shop.valid
        filters = {n: step.name for n, step in enumerate(self.steps) if isinstance(step, Filter)}
        return {
            name: int((valid & np.isneginf(self.biases[n])).sum()) for n, name in filters.items()
        }

    def bits(self, event_type: type[Step]) -> int:
        """The steps of a event_type as a bit set, as in `RankedLists.touched`."""
        return sum(1 << n for n, step in enumerate(self.steps) if isinstance(step, event_type))

    @property
    def session(self) -> Session | None:
        """The step that mixes the present session in."""
        return next((step for step in self.steps if isinstance(step, Session)), None)

    @property
    def explores(self) -> bool:
        """Whether lists depend on chance."""
        return any(isinstance(step, Epsilon) for step in self.steps)

    @property
    def reordering(self) -> list[tuple[int, Reordering]]:
        """The steps that act on the best items, with their numbers."""
        return [(n, step) for n, step in enumerate(self.steps) if isinstance(step, Reordering)]

    def names(self, touched: int) -> list[str]:
        """The steps of a bit set, as in `RankedLists.touched`."""
        return [step.name for n, step in enumerate(self.steps) if touched >> n & 1]

    def lengths(self, k: int, times: int) -> list[int]:
        """Places that are fetched, then those that every step of `reordering` leaves.

        Caps get `times` as many as they are to leave.
        """
        lengths = [k]
        for _, step in reversed(self.reordering):
            if isinstance(step, Caps):
                lengths.append(times * lengths[-1])
            else:
                pool = min(getattr(step, "pool", 0), int(self.shop.valid.sum()))
                lengths.append(max(lengths[-1], pool))
        return lengths[::-1]


class RerankResult(NamedTuple):
    """A list a query, and what the steps did on the way."""

    ranked: RankedLists
    removed: dict[str, int]  # step -> entries passed over


def plan(
    steps: Sequence[Step],
    catalog: Catalog,
    counts: Float[np.ndarray, " n"],
    valid: Bool[np.ndarray, " I"],
) -> RerankPipeline:
    """Steps made ready for a catalogue.

    Args:
        counts: how often the items were chosen in training, row 0 included; later rows never.
        valid: rows of the item block that are items.

    Raises:
        DataError: a condition or a list of ids cannot be used.
        ValueError: a cap names no node type of the graph, a step that changes vectors or scores
            stands behind one that reorders, or any step behind one that leaves places to chance.
    """
    for before, after in pairwise(steps):
        if isinstance(before, Reordering) and not isinstance(after, Reordering):
            raise ValueError(f"{after.name} changes scores, so it must stand before {before.name}")
        if isinstance(before, Epsilon):  # what it draws has the chances that it tells
            raise ValueError(f"epsilon must be the last step, so {after.name} must stand before it")
    entities = [name for step in steps if isinstance(step, Caps) for name in step.limits]
    groups = {name: first_neighbours(catalog.graph, name) for name in entities}
    shop = ItemContext(catalog, np.pad(counts, (0, len(valid) - len(counts))), valid, groups)
    biases = {n: step.bias(shop) for n, step in enumerate(steps) if isinstance(step, Scoring)}
    bias = np.where(valid, sum(biases.values()), -np.inf).astype(np.float32)
    return RerankPipeline(tuple(steps), shop, biases, bias)


def rerank(
    queries: Float[np.ndarray, "Q D"],
    items: Float[Array, "I D"],
    pairs: UserAdjustments,
    k: int,
    plan: RerankPipeline,
    *,
    histories: EventLog | None = None,
    random: np.random.Generator | None = None,
    ready: Candidates | None = None,
    lengths: Sequence[int] = (),
    batches: Sequence[int] = (),
    approximate: bool = False,
    mesh: Mesh | None = None,
) -> RerankResult:
    """The k best items of every query as the steps of a plan leave them.

    Args:
        histories: a user a query, for steps that read what users have done.
        random: for steps that throw dice.
        ready: the items with the plan's bias, for who ranks them again and again.
        lengths, batches: of rankings, and of queries, that are compiled; what differs is cut from
            the next larger one.
    """

    feedback = {n: step for n, step in enumerate(plan.steps) if isinstance(step, Feedback)}
    moves = {n: step.moves(histories, plan.shop) for n, step in feedback.items()}

    def best(rows: Int[np.ndarray, " R"], size: int, bias: Float[np.ndarray, " I"]):
        theirs = pairs(rows)
        top = best_items(
            padded(queries[rows], at_least(len(rows), batches)),
            ready if ready is not None and bias is plan.bias else items,
            theirs,
            plan.shop.valid,
            at_least(size, lengths),
            bias=bias,
            with_log_z=False,
            approximate=approximate,
            mesh=mesh,
        )
        ranked, scores = (np.array(part[: len(rows), :size]) for part in (top.items, top.scores))
        for place, row in enumerate(rows.tolist()):
            own = [of_user[row] for of_user in moves.values() if row in of_user]
            if own:  # no two users have the same bias, so each is ranked alone
                of_model = np.asarray(items) @ queries[row]
                mine = theirs(place, place + 1)
                is_pair = mine.rows == 0  # the rest is padding
                np.add.at(of_model, mine.items[is_pair], mine.amounts[is_pair])
                left = plan.shop.valid & (of_model > NEG_INF / 2)
                span = np.ptp(of_model[left]) if left.any() else 0
                all_scores = np.where(left, of_model + bias + span * sum(own), -np.inf)
                ranked[place], scores[place] = _highest(all_scores, size)
        return ranked, scores

    asking = RerankContext(best, items, plan.bias, random or np.random.default_rng(0))
    # over-fetched pools and their vectors are large, so few users have theirs at a time
    width = SLICE if plan.reordering else max(len(queries), 1)
    parts, removed = [], Counter[str]()
    for start in range(0, max(len(queries), 1), width):
        rows = np.arange(start, min(start + width, len(queries)))
        ranked, passed = _walk(plan, asking, moves, rows, k)
        parts.append(ranked)
        removed.update({name: int(counts.sum()) for name, counts in passed.items()})
    return RerankResult(RankedLists(*map(np.concatenate, zip(*parts, strict=True))), dict(removed))


def _walk(
    plan: RerankPipeline,
    asking: RerankContext,
    moves: Moves,
    rows: Int[np.ndarray, " R"],
    k: int,
    times: int = 1,
) -> tuple[RankedLists, dict[str, Int[np.ndarray, " R"]]]:
    """Some queries' rankings after all steps, and the entries that steps have passed over.

    Rankings that come out short although there are more items begin again with twice as many.
    """
    size, *lengths = plan.lengths(k, times)
    items, scores = asking.best(rows, size, plan.bias)
    touched = _touched_scores(plan, moves, rows, items)
    ranked = RankedLists(items, scores, touched, np.ones(scores.shape))
    asking = replace(asking, rows=rows)
    passed: dict[str, Int[np.ndarray, " R"]] = {}
    short = np.zeros(len(rows), bool)
    for (number, step), length in zip(plan.reordering, lengths, strict=True):
        made = step.reorder(ranked, asking, plan.shop, length)
        passed[step.name] = passed.get(step.name, 0) + made.passed
        ranked = _moved(ranked, made, 1 << number)
        short |= (ranked.items > 0).sum(1) < length
    again = np.flatnonzero(short & (items[:, -1] > 0))
    if len(again):
        fuller, passed_again = _walk(plan, asking, moves, rows[again], k, 2 * times)
        for part, full in zip(ranked, fuller, strict=True):
            part[again] = full
        for name, counts in passed.items():
            counts[again] = passed_again[name]
    return ranked, passed


def _highest(
    scores: Float[np.ndarray, " I"], size: int
) -> tuple[Int[np.ndarray, " P"], Float[np.ndarray, " P"]]:
    """The items of the highest scores; 0 and -inf behind them where there are fewer."""
    best = np.argsort(-scores, kind="stable")[:size]
    found = np.where(np.isneginf(scores[best]), 0, best)
    behind = (0, size - len(best))
    return np.pad(found, behind), np.pad(scores[best], behind, constant_values=-np.inf)


def _touched_scores(
    plan: RerankPipeline, moves: Moves, rows: Int[np.ndarray, " R"], items: Int[np.ndarray, "R P"]
) -> Int[np.ndarray, "R P"]:
    """The steps that have changed the scores of items."""
    touched = np.zeros(items.shape, np.int64)
    for number, bias in plan.biases.items():
        touched |= (bias[items] != 0).astype(np.int64) << number
    for number, of_user in moves.items():
        for place in np.flatnonzero([row in of_user for row in rows.tolist()]):
            moved = of_user[int(rows[place])][items[place]] != 0
            touched[place] |= moved.astype(np.int64) << number
    return np.where(items > 0, touched, 0)


def _moved(before: RankedLists, made: ReorderedLists, bit: int) -> RankedLists:
    """Rankings after a step, with its bit where an item has come or has changed its place."""
    items = made.items
    same = items[:, :, None] == before.items[:, None, :]
    places, known = same.argmax(2), same.any(2)
    changed = ~known | (places != np.arange(items.shape[1]))
    touched = np.where(known, take(before.touched, places), 0) | (bit * changed)
    propensity = made.propensity
    if propensity is None:
        propensity = np.where(known, take(before.propensity, places), 1)
    return RankedLists(items, made.scores, np.where(items > 0, touched, 0), propensity)
