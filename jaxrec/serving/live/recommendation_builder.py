"""Lists for live shoppers: ranked under a strategy, with names and reasons."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Array, Float, Int

from jaxrec.data.graph import ITEM
from jaxrec.evaluation.protocol import familiar_pairs
from jaxrec.ranking.pipeline import Plan, shortlist
from jaxrec.ranking.steps import Ranked, Session, Step, Where
from jaxrec.ranking.top_k import (
    Candidates,
    PairBlocks,
    Pairs,
    at_least,
    best_items,
    blocks_of,
    candidates,
    joined,
    left_out,
    no_pairs,
    padded_pairs,
    pairs_of,
)
from jaxrec.serving.live.state_updater import BATCHES, Folder
from jaxrec.serving.stores.sqlite import Shopper
from jaxrec.types import EventLog, Queries

LISTS = (16, 64, 256)  # items that are ranked for a list of at most so many
PAIRS = (64, 1024, 65_536)  # own items with changed scores, of all users of a batch
OUTSIDE = 2**30  # no row of a batch
PLANS, PLAN_BYTES = 16, 2**30  # conditions that are kept ready, and what they may take


PLACES = pl.Schema(
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


class Place(NamedTuple):
    """A place of a list."""

    rank: int
    id: str
    score: float
    title: str | None
    because: str | None  # the user's item that is most like it
    rules: list[str]  # the steps that touched it
    propensity: float  # the chance that it was to stand there


@dataclass(frozen=True)
class Answer:
    """A list of recommendations, and what it rests on."""

    user_id: str
    target: str
    places: list[Place]
    events: int  # that the state has seen
    approximate: bool  # the state lacks events from before the model was replaced

    @property
    def items(self) -> pl.DataFrame:
        """The places as a table, in which `id` goes by `item_id` or the target's name."""
        name = "item_id" if self.target == ITEM else self.target
        return pl.DataFrame(self.places, PLACES, orient="row").rename({"id": name})


