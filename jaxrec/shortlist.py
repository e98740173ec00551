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
from jaxrec.ranking import Candidates, PairBlocks, at_least, best_items, padded
from jaxrec.strategy import (
    Asking,
    Caps,
    Epsilon,
    Feedback,
    Filter,
    Ranked,
    Reordered,
    Reordering,
    Scoring,
    Session,
    Shop,
    Step,
    take,
)
from jaxrec.types import Catalog, EventLog

Excluded = Callable[[Int[np.ndarray, " R"]], PairBlocks]
"""What to leave out of the rankings of some of the queries."""
SLICE = 256


@dataclass(frozen=True)
class Plan:
    """Steps made ready for a catalogue."""

    steps: tuple[Step, ...]
    shop: Shop
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

    def bits(self, kind: type[Step]) -> int:
        """The steps of a kind as a bit set, as in `Ranked.touched`."""
        return sum(1 << n for n, step in enumerate(self.steps) if isinstance(step, kind))

    @property
    def session(self) -> Session | None:
        """The step that mixes the present session in."""
        return next((step for step in self.steps if isinstance(step, Session)), None)

    @property
    def explores(self) -> bool:
        """Whether lists depend on chance."""
        return any(isinstance(step, Epsilon) for step in self.steps)

    @property
    def on_pool(self) -> list[tuple[int, Feedback | Reordering]]:
        """The steps that act on the best items, with their numbers."""
        return [(n, s) for n, s in enumerate(self.steps) if isinstance(s, Feedback | Reordering)]

    def names(self, touched: int) -> list[str]:
        """The steps of a bit set, as in `Ranked.touched`."""
        return [step.name for n, step in enumerate(self.steps) if touched >> n & 1]

    def lengths(self, k: int, times: int) -> list[int]:
        """Places that are fetched, then those that every step of `on_pool` leaves.

        Steps that take entries out get `times` as many as they are to leave.
        """
        lengths = [k]
        for _, step in reversed(self.on_pool):
            if isinstance(step, Feedback | Caps):
                lengths.append(times * lengths[-1])
            else:
                pool = min(getattr(step, "pool", 0), int(self.shop.valid.sum()))
                lengths.append(max(lengths[-1], pool))
        return lengths[::-1]


class Shortlists(NamedTuple):
    """A list a query, and what the steps did on the way."""

    ranked: Ranked
    removed: dict[str, int]  # step -> entries passed over


def plan(
    steps: Sequence[Step],
    catalog: Catalog,
    counts: Float[np.ndarray, " n"],
    valid: Bool[np.ndarray, " I"],
) -> Plan:
    """Steps made ready for a catalogue.

    Args:
        counts: training events of the items, row 0 included; of later rows there are none.
        valid: rows of the item block that are items.

    Raises:
        DataError: a condition or a list of ids cannot be used.
        ValueError: a cap names no node type of the graph, or a step that changes vectors or
            scores stands behind one that reorders.
    """
    for before, after in pairwise(steps):
        if isinstance(before, Reordering) and not isinstance(after, Reordering):
            raise ValueError(f"{after.name} changes scores, so it must stand before {before.name}")
    entities = [name for step in steps if isinstance(step, Caps) for name in step.limits]
    groups = {name: first_neighbours(catalog.graph, name) for name in entities}
    shop = Shop(catalog, np.pad(counts, (0, len(valid) - len(counts))), valid, groups)
    biases = {n: step.bias(shop) for n, step in enumerate(steps) if isinstance(step, Scoring)}
    bias = np.where(valid, sum(biases.values()), -np.inf).astype(np.float32)
    return Plan(tuple(steps), shop, biases, bias)


