"""Records live events in users' documents."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl

from jaxrec.errors import InputError, StoreError
from jaxrec.runtime import personal
from jaxrec.serving.ids import PATTERN, RULE, SHOWN, check_id
from jaxrec.serving.live.state_updater import BATCHES, StateUpdater
from jaxrec.serving.stores.base import (
    MAX_IDS_OF_A_SECOND,
    NEVER,
    LiveEvent,
    Loaded,
    Store,
    UserDocument,
)
from jaxrec.serving.stores.documents import (
    damaged,
    merge_events,
    newest_of_each_type,
    with_events,
)

BULK = 4096  # states to load at a time
MAX_CONFLICTS = 20  # attempts to save documents that other processes change at the same time

Outcome = Literal["accepted", "duplicate", "too_late"]
Recorded = Outcome | StoreError  # the error: this user's document cannot be read or written


class UserEvent(NamedTuple):
    """An event of a named user."""

    user_id: str
    event: LiveEvent


class EventRecorder:
    """Reads and writes the documents of a store for one model.

    Args:
        updater: brings states up to date.
        store: may be shared with other processes.
        event_types: those of the model and those that only a strategy reads.
    """

    def __init__(self, updater: StateUpdater, store: Store, event_types: Sequence[str]):
        self.updater, self.store, self.event_types = updater, store, tuple(event_types)
        self.model = updater.model

    def documents(self, user_ids: Sequence[str]) -> dict[str, UserDocument]:
        """`load` for users whose documents can all be read.

        Raises:
            StoreError: the store fails, or the document of a user cannot be read.
        """
        loaded = self.load(user_ids)
        for error in loaded.damaged.values():
            raise error
        return loaded.documents

    def load(self, user_ids: Sequence[str]) -> Loaded:
        """Documents of users in their order, with states of this model; empty for new users."""
        loaded = self.store.load(user_ids)
        unreadable = loaded.damaged | {
            user_id: damaged(user_id, "its state does not fit the model")
            for user_id, document in loaded.documents.items()
            if document.model == self.model.version and not self.updater.fits(document)
        }
        documents = {
            user_id: loaded.documents.get(user_id, UserDocument(user_id))
            for user_id in user_ids
            if user_id not in unreadable
        }
        stale = [d for d in documents.values() if d.version and d.model != self.model.version]
        if stale:
            documents |= {d.user_id: d for d in self.updater.refresh([(d, d) for d in stale])}
        return Loaded(documents, unreadable)

    def record(self, user_events: Sequence[UserEvent]) -> list[Recorded]:
        """Record events and update states; durable when this returns.

        Returns:
            The outcome of each event. It is a StoreError if the document of its user cannot be
            read, or if other processes keep writing it; the events of other users are recorded.

        Raises:
            InputError: an unknown event type, or text that is no id; nothing is recorded then.
            StoreError: the store fails. Events of some users may be recorded; those with an
                `event_id` can be sent again.
        """
        self._check_event_types({user_event.event.event_type for user_event in user_events})
        _check_ids(user_events)
        outcomes: list[Recorded] = ["accepted"] * len(user_events)
        waiting: dict[str, list[int]] = defaultdict(list)
        for number, user_event in enumerate(user_events):
            waiting[user_event.user_id].append(number)
        for _ in range(MAX_CONFLICTS):
            loaded, changed = self.load(list(waiting)), []
            for user_id, error in loaded.damaged.items():
                for number in waiting.pop(user_id):
                    outcomes[number] = error
            for user_id, numbers in waiting.items():
                before = loaded.documents[user_id]
                after, user_outcomes = self._add(before, [user_events[n].event for n in numbers])
                for number, outcome in zip(numbers, user_outcomes, strict=True):
                    outcomes[number] = outcome
                if "accepted" in user_outcomes:
                    changed.append((before, after))
            refused = self.store.save(self.updater.refresh(changed))
            waiting = {user_id: waiting[user_id] for user_id in refused}
            if not waiting:
                return outcomes
        for user_id, numbers in waiting.items():
            error = StoreError(
                f"other processes keep writing user {personal(user_id)}; send this again"
            )
            for number in numbers:
                outcomes[number] = error
        return outcomes

    def record_many(self, user_events: Sequence[UserEvent]) -> set[str]:
        """`record` in batches of users with about equally many events.

        Returns:
            The users of accepted events.
        """
        by_user: dict[str, list[UserEvent]] = defaultdict(list)
        for user_event in user_events:
            by_user[user_event.user_id].append(user_event)
        histories, recorded = sorted(by_user.values(), key=len), set[str]()
        for start in range(0, len(histories), BATCHES[-1]):
            batch = list(chain.from_iterable(histories[start : start + BATCHES[-1]]))
            outcomes = zip(batch, self.record(batch), strict=True)
            recorded |= {event.user_id for event, outcome in outcomes if outcome == "accepted"}
        return recorded

    def import_users(self, events: pl.DataFrame) -> int:
        """Import missing users with their events; returns the number of users imported.

        Events until the deletion of a user are left out, as long as its tombstone is kept.

        Args:
            events: validated, with columns as in `Tables.events`. Event types that only the
                strategy reads are feedback.

        Raises:
            InputError: an event before 1970, a position below 0, an unknown event type, or text
                that is no id.
        """
        _check_table(events)
        loaded = self.store.load(events["user_id"].unique().to_list())
        known = [user_id for user_id, document in loaded.documents.items() if document.version]
        known += loaded.damaged
        missing = events.filter(~pl.col("user_id").is_in(known)).sort(
            "timestamp", maintain_order=True
        )
        if (missing["timestamp"] < 0).any():
            raise InputError("live serving cannot keep events before 1970 or positions below 0")
        self._check_event_types(missing["event"].unique())
        unit = 1000 if self.model.config.data.time == "timestamp" else 1
        ids = "event_id" if "event_id" in events.columns else pl.lit(None, pl.String)
        rows = missing.select("user_id", pl.col("timestamp") // unit, "item_id", "event", ids)
        return len(
            self.record_many(
                [UserEvent(user, LiveEvent(*event)) for user, *event in rows.iter_rows()]
            )
        )

    def load_states(self, table: pl.DataFrame) -> int:
        """Load the states that a batch job wrote into stored documents; returns their number.

        A loaded state stands for all events up to its last one. Kept events that came later are
        read behind it. If the kept events do not reach back to the last one, a state of this model
        stays as it is, and another is replaced and marked approximate. Users who are
        not in the store are left out, as their past choices are unknown. So are deleted users whose
        tombstone is kept: the loaded state may hold events from before.

        Args:
            table: `user_id`, `events`, `last_time` and `state`, as batch scoring writes them.
        """
        loaded = 0
        for part in table.iter_slices(BULK):
            rows = {row["user_id"]: row for row in part.iter_rows(named=True)}
            changed = []
            for user_id, document in self.store.load(list(rows)).documents.items():
                if document.deleted_at != NEVER:
                    continue
                after = self._with_state(document, rows[user_id])
                if after is not None:
                    changed.append((after, after))
            refused = self.store.save(self.updater.refresh(changed))
            loaded += len(changed) - len(refused)
        return loaded

    def _with_state(self, document: UserDocument, row: dict[str, Any]) -> UserDocument | None:
        """A document that starts from a loaded state; None if it stays as it is."""
        last_time = row["last_time"]
        reaches_back = document.base_time <= last_time
        is_current = document.model == self.model.version
        if not row["events"] or (is_current and not reaches_back):
            return None
        num_in_base = sum(event.time <= last_time for event in document.events)
        return replace(
            document,
            state=None,  # to be computed from the base
            base=self.updater.rounded(np.array(row["state"], np.float32)),
            base_time=last_time,
            base_ids=document.base_ids if document.base_time == last_time else frozenset(),
            num_in_base=num_in_base,
            truncated=max(row["events"] - num_in_base, 0),
            approximate=not reaches_back,
            model=self.model.version,
        )

    def _add(
        self, document: UserDocument, events: Sequence[LiveEvent]
    ) -> tuple[UserDocument, list[Outcome]]:
        """A document with new events, and the outcome of each event."""
        known_ids = {event.event_id for event in (*document.events, *document.feedback)}
        known_ids |= document.base_ids
        ids_at = Counter(event.time for event in document.events if event.event_id is not None)
        ids_at[document.base_time] += len(document.base_ids)
        model_types = self.model.artifacts.event_type_names
        outcomes, accepted, feedback = list[Outcome](), list[LiveEvent](), list[LiveEvent]()
        for event in events:
            if event.event_id is not None and event.event_id in known_ids:
                outcomes.append("duplicate")
            elif event.time <= document.deleted_at:
                outcomes.append("too_late")
            elif event.event_type not in model_types:
                outcomes.append("accepted")
                known_ids.add(event.event_id)
                feedback.append(event)
            elif event.time < document.base_time or (
                event.event_id is not None and ids_at[event.time] >= MAX_IDS_OF_A_SECOND
            ):
                outcomes.append("too_late")
            else:
                outcomes.append("accepted")
                known_ids.add(event.event_id)
                ids_at[event.time] += event.event_id is not None
                accepted.append(event)
        if feedback:
            merged = merge_events(document.feedback, feedback)
            kept = newest_of_each_type(merged, 2 * self.updater.window)
            document = replace(document, feedback=kept)
        catalog = self.updater.item_number
        return with_events(document, accepted, catalog, self.updater.sort_key), outcomes

    def _check_event_types(self, event_types: Iterable[str]) -> None:
        unknown = set(event_types) - set(self.event_types)
        if unknown:
            raise InputError(
                f"the model does not know the event type {', '.join(sorted(unknown))}; "
                f"use one of {', '.join(self.event_types)}"
            )


def _check_ids(user_events: Sequence[UserEvent]) -> None:
    """Raise an InputError for text that is no id; an item that no catalogue knows may be empty."""
    for user_id, event in ((u.user_id, u.event) for u in user_events):
        check_id(user_id)
        for text in filter(None, (event.item_id, event.event_id)):
            check_id(text)


def _check_table(events: pl.DataFrame) -> None:
    """Raise an InputError for text that is no id."""
    for name in {"user_id", "item_id", "event", "event_id"} & set(events.columns):
        wrong = events[name].filter(~events[name].str.contains(PATTERN))
        if len(wrong):
            raise InputError(
                f"the events hold {len(wrong):,} values of {name} that are no ids, first "
                f"{personal(wrong[0][:SHOWN])}: {RULE}"
            )