class Lister:
    """Makes the lists of some shoppers at a time.

    Args:
        folder: holds the model.
        strategy: steps that act on every list of items, in their order.
        random: for steps that throw dice.
    """

    def __init__(self, folder: Folder, strategy: Sequence[Step], random: np.random.Generator):
        self.folder, self.model, self.strategy = folder, folder.model, tuple(strategy)
        self.random = random
        self.judging = set(folder.judging)
        self.kinds = self.model.kinds_with(sorted(self.judging))
        self.labels = self.model.labels(np.arange(self.model.catalog.num_items))
        # each holds the item table once more
        plans = max(2, min(PLANS, PLAN_BYTES // self.folder.items.nbytes))
        self.plan = lru_cache(maxsize=plans)(self._plan)
        self.names = lru_cache(maxsize=16)(self._names)
        self.units = lru_cache(maxsize=16)(self.model.unit_block)

    def warm_up(self, shoppers: Sequence[Shopper], vectors: Float[np.ndarray, "Q 1+ED"]) -> None:
        """Compile every shape of list for so many shoppers; keep what names and reasons need."""
        asking = [vectors]
        if self.model.reads_text:
            asking.append(self.model.steered(vectors, "anything", 0.5))
        for target in (ITEM, *self.model.profiled_types):
            self.names(target), self.units(target)
        for length in LISTS:
            for count in PAIRS:
                for queries in asking:
                    k = min(length, self.most(ITEM))
                    self.ranked(shoppers, queries, unknown_items(count), k)
            for target in self.model.profiled_types:
                self.best_nodes(vectors, target, min(length, self.most(target)))

    def pairs(
        self, shoppers: Sequence[Shopper], mask: tuple[str, ...], kind: int | None = None
    ) -> PairBlocks:
        """What users' histories change in the scores of items: what a mask leaves out, and what
        is familiar where a kind of event is asked for."""
        return joined(self.masked(shoppers, mask), self.familiar(shoppers, kind))

    def familiar(self, shoppers: Sequence[Shopper], kind: int | None = None) -> PairBlocks:
        """What the kept events of users add to the scores of their items."""
        familiarity = self.model.familiarity(self.model.wanted_kind if kind is None else kind)
        if not familiarity.any():  # to make the log takes time
            return no_pairs
        log = self.folder.log([shopper.events for shopper in shoppers])
        return familiar_pairs(log, Queries(np.arange(log.num_users), log.offsets[1:]), familiarity)

    def masked(self, shoppers: Sequence[Shopper], mask: tuple[str, ...]) -> PairBlocks:
        """What users have chosen before, by the kinds that a mask names."""
        number_of = self.folder.number_of
        chosen = [
            [
                number_of[item]
                for kind, items in shopper.chosen.items()
                if kind in mask or "seen" in mask
                for item in items
                if item in number_of
            ]
            for shopper in shoppers
        ]
        rows = np.repeat(np.arange(len(chosen)), [len(items) for items in chosen])
        return blocks_of(
            left_out(rows, np.fromiter(chain.from_iterable(chosen), np.int64, len(rows)))
        )

    def with_session(
        self,
        shoppers: Sequence[Shopper],
        vectors: Float[np.ndarray, "Q 1+ED"],
        session: Session,
        now: Int[np.ndarray, " n"] | None = None,
        kind: int | None = None,
    ) -> Float[np.ndarray, "Q 1+ED"]:
        """User vectors with the present session's mixed in.

        Args:
            now: when each shopper asks (s); a session that is over by then changes nothing. By
                default at their last event, as where times are only positions.
        """
        log = session.events(self.folder.log([shopper.events for shopper in shoppers]))
        alone = self.folder.read(self.folder.fold(log, None, None), kind)
        mixed = session.mixed(vectors, alone)
        if now is not None and log.has_time:
            last = np.array([shopper.last_time for shopper in shoppers])
            over = session.is_over(last, now)
            mixed[: len(shoppers)][over] = vectors[: len(shoppers)][over]
        return mixed

    def ranked(
        self,
        shoppers: Sequence[Shopper],
        vectors: Float[np.ndarray, "Q D"],
        pairs: PairBlocks,
        k: int,
        where: str = "",
    ) -> Ranked:
        """Items under the strategy behind a condition.

        Args:
            vectors: of users, or of users that words have steered.
        """
        plan, ready = self.plan(where, vectors.shape[1])

        def theirs(users: Int[np.ndarray, " R"]) -> PairBlocks:
            return padded_blocks(pairs_of(pairs, users, len(shoppers)))

        ranked, _ = shortlist(
            vectors[: len(shoppers)],
            self.items(vectors.shape[1]),
            theirs,
            k,
            plan,
            histories=self._judgements(shoppers),
            random=self.random,
            ready=ready,
            lengths=[min(length, self.most(ITEM)) for length in LISTS],
            batches=BATCHES,
        )
        return ranked

    def best_nodes(self, vectors: Float[np.ndarray, "Q 1+ED"], target: str, k: int) -> Ranked:
        """The best of all nodes of a type, which no strategy acts on."""
        block, valid = self.model.block(target), self.model.valid(target)
        length = min(at_least(k, LISTS), self.most(target))
        top = best_items(vectors, block, no_pairs, valid, length, with_log_z=False)
        items, scores = top.items[:, :k], top.scores[:, :k]
        return Ranked(items, scores, np.zeros(items.shape, np.int64), np.ones(items.shape))

    def most(self, target: str) -> int:
        """Nodes of a type that there are."""
        return self.model.node_type(target).count - 1

    def places(
        self, target: str, ranked: Ranked, plan: Plan | None, shopper: Shopper
    ) -> list[Place]:
        """One shopper's list; `ranked` has that row alone."""
        count = int((ranked.items > 0).sum())
        items, scores, touched, propensity = (part[:count] for part in ranked)
        ids, titles = self.names(target)
        because = self._reasons(target, items, shopper)
        columns = (
            range(1, count + 1),
            ids.gather(items),
            scores.tolist(),
            titles.gather(items),
            [None] * count if because is None else self.labels.gather(because),
            [plan.names(steps) if plan else [] for steps in touched.tolist()],
            propensity.tolist(),
        )
        return [Place(*row) for row in zip(*columns, strict=True)]

    def _judgements(self, shoppers: Sequence[Shopper]) -> EventLog | None:
        """The kept events of users who have judged anything; None if nobody has."""
        histories = [
            sorted((*s.events, *s.feedback), key=lambda event: event.time)
            if s.feedback or self.judging & s.chosen.keys()
            else ()
            for s in shoppers
        ]
        return self.folder.log(histories, self.kinds) if any(histories) else None

    def _names(self, target: str) -> tuple[pl.Series, pl.Series]:
        """Ids and titles of the nodes of a block."""
        count = self.model.node_type(target).count
        ids, *titles = self.model.names(target, np.arange(count)).iter_columns()
        untitled = pl.repeat(None, count, dtype=pl.String, eager=True)
        return ids, titles[0] if titles else untitled

    def _reasons(
        self, target: str, rows: Int[np.ndarray, " n"], shopper: Shopper
    ) -> Int[np.ndarray, " n"] | None:
        """For every recommended node the kept item of the user that is most like it, if any is."""
        numbers = (self.folder.number_of.get(event.item_id, 0) for event in shopper.events)
        theirs = np.array([number for number in dict.fromkeys(numbers) if number], np.int64)
        if not len(theirs):
            return None
        likeness = self.units(target)[rows] @ self.units(ITEM)[theirs].T
        return theirs[likeness.argmax(1)]

    def items(self, width: int) -> Float[Array, "I D"]:
        """What user vectors of a width rank: items alone, or with their texts."""
        items = self.folder.items
        return items if items.shape[1] == width else self.model.items_with_text

    def _plan(self, where: str, width: int) -> tuple[Plan, Candidates]:
        """The strategy behind a condition, and the items ready to be ranked by it."""
        steps = (Where(where), *self.strategy) if where else self.strategy
        plan = self.model.plan(steps)
        valid = self.model.valid()
        return plan, candidates(self.items(width), valid, plan.bias, self.model.mesh)


def unknown_items(count: int) -> PairBlocks:
    """So many pairs of the first user that change nothing, for who compiles a program for them."""
    return blocks_of(left_out(np.zeros(count, np.int64), np.zeros(count, np.int64)))


def padded_blocks(pairs: PairBlocks) -> PairBlocks:
    """The same pairs, of few distinct numbers of them."""

    def padded_block(start: int, stop: int) -> Pairs:
        some = pairs(start, stop)
        return padded_pairs(some, at_least(len(some.rows), PAIRS), OUTSIDE)

    return padded_block