def shortlist(
    queries: Float[np.ndarray, "Q D"],
    items: Float[Array, "I D"],
    excluded: Excluded,
    k: int,
    plan: Plan,
    *,
    histories: EventLog | None = None,
    random: np.random.Generator | None = None,
    ready: Candidates | None = None,
    lengths: Sequence[int] = (),
    batches: Sequence[int] = (),
    approximate: bool = False,
    mesh: Mesh | None = None,
) -> Shortlists:
    """The k best items of every query as the steps of a plan leave them.

    Args:
        histories: a user a query, for steps that read what users have done.
        random: for steps that throw dice.
        ready: the items with the plan's bias, for who ranks them again and again.
        lengths, batches: of rankings, and of queries, that are compiled; what differs is cut from
            the next larger one.
    """

    def best(rows: Int[np.ndarray, " R"], size: int, bias: Float[np.ndarray, " I"]):
        top = best_items(
            padded(queries[rows], at_least(len(rows), batches)),
            ready if ready is not None and bias is plan.bias else items,
            excluded(rows),
            plan.shop.valid,
            at_least(size, lengths),
            bias=bias,
            with_log_z=False,
            approximate=approximate,
            mesh=mesh,
        )
        return top.items[: len(rows), :size], top.scores[: len(rows), :size]

    asking = Asking(best, items, plan.bias, histories, random or np.random.default_rng(0))
    # over-fetched pools and their vectors are large, so few users have theirs at a time
    width = SLICE if plan.on_pool else max(len(queries), 1)
    parts, removed = [], Counter[str]()
    for start in range(0, max(len(queries), 1), width):
        rows = np.arange(start, min(start + width, len(queries)))
        ranked, passed = _walk(plan, asking, rows, k)
        parts.append(ranked)
        removed.update({name: int(counts.sum()) for name, counts in passed.items()})
    return Shortlists(Ranked(*map(np.concatenate, zip(*parts, strict=True))), dict(removed))


def _walk(
    plan: Plan, asking: Asking, rows: Int[np.ndarray, " R"], k: int, times: int = 1
) -> tuple[Ranked, dict[str, Int[np.ndarray, " R"]]]:
    """Some queries' rankings after all steps, and the entries that steps have passed over.

    Rankings that come out short although there are more items begin again with twice as many.
    """
    size, *lengths = plan.lengths(k, times)
    items, scores = asking.best(rows, size, plan.bias)
    more = items[:, -1] > 0
    asking = replace(asking, rows=rows, floor=np.where(more, scores[:, -1], -np.inf))
    touched = np.zeros(items.shape, np.int64)
    for number, bias in plan.biases.items():
        touched |= (bias[items] != 0).astype(np.int64) << number
    ranked = Ranked(items, scores, touched * (items > 0), np.ones(scores.shape))
    passed: dict[str, Int[np.ndarray, " R"]] = {}
    short = np.zeros(len(rows), bool)
    for (number, step), length in zip(plan.on_pool, lengths, strict=True):
        if isinstance(step, Feedback):
            ranked = _rescored(ranked, step, asking, plan.shop, 1 << number, length)
        else:
            made = step.reorder(ranked, asking, plan.shop, length)
            passed[step.name] = passed.get(step.name, 0) + made.passed
            ranked = _moved(ranked, made, 1 << number)
        short |= (ranked.items > 0).sum(1) < length
    again = np.flatnonzero(short & more)
    if len(again):
        fuller, passed_again = _walk(plan, asking, rows[again], k, 2 * times)
        for part, full in zip(ranked, fuller, strict=True):
            part[again] = full
        for name, counts in passed.items():
            counts[again] = passed_again[name]
    return ranked, passed


def _rescored(
    ranked: Ranked, step: Feedback, asking: Asking, shop: Shop, bit: int, length: int
) -> Ranked:
    """Rankings under new scores; what falls to where items may be missing is left out."""
    added = step.rescore(ranked, asking, shop)
    scores = np.where(ranked.items > 0, ranked.scores + added, -np.inf)
    scores[(added < 0) & (scores < asking.floor[:, None])] = -np.inf
    items = np.where(np.isneginf(scores), 0, ranked.items)
    touched = np.where(items > 0, ranked.touched | np.where(added != 0, bit, 0), 0)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :length]
    return Ranked(*(take(part, order) for part in (items, scores, touched, ranked.propensity)))


def _moved(before: Ranked, made: Reordered, bit: int) -> Ranked:
    """Rankings after a step, with its bit where an item has come or has changed its place."""
    items = made.items
    same = items[:, :, None] == before.items[:, None, :]
    places, known = same.argmax(2), same.any(2)
    changed = ~known | (places != np.arange(items.shape[1]))
    touched = np.where(known, take(before.touched, places), 0) | (bit * changed)
    propensity = made.propensity
    if propensity is None:
        propensity = np.where(known, take(before.propensity, places), 1)
    return Ranked(items, made.scores, np.where(items > 0, touched, 0), propensity)
