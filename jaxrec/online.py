"""Live scoring: an event is one step of the shopper's state, and the next answer knows of it."""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import polars as pl
from jaxtyping import Float, Int

from jaxrec.data.graph import ITEM
from jaxrec.encoding import flat_states, initial_states, interest_states
from jaxrec.models.lstm import InterestState
from jaxrec.ranking import (
    Candidates,
    PairBlocks,
    Pairs,
    TopItems,
    best_items,
    blocks_of,
    candidates,
    no_pairs,
    padded,
)
from jaxrec.rules import Rules
from jaxrec.scoring import TrainedModel, unit_rows
from jaxrec.shortlist import Selection, Shortlists, shortlist
from jaxrec.store import NEVER, LiveEvent, Shopper, Store, with_event
from jaxrec.types import EventLog

BATCHES = (1, 8, 64, 512)  # shoppers folded or ranked at a time: the shapes that are compiled
LISTS = (16, 64, 256)  # items that are ranked for a list of at most so many
MASKED = (64, 1024, 16_384)  # items that lists leave out, of all users of a batch
OUTSIDE = 2**30  # no row of a batch
BULK = 4096  # events that are folded at a time where there are many
CONFLICTS = 20  # times to read documents anew that other processes have changed meanwhile

Outcome = Literal["accepted", "duplicate", "too_late"]

Job = tuple[Float[np.ndarray, " S"] | None, int, Sequence[LiveEvent]]
"""A state (None: a newcomer's), the time of its last event, and the events to fold into it."""


@dataclass(frozen=True)
class Report:
    """An event of a named user."""

    user_id: str
    event: LiveEvent


@dataclass(frozen=True)
class Answer:
    """A list of recommendations, and what it rests on."""

    user_id: str
    items: pl.DataFrame  # rank, item_id (or the target's name), score, title, because
    events: int  # that the state has seen
    approximate: bool  # the state lacks events from before the model was replaced


@dataclass(frozen=True)
class LiveOptions:
    """How to serve live."""

    http: str = ""
    """Instead: serve live on HOST:PORT, such as `:8080`."""
    store: Path | None = None
    """With --http: SQLite file of the live shoppers (by default `shoppers.db` in the run)."""
    window: int = 64
    """With --http: newest events of a shopper to keep; older ones live on in the state alone."""
    keep_days: float = 365.0
    """With --http: shoppers without an event for so long are deleted."""
    keep_users: int = 1_000_000
    """With --http: the most shoppers to keep; the stalest are deleted first."""
    rate: int = 0
    """With --http: requests a second that a client may make (0: any number)."""
    api_key: str = field(default_factory=lambda: os.environ.get("JAXREC_API_KEY", ""))
    """With --http: what clients must send as X-API-Key (by default what JAXREC_API_KEY holds)."""
    refresh: float = 10.0
    """With --http: seconds between looks for a new checkpoint."""

    def store_of(self, run: Path) -> Path:
        """The file of the live shoppers of a run."""
        return self.store or run / "shoppers.db"


