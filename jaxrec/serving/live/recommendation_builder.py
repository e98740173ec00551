"""Lists for live documents: ranked under a strategy, with names and reasons."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Array, Float, Int

from jaxrec.data.graph import ITEM
from jaxrec.evaluation.protocol import repeat_adjustments
from jaxrec.ranking.pipeline import RerankPipeline, rerank
from jaxrec.ranking.steps import RankedLists, Session, Step, Where
from jaxrec.ranking.top_k import (
    AdjustmentBlocks,
    Candidates,
    ScoreAdjustments,
    as_blocks,
    at_least,
    best_items,
    candidates,
    combined,
    masked_items,
    no_adjustments,
    padded_adjustments,
    select_adjustments,
)
from jaxrec.serving.live.state_updater import BATCHES, StateUpdater
from jaxrec.serving.stores.base import UserDocument
from jaxrec.types import EventLog, Queries

LISTS = (16, 64, 256)  # items that are ranked for a list of at most so many
PAIRS = (64, 1024, 65_536)  # own items with changed scores, of all users of a batch
OUTSIDE = 2**30  # no row of a batch
PLANS, PLAN_BYTES = 16, 2**30  # conditions that are kept ready, and what they may take


ITEM_SCHEMA = pl.Schema(
    {
        "rank": pl.Int32(),
        "id": pl.String(),
        "score": pl.Float32(),
        "title": pl.String(),
        "because": pl.String(),
        "rules": pl.List(pl.String()),
        "propensity": pl.Float64(),
    }
)


class RecommendedItem(NamedTuple):
    """A place of a list."""

    rank: int
    id: str
    score: float
    title: str | None
    because: str | None  # the user's item that is most like it
    rules: list[str]  # the steps that touched it
    propensity: float  # the chance that it was to stand there


@dataclass(frozen=True)
class RecommendationList:
    """A list of recommendations, and what it rests on."""

    user_id: str
    target: str
    places: list[RecommendedItem]
    events: int  # that the state has seen
    approximate: bool  # the state lacks events from before the model was replaced

    @property
    def items(self) -> pl.DataFrame:
        """The places as a table, in which `id` goes by `item_id` or the target's name."""
        name = "item_id" if self.target == ITEM else self.target
        return pl.DataFrame(self.places, ITEM_SCHEMA, orient="row").rename({"id": name})


