"""Ranking under the steps of a strategy. Lists stay full: a short list is ranked again, longer."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import compress, pairwise
from typing import NamedTuple, cast

import numpy as np
import polars as pl
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from jaxrec.errors import ConfigError
from jaxrec.ranking.adjustments import AdjustmentBlocks
from jaxrec.ranking.context import (
    ItemContext,
    ItemLinks,
    RankedLists,
    ReorderedLists,
    Reordering,
    RerankContext,
    Scoring,
    Step,
    links_of,
)
from jaxrec.ranking.item_table import ItemTable, PreparedItems, prepare, with_rows
from jaxrec.ranking.reorder import take
from jaxrec.ranking.shard import LEFT_OUT
from jaxrec.ranking.steps import Caps, Epsilon, Feedback, Filter, ListedItems, Session
from jaxrec.ranking.top_k import at_least, best_items, padded
from jaxrec.types import Catalog, EventLog

UserAdjustments = Callable[[Int[np.ndarray, " q"]], AdjustmentBlocks]
"""The score adjustments of selected queries."""
Shifts = dict[int, dict[int, Float[np.ndarray, " I"]]]
"""Query -> number of a feedback step -> addition to all scores, as a share of their span."""
MAX_USERS = 256  # at a time, where steps reorder: their pools and vectors are large


@dataclass(frozen=True)
class RerankPipeline:
    """The steps of a strategy, prepared for a catalogue."""

    steps: tuple[Step, ...]
    context: ItemContext
    biases: dict[int, Float[np.ndarray, " I"]]  # number of a scoring step -> what it adds
    bias: Float[np.ndarray, " I"]  # the sum over scoring steps; -inf leaves an item out

    @property
    def removed(self) -> dict[str, int]:
        """How many items each filter keeps out of every list, by the filter's name."""
        return {
            step.name: int((self.context.valid & np.isneginf(self.biases[n])).sum())
            for n, step in enumerate(self.steps)
            if isinstance(step, Filter)
        }

    @property
    def notes(self) -> tuple[str, ...]:
        """How many listed ids are items, for each step that lists some."""
        listed = [step for step in self.steps if isinstance(step, ListedItems)]
        return tuple(step.matches(self.context.catalog) for step in listed)

    @cached_property
    def session(self) -> Session | None:
        """The step that mixes the current session in, if there is one."""
        return next((step for step in self.steps if isinstance(step, Session)), None)

    @cached_property
    def is_random(self) -> bool:
        """Whether lists depend on chance."""
        return any(isinstance(step, Epsilon) for step in self.steps)

    @cached_property
    def reordering(self) -> list[tuple[int, Reordering]]:
        """The steps that act on the best items, with their numbers."""
        return [(n, step) for n, step in enumerate(self.steps) if isinstance(step, Reordering)]

    def is_step(self, step_type: type) -> Bool[np.ndarray, " steps"]:
        """Which steps are of a type."""
        return np.array([isinstance(step, step_type) for step in self.steps], bool)

    def names(self, touched: Bool[np.ndarray, " steps"]) -> list[str]:
        """The names of the steps that touched an item."""
        return [step.name for step in compress(self.steps, touched)]

    def with_items(
        self, items: pl.DataFrame, rows: Int[np.ndarray, " n"], valid: Bool[np.ndarray, " n"]
    ) -> "RerankPipeline":
        """The same steps after some rows of the item table have changed.

        Args:
            items: the table of items, with as many rows as before.
            rows: those that changed.
            valid: which of these rows are items.
        """
        context = replace(self.context, catalog=replace(self.context.catalog, items=items))
        changed = replace(
            context,
            catalog=replace(context.catalog, items=items[rows]),
            counts=context.counts[rows],
            valid=valid,
        )
        biases = {}
        for number, before in self.biases.items():
            biases[number] = before.copy()
            biases[number][rows] = cast(Scoring, self.steps[number]).bias(changed)
        bias = self.bias.copy()
        bias[rows] = np.where(valid, sum(b[rows] for b in biases.values()), -np.inf)
        return RerankPipeline(self.steps, context, biases, bias)

    def lengths(self, k: int, factor: int) -> list[int]:
        """The length of the first ranking, then of the lists after each step of `reordering`.

        Caps receive lists that are `factor` times as long as those they return.
        """
        lengths = [k]
        for _, step in reversed(self.reordering):
            if isinstance(step, Caps):
                lengths.append(factor * lengths[-1])
            else:
                pool = min(getattr(step, "pool", 0), int(self.context.valid.sum()))
                lengths.append(max(lengths[-1], pool))
        return lengths[::-1]