class Online:
    """A trained model and a store of live shoppers.

    Args:
        model: what `jaxrec.load` returns.
        store: shared by all processes that serve these shoppers.
        window: newest events of a shopper to keep at least. An event that is later than all of
            the kept ones (there are up to twice as many) is refused.

    A state is the fold of all events, as in batch scoring; where the run's `evaluation.history`
    cuts histories there, it is a longer one.
    """

    def __init__(self, model: TrainedModel, store: Store, *, window: int = 64):
        if window < 1:
            raise ValueError(f"window={window}: keep 1 event or more")
        if model.config.data.drop_repeats:
            raise ValueError("the run left repeated events out (data.drop_repeats); train without")
        self.model, self.store, self.window = model, store, window
        ids = model.catalog.item_ids.to_list()
        self.number_of = {item: number for number, item in enumerate(ids) if item is not None}
        self.newcomer = initial_states(model.graphdef, model.params, 1)
        self.items = model.items
        self.units = unit_rows(np.asarray(self.items))
        self.selection = lru_cache(maxsize=16)(self._selection)

    def warm_up(self) -> None:
        """Compile every shape and read the text encoder, so that no shopper waits for it."""
        if self.model.trained.whitening is not None and self.model.text_columns:
            self.model.text_vector("words")
        kind = self.model.trained.kind_names[0]
        for size in BATCHES:
            log = self._log([(LiveEvent(0, "", kind),)] * size)
            vectors = self.model.user_vectors(_padded(self._fold(log, None, None), size))
            for count in MASKED:
                masked = np.zeros(count, np.int64), np.zeros(count, np.int64)
                for length in LISTS:
                    k = min(length, self.model.catalog.num_items - 1)
                    self._shortlists(vectors, masked, k, "")

    def record(self, reports: Sequence[Report]) -> list[Outcome]:
        """Fold events into the states of their users; durable when this returns.

        Raises:
            ValueError: a kind of event that the model does not know; nothing is recorded then.
        """
        known = self.model.trained.kind_names
        unknown = {report.event.kind for report in reports} - set(known)
        if unknown:
            raise ValueError(
                f"the model knows no event {', '.join(sorted(unknown))}; give {', '.join(known)}"
            )
        outcomes: list[Outcome] = ["accepted"] * len(reports)
        waiting: dict[str, list[int]] = defaultdict(list)
        for number, report in enumerate(reports):
            waiting[report.user_id].append(number)
        for _ in range(CONFLICTS):
            shoppers = self._load(list(waiting))
            changed = []
            for user_id, numbers in waiting.items():
                before = after = shoppers[user_id]
                for number in numbers:
                    after, outcomes[number] = _insert(after, reports[number].event)
                if after is not before:
                    changed.append((before, after))
            refused = self.store.save(self._folded(changed))
            waiting = {user_id: waiting[user_id] for user_id in refused}
            if not waiting:
                return outcomes
        raise TimeoutError(f"{len(waiting)} users are written by others all the time")

    def record_many(self, reports: Sequence[Report]) -> None:
        """`record`, some thousands of events at a time."""
        for start in range(0, len(reports), BULK):
            self.record(reports[start : start + BULK])

    def enter(self, log: EventLog) -> int:
        """Record the histories of the users whom the store lacks; how many these are."""
        known = self.store.load(log.user_ids.to_list())
        reports = [r for r in reports_of(log, self.model) if r.user_id not in known]
        self.record_many(reports)
        return log.num_users - len(known)

    def recommend(
        self,
        user_ids: Sequence[str],
        k: int = 10,
        *,
        target: str = ITEM,
        where: str = "",
        mask: tuple[str, ...] = (),
        kind: str = "",
        words: str = "",
        strength: float = 0.5,
    ) -> list[Answer]:
        """The k best items for every user, known or not.

        Args:
            target: any type of node of the graph, such as `brand`, in place of items.
            where: a condition on the items, as in `jaxrec.rules.where`.
            mask: what of a user's own events to leave out; by default as in the run's evaluation.
            kind: of event that is asked for; by default the one that the run was to predict.
            words: what the users look for, if they said so.
            strength: how far the words move the users' vectors, from 0 (not) to 1 (to their own).

        Raises:
            DataError: the condition cannot be used.
            ValueError: k or the strength does not fit, or the model reads no text.
        """
        if not 0 <= strength <= 1:
            raise ValueError(f"strength={strength} is not between 0 and 1")
        self.model.check_request(k, target, Rules(mask=mask, where=where))
        kinds = self.model.trained.kind_names
        if kind and kind not in kinds:
            raise ValueError(f"the model knows no event {kind}; give {', '.join(kinds)}")
        shoppers, vectors = self.vectors(user_ids, kinds.index(kind) if kind else None)
        if words:
            vectors = self._steered(vectors, self.model.text_vector(words), strength)
        mask = mask or self.model.config.evaluation.mask
        lists: Shortlists | TopItems
        if target == ITEM:
            lists = self._shortlists(vectors, self.masked(shoppers, mask), k, where)
        else:
            model = self.model
            block, valid = model.block(target), model.valid(target)
            lists = best_items(vectors, block, no_pairs, valid, k, with_log_z=False)
        tables = self._tables(target, lists.items[:, :k], lists.scores[:, :k], shoppers)
        return [
            Answer(
                shopper.user_id,
                table,
                events=shopper.forgotten + len(shopper.events),
                approximate=shopper.approximate,
            )
            for shopper, table in zip(shoppers, tables, strict=True)
        ]

    def vectors(
        self, user_ids: Sequence[str], kind: int | None = None
    ) -> tuple[list[Shopper], Float[np.ndarray, "Q ED"]]:
        """What is kept of users and their vectors; rows of no meaning may follow these."""
        shoppers = list(self._load(user_ids).values())
        states = self._states([shopper.state for shopper in shoppers])
        size = _at_least(len(shoppers), BATCHES)
        return shoppers, self.model.user_vectors(_padded(states, size), kind)

    def profile(self, user_id: str, *, last: int = 10, top: int = 5) -> pl.DataFrame:
        """What a user is interested in now, and how that moved; columns as in batch scoring.

        Args:
            last: events over which the movement is told, of those that are kept.
            top: nodes of a type.
        """
        if last < 1 or top < 1:
            raise ValueError(f"last={last}, top={top}: give 1 or more of both")
        shopper = self._load([user_id])[user_id]
        earlier = self._fold_flat([(shopper.base, shopper.base_time, shopper.events[:-last])])
        states = self._states([shopper.state, *earlier])
        now, before = self.model.user_vectors(states)[:, None]
        return self.model.profile_table(pl.Series([user_id]), now, before, top)

    def movement(
        self, user_id: str, *, last: int = 20, top: int = 5
    ) -> tuple[str, list[str], Float[np.ndarray, "T K"]]:
        """How interest moved over the kept events: a type of node, the names of its strongest
        nodes, and their weights after each of the last events."""
        shopper = self._load([user_id])[user_id]
        count = len(shopper.events)
        if not count:
            return (*self.model.profiled_types, ITEM)[0], [], np.zeros((0, 0))
        moments = range(max(count - last, 0) + 1, count + 1)
        jobs = [(shopper.base, shopper.base_time, shopper.events[:moment]) for moment in moments]
        vectors = self.model.user_vectors(self._states(self._fold_flat(jobs)))
        name, rows, weights = self.model.interest_over_time(vectors, top)
        return name, self.model.names(name, rows).to_series(-1).to_list(), weights

    def history(self, user_id: str) -> Shopper:
        """What is kept of a user."""
        return self._load([user_id])[user_id]

    def forget(self, user_id: str) -> bool:
        """Delete all that is kept of a user; whether there was anything."""
        return self.store.forget(user_id)

    def _load(self, user_ids: Sequence[str]) -> dict[str, Shopper]:
        """Documents of users in their order, under this model, new ones for newcomers."""
        found = self.store.load(user_ids)
        shoppers = {user_id: found.get(user_id, Shopper(user_id)) for user_id in user_ids}
        stale = [s for s in found.values() if s.model != self.model.version]
        if stale:
            shoppers |= {s.user_id: s for s in self._folded([(s, s) for s in stale])}
        return shoppers

    def _folded(self, changes: Sequence[tuple[Shopper, Shopper]]) -> list[Shopper]:
        """Documents with the states that belong to their events, from what they were before.

        New events behind all others are folded into the state. Otherwise, all that are kept are
        folded into the state before them, which another model's documents do not have.
        """
        kept, jobs = [], list[Job]()
        for before, after in changes:
            count = len(before.events)
            if before.model != self.model.version:
                after = replace(after, base=None, approximate=after.forgotten > 0)
                jobs.append((None, NEVER, after.events))
            elif after.events[:count] == before.events and before.state is not None:
                jobs.append((before.state, before.last_time, after.events[count:]))
            else:
                jobs.append((after.base, after.base_time, after.events))
            kept.append(after)
        shoppers = [
            replace(after, state=state, model=self.model.version)
            for after, state in zip(kept, self._fold_flat(jobs), strict=True)
        ]
        return self._trimmed(shoppers)

    def _trimmed(self, shoppers: Sequence[Shopper]) -> list[Shopper]:
        """Documents in which the events beyond two windows are folded into the base."""
        full = [s for s in shoppers if len(s.events) > 2 * self.window]
        old = [s.events[: -self.window] for s in full]
        jobs = [(s.base, s.base_time, events) for s, events in zip(full, old, strict=True)]
        trimmed = {
            s.user_id: replace(
                s,
                events=s.events[len(events) :],
                base=base,
                base_time=events[-1].time,
                forgotten=s.forgotten + len(events),
            )
            for s, events, base in zip(full, old, self._fold_flat(jobs), strict=True)
        }
        return [trimmed.get(s.user_id, s) for s in shoppers]

    def _fold_flat(self, jobs: Sequence[Job]) -> list[Float[np.ndarray, " S"]]:
        """The state after every job, some hundreds of jobs at a time."""
        flat: list[Float[np.ndarray, " S"]] = []
        for begin in range(0, len(jobs), BATCHES[-1]):
            part = jobs[begin : begin + BATCHES[-1]]
            before = self._states([state for state, _, _ in part])
            last_times = np.array([last_time for _, last_time, _ in part])
            after = self._fold(self._log([events for _, _, events in part]), before, last_times)
            flat += list(flat_states(after))
        return flat

    def _fold(
        self,
        log: EventLog,
        before: tuple[InterestState, ...] | None,
        last_times: Int[np.ndarray, " U"] | None,
    ) -> tuple[InterestState, ...]:
        model = self.model
        return interest_states(
            model.graphdef,
            model.params,
            self.items,
            log,
            users=_at_least(log.num_users, BATCHES),
            before=before,
            last_times=last_times,
        )

    def _log(self, histories: Sequence[Sequence[LiveEvent]]) -> EventLog:
        kinds = self.model.trained.kind_names
        events = [event for history in histories for event in history]
        return EventLog(
            user_ids=pl.Series([str(number) for number in range(len(histories))], dtype=pl.String),
            kind_names=kinds,
            offsets=np.cumsum([0, *map(len, histories)]),
            items=np.array([self.number_of.get(e.item_id, 0) for e in events], np.int32),
            kinds=np.array([kinds.index(e.kind) for e in events], np.int32),
            times=np.array([e.time for e in events], np.int64),
            has_time=self.model.config.data.time == "timestamp",
        )

    def _states(self, flat: Sequence[Float[np.ndarray, " S"] | None]) -> tuple[InterestState, ...]:
        """Stacked states; a newcomer's for None."""
        leaves, structure = jax.tree.flatten(self.newcomer)
        newcomer = np.concatenate([np.asarray(leaf).ravel() for leaf in leaves])
        stacked = np.stack([newcomer if state is None else state for state in flat])
        bounds = np.cumsum([leaf.size for leaf in leaves])[:-1]
        parts = np.split(stacked, bounds, axis=1)
        shaped = [
            part.reshape(len(flat), *leaf.shape[1:])
            for part, leaf in zip(parts, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, shaped)

    def masked(self, shoppers: Sequence[Shopper], mask: tuple[str, ...]) -> Pairs:
        """(row, item) pairs of what users have chosen before, by the kinds that a mask names."""
        pairs = [
            (row, self.number_of[item])
            for row, shopper in enumerate(shoppers)
            for kind, items in shopper.chosen.items()
            if kind in mask or "seen" in mask
            for item in items
            if item in self.number_of
        ]
        rows, items = np.array(pairs, np.int64).reshape(-1, 2).T
        return rows, items

    def _shortlists(self, vectors: Float[np.ndarray, "Q ED"], masked: Pairs, k: int, where: str):
        def excluded(users: Int[np.ndarray, " R"]) -> PairBlocks:
            def pairs(start: int, stop: int) -> Pairs:
                rows, items = blocks_of(masked)(start, stop)
                behind = (0, _at_least(len(rows), MASKED) - len(rows))
                return np.pad(rows, behind, constant_values=OUTSIDE), np.pad(items, behind)

            return pairs

        most = self.model.catalog.num_items - 1
        selection, ready = self.selection(where)
        return shortlist(
            vectors,
            self.items,
            excluded,
            self.model.valid(),
            min(_at_least(k, LISTS), most),
            selection,
            ready=ready,
        )

    def _steered(
        self, vectors: Float[np.ndarray, "Q ED"], towards: Float[np.ndarray, " ED"], strength: float
    ) -> Float[np.ndarray, "Q ED"]:
        """User vectors moved towards an item's, expert by expert, at the users' own lengths."""
        num_experts = len(self.model.config.model.experts)
        parts = vectors.reshape(len(vectors), num_experts, -1)
        lengths = np.linalg.norm(parts, axis=2, keepdims=True)
        mixed = (1 - strength) * parts + strength * lengths * towards.reshape(num_experts, -1)
        return mixed.reshape(vectors.shape)

    def _selection(self, where: str) -> tuple[Selection, Candidates]:
        selection = self.model.selection(Rules(where=where))
        valid = self.model.valid()
        return selection, candidates(self.items, valid, selection.bias, self.model.mesh)

    def _tables(
        self,
        target: str,
        ranked: Int[np.ndarray, "Q k"],
        scores: Float[np.ndarray, "Q k"],
        shoppers: Sequence[Shopper],
    ) -> list[pl.DataFrame]:
        """The list of every user; names are looked up for all of them at once."""
        ranked, scores = ranked[: len(shoppers)], scores[: len(shoppers)]
        left = ranked > 0
        first, *title = self.model.names(target, ranked[left]).iter_columns()
        reasons = [
            self._reasons(target, row[row > 0], shopper)
            for row, shopper in zip(ranked, shoppers, strict=True)
        ]
        because = np.concatenate(reasons)
        labels = self.model.labels(because).set(pl.Series(because == 0), None)
        whole = pl.DataFrame(
            [
                pl.Series("rank", np.nonzero(left)[1] + 1, dtype=pl.Int32),
                first,
                pl.Series("score", scores[left]),
                *title,
                labels.alias("because"),
            ]
        )
        counts = left.sum(1)
        return [
            whole.slice(end - count, count)
            for end, count in zip(counts.cumsum(), counts, strict=True)
        ]

    def _reasons(
        self, target: str, rows: Int[np.ndarray, " n"], shopper: Shopper
    ) -> Int[np.ndarray, " n"]:
        """For every recommended node the kept item of the user that is most like it, or 0."""
        numbers = (self.number_of.get(event.item_id, 0) for event in shopper.events)
        theirs = np.array([number for number in dict.fromkeys(numbers) if number], np.int64)
        if not len(theirs):
            return np.zeros(len(rows), np.int64)
        block = self.units if target == ITEM else unit_rows(np.asarray(self.model.block(target)))
        return theirs[(block[rows] @ self.units[theirs].T).argmax(1)]


def reports_of(log: EventLog, model: TrainedModel) -> list[Report]:
    """The events of a log in its order; items that the catalogue lacks have no name."""
    users = log.user_ids.gather(np.repeat(np.arange(log.num_users), log.lengths))
    items = model.catalog.item_ids.gather(log.items).fill_null("")
    kinds = [log.kind_names[kind] for kind in log.kinds]
    return [
        Report(user, LiveEvent(time, item, kind))
        for user, time, item, kind in zip(users, log.times.tolist(), items, kinds, strict=True)
    ]


def _insert(shopper: Shopper, event: LiveEvent) -> tuple[Shopper, Outcome]:
    """A document with an event more, unless it has it already or its place is forgotten."""
    if event.event_id is not None and any(e.event_id == event.event_id for e in shopper.events):
        return shopper, "duplicate"
    if event.time < shopper.base_time:
        return shopper, "too_late"
    return with_event(shopper, event), "accepted"


def _padded(states: tuple[InterestState, ...], size: int) -> tuple[InterestState, ...]:
    """States with rows of zeros behind."""
    return jax.tree.map(lambda leaf: padded(leaf, size), states)


def _at_least(size: int, sizes: Sequence[int]) -> int:
    """The smallest of the sizes that holds `size`; itself if none does."""
    return next((s for s in sizes if s >= size), size)