class RecommendationBuilder:
    """Makes the lists of some documents at a time.

    Args:
        updater: holds the model.
        strategy: steps that act on every list of items, in their order.
        random: for steps that throw dice.
    """

    def __init__(
        self, updater: StateUpdater, strategy: Sequence[Step], random: np.random.Generator
    ):
        self.updater, self.model, self.strategy = updater, updater.model, tuple(strategy)
        self.random = random
        self.feedback_types = set(updater.feedback_types)
        self.event_types = self.model.event_types_with(sorted(self.feedback_types))
        self.labels = self.model.labels(np.arange(self.model.catalog.num_items))
        # each holds the item table once more
        plans = max(2, min(PLANS, PLAN_BYTES // self.updater.items.nbytes))
        self.plan = lru_cache(maxsize=plans)(self._plan)
        self.names = lru_cache(maxsize=16)(self._names)
        self.units = lru_cache(maxsize=16)(self.model.unit_block)

    def warm_up(
        self, documents: Sequence[UserDocument], vectors: Float[np.ndarray, "Q 1+ED"]
    ) -> None:
        """Compile every shape of list for so many documents; keep what names and reasons need."""
        asking = [vectors]
        if self.model.reads_text:
            asking.append(self.model.steered(vectors, "anything", 0.5))
        for target in (ITEM, *self.model.profiled_types):
            self.names(target), self.units(target)
        for length in LISTS:
            for count in PAIRS:
                for queries in asking:
                    k = min(length, self.most(ITEM))
                    self.ranked(documents, queries, unknown_items(count), k)
            for target in self.model.profiled_types:
                self.best_nodes(vectors, target, min(length, self.most(target)))

    def pairs(
        self,
        documents: Sequence[UserDocument],
        mask: tuple[str, ...],
        event_type: int | None = None,
    ) -> AdjustmentBlocks:
        """What users' histories change in the scores of items: what a mask leaves out, and what
        is familiar where an event type is asked for."""
        return combined(self.masked(documents, mask), self.familiar(documents, event_type))

    def familiar(
        self, documents: Sequence[UserDocument], event_type: int | None = None
    ) -> AdjustmentBlocks:
        """What the kept events of users add to the scores of their items."""
        repeat_bias = self.model.repeat_bias(
            self.model.target_event_type if event_type is None else event_type
        )
        if not repeat_bias.any():  # to make the log takes time
            return no_adjustments
        log = self.updater.log([document.events for document in documents])
        return repeat_adjustments(
            log, Queries(np.arange(log.num_users), log.offsets[1:]), repeat_bias
        )

    def masked(self, documents: Sequence[UserDocument], mask: tuple[str, ...]) -> AdjustmentBlocks:
        """What users have chosen before, by the event_types that a mask names."""
        number_of = self.updater.number_of
        chosen = [
            [
                number_of[item]
                for event_type, items in document.positives.items()
                if event_type in mask or "seen" in mask
                for item in items
                if item in number_of
            ]
            for document in documents
        ]
        rows = np.repeat(np.arange(len(chosen)), [len(items) for items in chosen])
        return as_blocks(
            masked_items(rows, np.fromiter(chain.from_iterable(chosen), np.int64, len(rows)))
        )

    def with_session(
        self,
        documents: Sequence[UserDocument],
        vectors: Float[np.ndarray, "Q 1+ED"],
        session: Session,
        now: Int[np.ndarray, " n"] | None = None,
        event_type: int | None = None,
    ) -> Float[np.ndarray, "Q 1+ED"]:
        """User vectors with the present session's mixed in.

        Args:
            now: when each document asks (s); a session that is over by then changes nothing. By
                default at their last event, as where times are only positions.
        """
        log = session.events(self.updater.log([document.events for document in documents]))
        alone = self.updater.read(self.updater.fold(log, None, None), event_type)
        mixed = session.mixed(vectors, alone)
        if now is not None and log.has_time:
            last = np.array([document.last_time for document in documents])
            over = session.is_over(last, now)
            mixed[: len(documents)][over] = vectors[: len(documents)][over]
        return mixed

    def ranked(
        self,
        documents: Sequence[UserDocument],
        vectors: Float[np.ndarray, "Q D"],
        pairs: AdjustmentBlocks,
        k: int,
        where: str = "",
    ) -> RankedLists:
        """Items under the strategy behind a condition.

        Args:
            vectors: of users, or of users that words have steered.
        """
        plan, ready = self.plan(where, vectors.shape[1])

        def theirs(users: Int[np.ndarray, " R"]) -> AdjustmentBlocks:
            return padded_blocks(select_adjustments(pairs, users, len(documents)))

        ranked, _ = rerank(
            vectors[: len(documents)],
            self.items(vectors.shape[1]),
            theirs,
            k,
            plan,
            histories=self._judgements(documents),
            random=self.random,
            ready=ready,
            lengths=[min(length, self.most(ITEM)) for length in LISTS],
            batches=BATCHES,
        )
        return ranked

    def best_nodes(self, vectors: Float[np.ndarray, "Q 1+ED"], target: str, k: int) -> RankedLists:
        """The best of all nodes of a type, which no strategy acts on."""
        block, valid = self.model.block(target), self.model.valid(target)
        length = min(at_least(k, LISTS), self.most(target))
        top = best_items(vectors, block, no_adjustments, valid, length, with_log_z=False)
        items, scores = top.items[:, :k], top.scores[:, :k]
        return RankedLists(items, scores, np.zeros(items.shape, np.int64), np.ones(items.shape))

    def most(self, target: str) -> int:
        """Nodes of a type that there are."""
        return self.model.node_type(target).count - 1

    def places(
        self, target: str, ranked: RankedLists, plan: RerankPipeline | None, document: UserDocument
    ) -> list[RecommendedItem]:
        """One document's list; `ranked` has that row alone."""
        count = int((ranked.items > 0).sum())
        items, scores, touched, propensity = (part[:count] for part in ranked)
        ids, titles = self.names(target)
        because = self._reasons(target, items, document)
        columns = (
            range(1, count + 1),
            ids.gather(items),
            scores.tolist(),
            titles.gather(items),
            [None] * count if because is None else self.labels.gather(because),
            [plan.names(steps) if plan else [] for steps in touched.tolist()],
            propensity.tolist(),
        )
        return [RecommendedItem(*row) for row in zip(*columns, strict=True)]

    def _judgements(self, documents: Sequence[UserDocument]) -> EventLog | None:
        """The kept events of users who have judged anything; None if nobody has."""
        histories = [
            sorted((*s.events, *s.feedback), key=lambda event: event.time)
            if s.feedback or self.feedback_types & s.positives.keys()
            else ()
            for s in documents
        ]
        return self.updater.log(histories, self.event_types) if any(histories) else None

    def _names(self, target: str) -> tuple[pl.Series, pl.Series]:
        """Ids and titles of the nodes of a block."""
        count = self.model.node_type(target).count
        ids, *titles = self.model.names(target, np.arange(count)).iter_columns()
        untitled = pl.repeat(None, count, dtype=pl.String, eager=True)
        return ids, titles[0] if titles else untitled

    def _reasons(
        self, target: str, rows: Int[np.ndarray, " n"], document: UserDocument
    ) -> Int[np.ndarray, " n"] | None:
        """For every recommended node the kept item of the user that is most like it, if any is."""
        numbers = (self.updater.number_of.get(event.item_id, 0) for event in document.events)
        theirs = np.array([number for number in dict.fromkeys(numbers) if number], np.int64)
        if not len(theirs):
            return None
        likeness = self.units(target)[rows] @ self.units(ITEM)[theirs].T
        return theirs[likeness.argmax(1)]

    def items(self, width: int) -> Float[Array, "I D"]:
        """What user vectors of a width rank: items alone, or with their texts."""
        items = self.updater.items
        return items if items.shape[1] == width else self.model.items_with_text

    def _plan(self, where: str, width: int) -> tuple[RerankPipeline, Candidates]:
        """The strategy behind a condition, and the items ready to be ranked by it."""
        steps = (Where(where), *self.strategy) if where else self.strategy
        plan = self.model.plan(steps)
        valid = self.model.valid()
        return plan, candidates(self.items(width), valid, plan.bias, self.model.mesh)


def unknown_items(count: int) -> AdjustmentBlocks:
    """So many pairs of the first user that change nothing, for who compiles a program for them."""
    return as_blocks(masked_items(np.zeros(count, np.int64), np.zeros(count, np.int64)))


def padded_blocks(pairs: AdjustmentBlocks) -> AdjustmentBlocks:
    """The same pairs, of few distinct numbers of them."""

    def padded_block(start: int, stop: int) -> ScoreAdjustments:
        some = pairs(start, stop)
        return padded_adjustments(some, at_least(len(some.rows), PAIRS), OUTSIDE)

    return padded_block