def build_pipeline(
    steps: Sequence[Step],
    catalog: Catalog,
    counts: Float[np.ndarray, " n"],
    valid: Bool[np.ndarray, " I"],
    links: ItemLinks | None = None,
) -> RerankPipeline:
    """Prepare the steps of a strategy for a catalogue.

    Args:
        counts: how often each item was chosen in training, row 0 included; new items may lack one.
        valid: rows of the item block that are items.
        links: of the items; None: those of the catalogue's graph.

    Raises:
        DataError: a condition or a list of ids cannot be used.
        ConfigError: a cap names an unknown node type, a step that changes scores stands behind one
            that reorders, or a step stands behind `epsilon`.
    """
    for before, after in pairwise(steps):
        if isinstance(before, Reordering) and not isinstance(after, Reordering):
            raise ConfigError(f"{after.name} changes scores, so it must stand before {before.name}")
        if isinstance(before, Epsilon):  # a later step would change the reported propensities
            raise ConfigError(f"epsilon is the last step, so {after.name} must stand before it")
    for step in steps:
        if isinstance(step, ListedItems):
            step.check(catalog)
    entities = [name for step in steps if isinstance(step, Caps) for name in step.limits]
    links = links or links_of(catalog.graph)
    groups = {name: links.first(name) for name in entities}
    counts = np.pad(counts, (0, len(valid) - len(counts)))
    mean = float((counts[valid] + 1).sum() + 1) / (np.count_nonzero(valid) + 1)
    context = ItemContext(catalog, counts, valid, groups, links, mean)
    biases = {n: step.bias(context) for n, step in enumerate(steps) if isinstance(step, Scoring)}
    bias = np.where(valid, sum(biases.values()), -np.inf).astype(np.float32)
    return RerankPipeline(tuple(steps), context, biases, bias)


class RerankQueries(NamedTuple):
    """Users to make lists for."""

    vectors: Float[np.ndarray, "Q F"]
    adjustments: UserAdjustments
    histories: EventLog | None = None  # one user a query, for steps that read feedback


class RerankResult(NamedTuple):
    """One list a query."""

    lists: RankedLists
    removed: dict[str, int]  # step -> entries that it passed over


