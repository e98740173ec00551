"""Records live events in users' documents."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal

import numpy as np
import polars as pl

from jaxrec.errors import InputError, StoreError
from jaxrec.serving.live.state_updater import BATCHES, StateUpdater
from jaxrec.serving.stores.base import LiveEvent, Store, UserDocument
from jaxrec.serving.stores.documents import merge_events, newest_of_each_type, with_events

BULK = 4096  # states to load at a time
MAX_CONFLICTS = 20  # attempts to save documents that other processes change at the same time

Outcome = Literal["accepted", "duplicate", "too_late"]


@dataclass(frozen=True)
class UserEvent:
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
        """Documents of users in their order, with states of this model; empty for new users."""
        stored = self.store.load(user_ids)
        documents = {user_id: stored.get(user_id, UserDocument(user_id)) for user_id in user_ids}
        stale = [d for d in stored.values() if d.model != self.model.version]
        if stale:
            documents |= {d.user_id: d for d in self.updater.refresh([(d, d) for d in stale])}
        return documents

    def record(self, user_events: Sequence[UserEvent]) -> list[Outcome]:
        """Record events and update states; durable when this returns.

        Raises:
            InputError: an unknown event type; nothing is recorded then.
            StoreError: the store fails, or other processes keep writing the same users. Events of
                some users may be recorded; those with an `event_id` can be sent again.
        """
        self._check_event_types({user_event.event.event_type for user_event in user_events})
        outcomes: list[Outcome] = ["accepted"] * len(user_events)
        waiting: dict[str, list[int]] = defaultdict(list)
        for number, user_event in enumerate(user_events):
            waiting[user_event.user_id].append(number)
        for _ in range(MAX_CONFLICTS):
            documents = self.documents(list(waiting))
            changed = []
            for user_id, numbers in waiting.items():
                before = documents[user_id]
                after, user_outcomes = self._add(before, [user_events[n].event for n in numbers])
                for number, outcome in zip(numbers, user_outcomes, strict=True):
                    outcomes[number] = outcome
                if "accepted" in user_outcomes:
                    changed.append((before, after))
            refused = self.store.save(self.updater.refresh(changed))
            waiting = {user_id: waiting[user_id] for user_id in refused}
            if not waiting:
                return outcomes
        raise StoreError(f"other processes keep writing the same {len(waiting)} users")

    def record_many(self, user_events: Sequence[UserEvent]) -> None:
        """`record` in batches of users with about equally many events."""
        by_user: dict[str, list[UserEvent]] = defaultdict(list)
        for user_event in user_events:
            by_user[user_event.user_id].append(user_event)
        histories = sorted(by_user.values(), key=len)
        for start in range(0, len(histories), BATCHES[-1]):
            self.record(list(chain.from_iterable(histories[start : start + BATCHES[-1]])))

    def import_users(self, events: pl.DataFrame) -> int:
        """Import missing users with their events; returns the number of users imported.

        Args:
            events: validated, with columns as in `Tables.events`. Event types that only the
                strategy reads are feedback.

        Raises:
            InputError: an event before 1970, a position below 0, or an unknown event type.
        """
        users = events["user_id"].unique()
        known = list(self.store.load(users.to_list()))
        missing = events.filter(~pl.col("user_id").is_in(known)).sort(
            "timestamp", maintain_order=True
        )
        if (missing["timestamp"] < 0).any():
            raise InputError("live serving cannot keep events before 1970 or positions below 0")
        self._check_event_types(missing["event"].unique())
        unit = 1000 if self.model.config.data.time == "timestamp" else 1
        ids = "event_id" if "event_id" in events.columns else pl.lit(None, pl.String)
        rows = missing.select("user_id", pl.col("timestamp") // unit, "item_id", "event", ids)
        self.record_many([UserEvent(user, LiveEvent(*event)) for user, *event in rows.iter_rows()])
        return len(users) - len(known)

    def load_states(self, table: pl.DataFrame) -> int:
        """Load the states that a batch job wrote into stored documents; returns their number.

        A loaded state stands for all events up to its last one. Kept events that came later are
        read behind it. If the kept events do not reach back to the last one, a state of this model
        stays as it is, and another is replaced and marked approximate. Users who are
        not in the store are left out, as their past choices are unknown.

        Args:
            table: `user_id`, `events`, `last_time` and `state`, as batch scoring writes them.
        """
        loaded = 0
        for part in table.iter_slices(BULK):
            rows = {row["user_id"]: row for row in part.iter_rows(named=True)}
            changed = []
            for user_id, document in self.store.load(list(rows)).items():
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
            base=np.array(row["state"], np.float32),
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
        model_types = self.model.artifacts.event_type_names
        outcomes, accepted, feedback = list[Outcome](), list[LiveEvent](), list[LiveEvent]()
        for event in events:
            if event.event_id is not None and event.event_id in known_ids:
                outcomes.append("duplicate")
            elif event.event_type in model_types and event.time < document.base_time:
                outcomes.append("too_late")
            else:
                outcomes.append("accepted")
                known_ids.add(event.event_id)
                (accepted if event.event_type in model_types else feedback).append(event)
        kept = newest_of_each_type(
            merge_events(document.feedback, feedback), 2 * self.updater.window
        )
        after = replace(document, feedback=kept)
        return with_events(after, accepted, self.updater.sort_key), outcomes

    def _check_event_types(self, event_types: Iterable[str]) -> None:
        unknown = set(event_types) - set(self.event_types)
        if unknown:
            raise InputError(
                f"the model does not know the event type {', '.join(sorted(unknown))}; "
                f"use one of {', '.join(self.event_types)}"
            )
