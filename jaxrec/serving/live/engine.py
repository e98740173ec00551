"""Live scoring: an event is one step of the document's state, and the next answer knows of it."""

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import chain, product
from typing import Literal

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from jaxrec.config import Config
from jaxrec.data.graph import ITEM
from jaxrec.errors import StoreError
from jaxrec.evaluation.protocol import masked_event_types
from jaxrec.inference.encoding import CHUNK
from jaxrec.inference.profiles import interest_over_time, profile_table
from jaxrec.inference.text_features import LENGTH_BUCKETS
from jaxrec.inference.trained_model import TrainedModel
from jaxrec.ranking.steps import Feedback, RankedLists, Session, Step, feedback_types
from jaxrec.ranking.top_k import AdjustmentBlocks, at_least, scaled
from jaxrec.serving.live.recommendation_builder import (
    LISTS,
    PAIRS,
    RecommendationBuilder,
    RecommendationList,
    padded_blocks,
    unknown_items,
)
from jaxrec.serving.live.state_updater import BATCHES, StateUpdater
from jaxrec.serving.stores.base import Impression, LiveEvent, Store, UserDocument
from jaxrec.serving.stores.documents import merge_events, newest_of_each_type, with_events
from jaxrec.serving.stores.sqlite import SQLiteStore
from jaxrec.types import MAX_GAP, NO_GAP, EventLog

BULK = 4096  # states that are loaded at a time
CONFLICTS = 20  # times to read documents anew that other processes have changed meanwhile

Outcome = Literal["accepted", "duplicate", "too_late"]


@dataclass(frozen=True)
class UserEvent:
    """An event of a named user."""

    user_id: str
    event: LiveEvent