@dataclass(frozen=True)
class Reranker:
    """Ranks one table of items under one pipeline.

    Attributes:
        items: the table without the bias of the steps.
        mesh: one device by default.
        lengths, batch_sizes: of the rankings to compile; other sizes are cut from a larger one.
        approximate: see `best_items`.
    """

    pipeline: RerankPipeline
    items: ItemTable
    mesh: Mesh | None = None
    lengths: Sequence[int] = ()
    batch_sizes: Sequence[int] = ()
    approximate: bool = False

    @cached_property
    def prepared(self) -> PreparedItems:
        """The table with the bias of the steps."""
        return prepare(self.items.add_bias(self.pipeline.bias), self.mesh)

    def with_rows(self, pipeline: RerankPipeline, rows: Int[np.ndarray, " n"]) -> "Reranker":
        """The same ranking after some rows of the item table have changed.

        The cost is that of these rows. `self` must not rank any more: its prepared table is reused.

        Args:
            pipeline: what `RerankPipeline.with_items` makes of the present one.
            rows: those that changed; their vectors and bias have changed in place.
        """
        after = replace(self, pipeline=pipeline)
        if "prepared" in vars(self):
            table = self.items.add_bias(pipeline.bias)
            vars(after)["prepared"] = with_rows(self.prepared, table, rows)
        return after

    def rank(
        self, queries: RerankQueries, k: int, random: np.random.Generator | None = None
    ) -> RerankResult:
        """The k best items of every query under the steps; some steps use `random`."""
        count, shifts = len(queries.vectors), self._shifts(queries.histories)
        context = RerankContext(
            items=self.pipeline.context,
            best=lambda rows, size, bias: self._best(queries, shifts, rows, size, bias),
            vectors=self.items.vectors,
            bias=self.pipeline.bias,
            random=random or np.random.default_rng(0),
            rows=np.arange(count),
        )
        size = MAX_USERS if self.pipeline.reordering else max(count, 1)
        parts, removed = [], Counter[str]()
        for start in range(0, max(count, 1), size):
            rows = context.rows[start : start + size]
            lists, passed = self._run_steps(context, shifts, rows, k)
            parts.append(lists)
            removed.update({name: int(counts.sum()) for name, counts in passed.items()})
        lists = RankedLists(*map(np.concatenate, zip(*parts, strict=True)))
        return RerankResult(lists, dict(removed))

    def _shifts(self, histories: EventLog | None) -> Shifts:
        shifts: Shifts = defaultdict(dict)
        for number, step in enumerate(self.pipeline.steps):
            if isinstance(step, Feedback):
                for query, amounts in step.moves(histories, self.pipeline.context).items():
                    shifts[query][number] = amounts
        return shifts

    def _best(
        self,
        queries: RerankQueries,
        shifts: Shifts,
        rows: Int[np.ndarray, " q"],
        size: int,
        bias: Float[np.ndarray, " I"],
    ) -> tuple[Int[np.ndarray, "q P"], Float[np.ndarray, "q P"]]:
        """The best items of some queries and their scores under a bias."""
        table = self.prepared
        if bias is not self.pipeline.bias:
            table = prepare(self.items.add_bias(bias), self.mesh)
        adjustments = queries.adjustments(rows)
        top = best_items(
            padded(queries.vectors[rows], at_least(len(rows), self.batch_sizes)),
            table,
            at_least(size, self.lengths),
            adjustments,
            approximate=self.approximate,
        )
        items, scores = (part[: len(rows), :size].copy() for part in (top.items, top.scores))
        for place, row in enumerate(rows.tolist()):
            if row in shifts:  # a query with its own bias is ranked alone
                model_scores = self._model_scores(queries.vectors[row], adjustments, place)
                left, span = self._span(model_scores)
                shift = span * sum(shifts[row].values())
                items[place], scores[place] = _highest(
                    np.where(left, model_scores + bias + shift, -np.inf), size
                )
        return items, scores

    def step_amounts(
        self, queries: RerankQueries, items: Int[np.ndarray, " K"]
    ) -> dict[str, Float[np.ndarray, " K"]]:
        """What each step adds to the scores of some items for the only query."""
        amounts: dict[str, Float[np.ndarray, " K"]] = defaultdict(lambda: np.zeros(len(items)))
        for number, bias in self.pipeline.biases.items():
            amounts[self.pipeline.steps[number].name] += bias[items]
        if shifts := self._shifts(queries.histories).get(0):
            adjustments = queries.adjustments(np.arange(1))
            _, span = self._span(self._model_scores(queries.vectors[0], adjustments, 0))
            for number, shift in shifts.items():
                amounts[self.pipeline.steps[number].name] += span * shift[items]
        return amounts

    def _span(self, model_scores: Float[np.ndarray, " I"]) -> tuple[Bool[np.ndarray, " I"], float]:
        """The items that a query may get, and how far apart their scores are."""
        left = self.pipeline.context.valid & (model_scores > LEFT_OUT)
        return left, float(np.ptp(model_scores[left])) if left.any() else 0.0

    def _model_scores(
        self, vector: Float[np.ndarray, " F"], adjustments: AdjustmentBlocks, place: int
    ) -> Float[np.ndarray, " I"]:
        """All scores of one query before the bias of the steps."""
        scores = np.asarray(self.items.vectors) @ vector + self.items.biases
        own = adjustments(place, place + 1)
        inside = own.rows == 0  # the rest is padding
        np.add.at(scores, own.items[inside], own.amounts[inside])
        return scores

    def _run_steps(
        self,
        context: RerankContext,
        shifts: Shifts,
        rows: Int[np.ndarray, " q"],
        k: int,
        factor: int = 1,
    ) -> tuple[RankedLists, dict[str, Int[np.ndarray, " q"]]]:
        """The lists of some queries after all steps, and the entries that each step passed over.

        Lists that are too short although there are more items are made again from longer ones.
        """
        size, *lengths = self.pipeline.lengths(k, factor)
        items, scores = context.best(rows, size, self.pipeline.bias)
        touched = self._touched(shifts, rows, items)
        lists = RankedLists(items, scores, touched, np.ones(scores.shape))
        context = replace(context, rows=rows)
        passed: dict[str, Int[np.ndarray, " q"]] = {}
        short = np.zeros(len(rows), bool)
        for (number, step), length in zip(self.pipeline.reordering, lengths, strict=True):
            reordered = step.reorder(lists, context, length)
            passed[step.name] = passed.get(step.name, 0) + reordered.passed
            lists = _after_step(lists, reordered, number)
            short |= (lists.items > 0).sum(1) < length
        again = np.flatnonzero(short & (items[:, -1] > 0))
        if len(again):
            longer, passed_again = self._run_steps(context, shifts, rows[again], k, 2 * factor)
            for part, longer_part in zip(lists, longer, strict=True):
                part[again] = longer_part
            for name, counts in passed.items():
                counts[again] = passed_again[name]
        return lists, passed

    def _touched(
        self, shifts: Shifts, rows: Int[np.ndarray, " q"], items: Int[np.ndarray, "q P"]
    ) -> Bool[np.ndarray, "q P steps"]:
        """Which steps changed the scores of the items."""
        touched = np.zeros((*items.shape, len(self.pipeline.steps)), bool)
        for number, bias in self.pipeline.biases.items():
            touched[..., number] = bias[items] != 0
        for place, row in enumerate(rows.tolist()):
            for number, amounts in shifts.get(row, {}).items():
                touched[place, :, number] = amounts[items[place]] != 0
        return touched & (items > 0)[..., None]


def _highest(
    scores: Float[np.ndarray, " I"], size: int
) -> tuple[Int[np.ndarray, " P"], Float[np.ndarray, " P"]]:
    """The items of the highest scores; 0 and -inf where there are fewer."""
    best = np.argsort(-scores, kind="stable")[:size]
    items = np.where(np.isneginf(scores[best]), 0, best)
    padding = (0, size - len(best))
    return np.pad(items, padding), np.pad(scores[best], padding, constant_values=-np.inf)


def _after_step(before: RankedLists, reordered: ReorderedLists, number: int) -> RankedLists:
    """The lists after a step, which touches items that are new or have moved."""
    items = reordered.items
    same = items[:, :, None] == before.items[:, None, :]
    places, known = same.argmax(2), same.any(2)
    touched = np.take_along_axis(before.touched, places[..., None], axis=1) & known[..., None]
    touched[..., number] |= ~known | (places != np.arange(items.shape[1]))
    propensity = reordered.propensity
    if propensity is None:
        propensity = np.where(known, take(before.propensity, places), 1)
    return RankedLists(items, reordered.scores, touched & (items > 0)[..., None], propensity)