class LiveEngine:
    """A trained model and a store of live documents.

    Args:
        model: what `jaxrec.load` returns.
        store: shared by all processes that serve these documents.
        window: newest events of a document to keep at least. An event of before all of the kept
            ones (there are up to twice as many), or before a loaded state, is refused.
        strategy: steps that act on every list of items, in their order. Event types that its
            feedback names are recorded although the model does not know them.
        random: for steps that throw dice.

    A state is the fold of all events, as in batch scoring; where the run's `evaluation.history`
    cuts histories there, it is a longer one.
    """

    def __init__(
        self,
        model: TrainedModel,
        store: Store,
        *,
        window: int = 64,
        strategy: Sequence[Step] = (Feedback(),),
        random: np.random.Generator | None = None,
    ):
        if window < 1:
            raise ValueError(f"window={window}: keep 1 event or more")
        check_live_run(model.config)
        self.model, self.store = model, store
        self.updater = StateUpdater(model, window, feedback_types(strategy))
        self.builder = RecommendationBuilder(
            self.updater, strategy, random or np.random.default_rng()
        )

    def warm_up(self) -> None:
        """Compile every shape and read the text encoder, so that no document waits for it."""
        if self.model.reads_text:
            longest = self.model.bert.config.max_position_embeddings
            for length in (length for length in LENGTH_BUCKETS if length <= longest):
                self.model.text_vector("a " * (length - 2))  # and the two around a text
        elsewhere = copy(self)
        elsewhere.store = SQLiteStore(":memory:")
        event = LiveEvent(0, "", self.model.trained.event_type_names[0])
        for size in BATCHES:
            users = [str(number) for number in range(size)]
            # states of a store are folded by another program than those of the chunk before
            for events in (1, 2 * CHUNK + 1):
                elsewhere.record([UserEvent(user, event) for user in users for _ in range(events)])
            elsewhere.recommend(users, k=1)
            documents, vectors = elsewhere.vectors(users)
            self.builder.warm_up(documents, vectors)
        for length, count in product(LISTS, PAIRS):
            self._profile(documents[0], unknown_items(count), 1, length)
        elsewhere.store.close()

    def record(self, user_events: Sequence[UserEvent]) -> list[Outcome]:
        """Fold events into the states of their users; durable when this returns.

        Raises:
            ValueError: an event type that the model does not know; nothing is recorded then.
            StoreError: the store fails, or others write the same users all the time. Events of
                some users may be recorded; those with an `event_id` can be sent again.
        """
        self._refuse_unknown({report.event.event_type for report in user_events})
        outcomes: list[Outcome] = ["accepted"] * len(user_events)
        waiting: dict[str, list[int]] = defaultdict(list)
        for number, report in enumerate(user_events):
            waiting[report.user_id].append(number)
        for _ in range(CONFLICTS):
            documents = self._load(list(waiting))
            changed = []
            for user_id, numbers in waiting.items():
                before = documents[user_id]
                after, became = self._changed(before, [user_events[n].event for n in numbers])
                for number, outcome in zip(numbers, became, strict=True):
                    outcomes[number] = outcome
                if "accepted" in became:
                    changed.append((before, after))
            refused = self.store.save(self.updater.renewed(changed))
            waiting = {user_id: waiting[user_id] for user_id in refused}
            if not waiting:
                return outcomes
        raise StoreError(f"{len(waiting)} users are written by others all the time")

    def record_many(self, user_events: Sequence[UserEvent]) -> None:
        """`record`, some hundreds of users at a time, those with as many events together."""
        by_user: dict[str, list[UserEvent]] = defaultdict(list)
        for report in user_events:
            by_user[report.user_id].append(report)
        histories = sorted(by_user.values(), key=len)
        for start in range(0, len(histories), BATCHES[-1]):
            self.record(list(chain.from_iterable(histories[start : start + BATCHES[-1]])))

    def enter(self, events: pl.DataFrame) -> int:
        """Record the histories of the users whom the store lacks; how many these are.

        Args:
            events: validated, with columns as in `Tables.events`; event_types that the strategy alone
                reads are judgements.

        Raises:
            ValueError: an event of before 1970 or a position below 0, or of an unknown event_type.
        """
        users = events["user_id"].unique()
        known = list(self.store.load(users.to_list()))
        fresh = events.filter(~pl.col("user_id").is_in(known)).sort(
            "timestamp", maintain_order=True
        )
        if (fresh["timestamp"] < 0).any():
            raise ValueError("events of before 1970, or at positions below 0, cannot be kept live")
        self._refuse_unknown(fresh["event"].unique())
        unit = 1000 if self.model.config.data.time == "timestamp" else 1
        ids = "event_id" if "event_id" in events.columns else pl.lit(None, pl.String)
        fresh = fresh.select("user_id", pl.col("timestamp") // unit, "item_id", "event", ids)
        self.record_many([UserEvent(user, LiveEvent(*event)) for user, *event in fresh.iter_rows()])
        return len(users) - len(known)

    def load_states(self, table: pl.DataFrame) -> int:
        """Give documents the states that batch scoring has written; how many documents these are.

        A state stands for all events up to its last one; kept events that came later are folded
        behind it. So after a change of the model nothing is approximate, unless the kept events do
        not reach back to that last one: then a state of this model stays as it is, and another is
        replaced and called approximate. Users whom the store lacks are left out, as nothing tells
        what they have chosen.

        Args:
            table: `user_id`, `events`, `last_time` and `state`, as `serve.py --states` writes.
        """
        loaded = 0
        for part in table.iter_slices(BULK):
            rows = {row["user_id"]: row for row in part.iter_rows(named=True)}
            changed = []
            for user_id, document in self.store.load(list(rows)).items():
                row = rows[user_id]
                last_time = row["last_time"]
                if not row["events"]:
                    continue
                reaches_back = document.base_time <= last_time
                if not reaches_back and document.model == self.model.version:
                    continue
                folded = sum(event.time <= last_time for event in document.events)
                after = replace(
                    document,
                    state=None,  # to be folded from the base
                    base=np.array(row["state"], np.float32),
                    base_time=last_time,
                    base_ids=document.base_ids if document.base_time == last_time else frozenset(),
                    num_in_base=folded,
                    truncated=max(row["events"] - folded, 0),
                    approximate=not reaches_back,
                    model=self.model.version,
                )
                changed.append((after, after))
            refused = self.store.save(self.updater.renewed(changed))
            loaded += len(changed) - len(refused)
        return loaded

    def recommend(
        self,
        user_ids: Sequence[str],
        k: int = 10,
        *,
        target: str = ITEM,
        where: str = "",
        mask: tuple[str, ...] = (),
        event_type: str = "",
        words: str = "",
        strength: float = 0.5,
        now: int | None = None,
    ) -> list[RecommendationList]:
        """The k best items for every user, known or not.

        Args:
            target: any type of node of the graph, such as `brand`, in place of items.
            where: a condition on the items, as in `jaxrec.ranking.filters.where`, first.
            mask: what of a user's own events to leave out; by default as in the run's evaluation.
            event_type: of event that is asked for; by default the one that the run was to predict.
            words: what the users look for, if they said so.
            strength: the share of the words in the scores, from 0 to 1; see
                `TrainedModel.steered`.
            now: seconds since the epoch, by which a session may be over, and which a model with
                `time_since_last` is told; by default the moment of every user's last event.

        Raises:
            DataError: the condition cannot be used.
            ValueError: k, the mask or the strength does not fit, the model reads no text, or words
                are to steer a list of other nodes.
        """
        if not 0 <= strength <= 1:
            raise ValueError(f"strength={strength} is not between 0 and 1")
        if words and target != ITEM:
            raise ValueError(f"words steer lists of items, not of {target}")
        self.model.check_request(k, target, ruled=bool(where or mask))
        event_types = self.model.trained.event_type_names
        masked_event_types(mask, event_types)
        if not user_ids:
            return []
        if event_type and event_type not in event_types:
            raise ValueError(
                f"the model knows no event {event_type}; give {', '.join(event_types)}"
            )
        asked = event_types.index(event_type) if event_type else None
        builder = self.builder
        plan = builder.plan(where, self.updater.items.shape[1])[0] if target == ITEM else None
        documents, vectors = self.vectors(user_ids, asked, now)
        mixed = vectors
        if plan and plan.session:
            moments = None if now is None else np.full(len(documents), now)
            mixed = builder.with_session(documents, vectors, plan.session, moments, asked)
        moved = (mixed != vectors).any(1)[: len(documents), None]
        if words:
            mixed = self.model.steered(mixed, words, strength)
        if plan:
            pairs = builder.pairs(documents, mask or self.model.config.evaluation.mask, asked)
            if words:
                pairs = scaled(pairs, 1 - strength)
            ranked = builder.ranked(documents, mixed, pairs, k, where)
            ranked = ranked._replace(touched=ranked.touched | plan.bits(Session) * moved)
        else:
            ranked = builder.best_nodes(mixed, target, k)
        answers = [
            RecommendationList(
                document.user_id,
                target,
                builder.places(target, RankedLists(*row), plan, document),
                events=document.truncated + len(document.events),
                approximate=document.approximate,
            )
            for document, *row in zip(documents, *ranked, strict=False)
        ]
        if plan and plan.explores:
            self.store.add_impressions(shown(answers, self.model.version))
        by_user = {answer.user_id: answer for answer in answers}
        return [by_user[user_id] for user_id in user_ids]

    def vectors(
        self,
        user_ids: Sequence[str],
        event_type: int | None = None,
        now: Int[np.ndarray, " n"] | int | None = None,
    ) -> tuple[list[UserDocument], Float[np.ndarray, "Q 1+ED"]]:
        """What is kept of users and their vectors; rows of no meaning may follow these.

        Args:
            now: when they ask (s), for a model that is told the time since the last event.
        """
        documents = list(self._load(user_ids).values())
        states = self.updater.states([document.state for document in documents])
        time_since_last = np.zeros(0, np.int32)
        has_time = self.model.config.data.time == "timestamp"
        if now is not None and has_time and self.model.config.model.time_since_last:
            last = np.array([document.last_time for document in documents])
            time_since_last = np.where(last < 0, NO_GAP, np.clip(now - last, 0, MAX_GAP))
        return documents, self.updater.read(states, event_type, time_since_last)

    def profile(self, document: UserDocument, *, last: int = 10, top: int = 5) -> pl.DataFrame:
        """What a user is interested in now, and how that moved; columns as in batch scoring.

        Args:
            document: what `history` returns.
            last: events over which the movement is told, of those that are kept.
            top: nodes of a type.
        """
        if last < 1 or top < 1:
            raise ValueError(f"last={last}, top={top}: give 1 or more of both")
        masked = self.builder.masked([document], self.model.config.evaluation.mask)
        return self._profile(document, masked, last, top)

    def _profile(
        self, document: UserDocument, masked: AdjustmentBlocks, last: int, top: int
    ) -> pl.DataFrame:
        earlier, _, _ = self.updater.earlier(document, last)
        states = self.updater.states([document.state, earlier])
        now, before = self.updater.read(states)[:2, None]
        length = at_least(top, LISTS)
        table = profile_table(
            self.model, pl.Series([document.user_id]), now, before, length, padded_blocks(masked)
        )
        return table.filter(pl.col("rank") <= top)

    def movement(
        self, document: UserDocument, *, last: int = 20, top: int = 5
    ) -> tuple[str, list[str], Float[np.ndarray, "T K"]]:
        """How interest moved over the kept events: a type of node, the names of its strongest
        nodes, and their weights after each of the last events."""
        start, time_of_start, new = self.updater.earlier(document, last)
        if not new:
            return (*self.model.profiled_types, ITEM)[0], [], np.zeros((0, 0))
        jobs = [(start, time_of_start, new[: n + 1]) for n in range(len(new))]
        vectors = self.updater.read(self.updater.states(self.updater.after(jobs)))[: len(new)]
        name, rows, weights = interest_over_time(self.model, vectors, top)
        return name, self.model.names(name, rows).to_series(-1).to_list(), weights

    def history(self, user_id: str) -> UserDocument:
        """What is kept of a user, with a state of this model."""
        return self._load([user_id])[user_id]

    def forget(self, user_id: str) -> bool:
        """Delete all that is kept of a user; whether there was anything."""
        return self.store.delete(user_id)

    def _refuse_unknown(self, event_types: Iterable[str]) -> None:
        unknown = set(event_types) - set(self.builder.event_types)
        if unknown:
            raise ValueError(
                f"the model knows no event {', '.join(sorted(unknown))}; "
                f"give {', '.join(self.builder.event_types)}"
            )

    def _changed(
        self, document: UserDocument, events: Sequence[LiveEvent]
    ) -> tuple[UserDocument, list[Outcome]]:
        """A document with the events that it lacks and whose place is not truncated."""
        known = {event.event_id for event in (*document.events, *document.feedback)}
        known |= document.base_ids
        event_types = self.model.trained.event_type_names
        outcomes, read, judged = list[Outcome](), list[LiveEvent](), list[LiveEvent]()
        for event in events:
            if event.event_id is not None and event.event_id in known:
                outcomes.append("duplicate")
            elif event.event_type in event_types and event.time < document.base_time:
                outcomes.append("too_late")
            else:
                outcomes.append("accepted")
                known.add(event.event_id)
                (read if event.event_type in event_types else judged).append(event)
        feedback = newest_of_each_type(
            merge_events(document.feedback, judged), 2 * self.updater.window
        )
        after = replace(document, feedback=feedback)
        return with_events(after, read, self.updater.place), outcomes

    def _load(self, user_ids: Sequence[str]) -> dict[str, UserDocument]:
        """Documents of users in their order, under this model, new ones for newcomers."""
        found = self.store.load(user_ids)
        documents = {user_id: found.get(user_id, UserDocument(user_id)) for user_id in user_ids}
        stale = [s for s in found.values() if s.model != self.model.version]
        if stale:
            documents |= {s.user_id: s for s in self.updater.renewed([(s, s) for s in stale])}
        return documents


def check_live_run(config: Config) -> None:
    """Raise a ValueError for a run that cannot be served live."""
    if config.data.drop_repeats:
        raise ValueError("the run left repeated events out (data.drop_repeats); train without")


def user_events_of(log: EventLog, model: TrainedModel) -> list[UserEvent]:
    """The events of a log in its order; items that the catalogue lacks have no name."""
    users = log.user_ids.gather(np.repeat(np.arange(log.num_users), log.lengths))
    items = model.catalog.item_ids.gather(log.items).fill_null("")
    event_types = [log.event_type_names[event_type] for event_type in log.event_types]
    return [
        UserEvent(user, LiveEvent(time, item, event_type))
        for user, time, item, event_type in zip(
            users, log.times.tolist(), items, event_types, strict=True
        )
    ]


def shown(answers: Sequence[RecommendationList], model: str) -> list[Impression]:
    """Answers as the store keeps them."""
    return [
        Impression(
            answer.user_id,
            int(time.time()),
            model,
            tuple(place.id for place in answer.places),
            tuple(place.propensity for place in answer.places),
        )
        for answer in answers
    ]
