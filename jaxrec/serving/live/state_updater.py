"""Brings the states in users' documents up to date with their events."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from jaxrec.inference.encoding import encode_users, initial_states, update_states
from jaxrec.inference.trained_model import TrainedModel
from jaxrec.models.inputs import Events
from jaxrec.ranking.top_k import at_least, padded
from jaxrec.serving.stores.base import NEVER, LiveEvent, UserDocument
from jaxrec.serving.stores.documents import merge_events, newest_of_each_type
from jaxrec.types import MAX_GAP, NO_GAP, EventLog

Precision = Literal["float32", "float16"]

BATCHES = (1, 8, 16, 32, 64, 512)  # users at a time: the shapes that are compiled


class Update(NamedTuple):
    """A state and the events to read into it."""

    state: Float[np.ndarray, " S"] | None  # None: of a new user
    last_time: int  # of the last event that the state has seen
    events: Sequence[LiveEvent]


class StateUpdater:
    """Reads live events into states, with the functions of training and batch scoring.

    Args:
        window: the least number of newest events that a document keeps.
        feedback_types: event types that a strategy reads as feedback on their items.
        precision: of the states in documents; float16 halves them and rounds them at every event.
    """

    def __init__(
        self,
        model: TrainedModel,
        window: int,
        feedback_types: Collection[str] = (),
        precision: Precision = "float32",
    ):
        self.model, self.window, self.feedback_types = model, window, feedback_types
        self.precision = precision
        self.items = model.encoder.items
        ids = model.catalog.item_ids.to_list()
        self.item_number = {item: number for number, item in enumerate(ids) if item is not None}
        names = model.artifacts.event_type_names
        self.event_type_number = {name: number for number, name in enumerate(names)}
        self.new_user = np.asarray(initial_states(model.model, 1))[0]

    def fits(self, document: UserDocument) -> bool:
        """Whether the states of a document have the size of this model's."""
        states = [state for state in (document.state, document.base) if state is not None]
        return all(len(state) == len(self.new_user) for state in states)

    def refresh(self, changes: Sequence[tuple[UserDocument, UserDocument]]) -> list[UserDocument]:
        """Documents with the states that belong to their events.

        New events behind all others are read into the state. Otherwise all kept events are read
        into the state before them (`base`); documents of another model lack that state.

        Args:
            changes: each document before and after its events changed.
        """
        documents, updates = [], list[Update]()
        for before, after in changes:
            count = len(before.events)
            if before.model != self.model.version:
                after = replace(after, base=None, num_in_base=0, approximate=after.truncated > 0)
                updates.append(Update(*after.base_state, after.events))
            elif after.events[:count] == before.events and before.state is not None:
                updates.append(Update(before.state, before.last_time, after.events[count:]))
            else:
                updates.append(Update(*after.base_state, after.events_after_base))
            documents.append(after)
        return self._truncate(
            [
                replace(document, state=state, model=self.model.version)
                for document, state in zip(documents, self.apply(updates), strict=True)
            ]
        )

    def _truncate(self, documents: Sequence[UserDocument]) -> list[UserDocument]:
        """Move the oldest events of documents with more than two windows into `base`."""
        full = [d for d in documents if len(d.events) > 2 * self.window]
        oldest = [d.events[: -self.window] for d in full]
        updates = [
            Update(*d.base_state, events[d.num_in_base :])
            for d, events in zip(full, oldest, strict=True)
        ]
        truncated = {
            d.user_id: self._without(d, events, base)
            for d, events, base in zip(full, oldest, self.apply(updates), strict=True)
        }
        return [truncated.get(d.user_id, d) for d in documents]

    def _without(
        self, document: UserDocument, oldest: Sequence[LiveEvent], base: Float[np.ndarray, " S"]
    ) -> UserDocument:
        """A document whose oldest events live on in `base`, and as feedback where they are."""
        base_time = max(oldest[-1].time, document.base_time)
        ids = {e.event_id for e in oldest if e.event_id is not None and e.time == base_time}
        if document.base_time == base_time:
            ids |= document.base_ids
        feedback = [e for e in oldest if e.event_type in self.feedback_types]
        last_choice = {e.item_id: e.time for e in oldest if e.event_type not in self.feedback_types}
        valid_feedback = [  # a later choice of the item makes feedback void
            e
            for e in merge_events(document.feedback, feedback)
            if last_choice.get(e.item_id, NEVER) <= e.time
        ]
        return replace(
            document,
            events=document.events[len(oldest) :],
            base=base,
            base_time=base_time,
            base_ids=frozenset(ids),
            num_in_base=max(document.num_in_base - len(oldest), 0),
            truncated=document.truncated + len(oldest),
            feedback=newest_of_each_type(valid_feedback, 2 * self.window),
        )

    def sort_key(self, event: LiveEvent) -> tuple[int, int]:
        """The order of a user's events, as in training."""
        by_item = self.model.config.data.ties == "item_id"
        return event.time, self.item_number.get(event.item_id, 0) if by_item else 0

    def earlier_state(self, document: UserDocument, last: int) -> Update:
        """A state about `last` kept events ago, as far back as is kept, and the events since."""
        since = max(len(document.events) - last, document.num_in_base)
        older, newer = document.events[document.num_in_base : since], document.events[since:]
        [state] = self.apply([Update(*document.base_state, older)])
        return Update(state, older[-1].time if older else document.base_state[1], newer)

    def apply(self, updates: Sequence[Update]) -> list[Float[np.ndarray, " S"]]:
        """The state after each update, a batch of updates at a time."""
        after: list[Float[np.ndarray, " S"]] = []  # list[...]() would build the type
        for start in range(0, len(updates), BATCHES[-1]):
            batch = updates[start : start + BATCHES[-1]]
            single = all(len(update.events) <= 1 for update in batch)
            states = self._after_one(batch) if single else self._after_many(batch)
            after += list(self.rounded(states))
        return after

    def _after_one(self, updates: Sequence[Update]) -> Float[np.ndarray, "U S"]:
        """States after at most one event each: one compiled step, without an event log."""
        before = self.stack([update.state for update in updates])
        before = padded(before, at_least(len(updates), BATCHES))
        rows, event_types = np.zeros((2, len(before), 1), np.int32)
        gaps = np.full((len(before), 1), NO_GAP, np.int32)
        valid = np.zeros((len(before), 1), bool)
        has_time = self.model.config.data.time == "timestamp"
        for row, (_, last_time, events) in enumerate(updates):
            for event in events:
                if event.event_type not in self.event_type_number:
                    continue  # a document may hold event types that this model does not know
                rows[row] = self.item_number.get(event.item_id, 0)
                event_types[row] = self.event_type_number[event.event_type]
                valid[row] = True
                if has_time and last_time >= 0:
                    gaps[row] = min(max(event.time - last_time, 0), MAX_GAP)
        # JAX may copy an array of NumPy, so it gets the vectors of these items alone
        places = np.arange(len(rows), dtype=np.int32)[:, None]
        events_of_users = Events(places, event_types, gaps)
        items = self.items[rows[:, 0]]
        after = update_states(self.model.model, before, items, events_of_users, valid)
        return np.asarray(after)[: len(updates)]

    def _after_many(self, updates: Sequence[Update]) -> Float[np.ndarray, "U S"]:
        """States after any number of events each, read in proportion to them."""
        log = self.event_log([update.events for update in updates])
        return encode_users(
            self.model.model,
            self.items,
            log,
            users=at_least(len(updates), BATCHES),
            before=self.stack([update.state for update in updates]),
            last_times=np.array([update.last_time for update in updates]),
        )

    def rounded(self, states: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """States in the precision of documents."""
        largest = np.finfo(self.precision).max
        return np.clip(states, -largest, largest).astype(self.precision)

    def update(self, log: EventLog) -> Float[np.ndarray, "U S"]:
        """States of new users after the events of a log."""
        return encode_users(
            self.model.model, self.items, log, users=at_least(log.num_users, BATCHES)
        )

    def user_vectors(
        self,
        states: Float[np.ndarray, "U S"],
        event_type: int | None = None,
        time_since_last: Int[np.ndarray, " U"] | None = None,
    ) -> Float[np.ndarray, "Q F"]:
        """User vectors of U states, followed by rows of padding.

        Args:
            event_type: the event type to predict; by default the run's.
            time_since_last: seconds since the last event, for a model that reads it.
        """
        size = at_least(len(states), BATCHES)
        seconds = np.zeros(0, np.int32) if time_since_last is None else time_since_last
        return self.model.encoder.vectors(
            padded(states, size), event_type, padded(seconds.astype(np.int32), size, fill=NO_GAP)
        )

    def seconds_since(
        self, documents: Sequence[UserDocument], now: Int[np.ndarray, " n"] | int | None
    ) -> Int[np.ndarray, " n"] | None:
        """Seconds from the last event of each document until `now`.

        Returns:
            None where the model does not read them, or `now` is not known.
        """
        config = self.model.config
        if now is None or config.data.time != "timestamp" or not config.model.time_since_last:
            return None
        last = np.array([document.last_time for document in documents])
        return np.where(last < 0, NO_GAP, np.clip(now - last, 0, MAX_GAP)).astype(np.int32)

    def event_log(
        self, histories: Sequence[Sequence[LiveEvent]], event_types: tuple[str, ...] = ()
    ) -> EventLog:
        """Histories as a log of the given event types; by default those of the model."""
        names = event_types or self.model.artifacts.event_type_names
        # a document may hold event types that this model does not know
        histories = [[e for e in history if e.event_type in names] for history in histories]
        events = [event for history in histories for event in history]
        return EventLog(
            user_ids=pl.Series([str(number) for number in range(len(histories))], dtype=pl.String),
            event_type_names=names,
            offsets=np.cumsum([0, *map(len, histories)]),
            items=np.array([self.item_number.get(e.item_id, 0) for e in events], np.int32),
            event_types=np.array([names.index(e.event_type) for e in events], np.int32),
            times=np.array([e.time for e in events], np.int64),
            has_time=self.model.config.data.time == "timestamp",
        )

    def stack(self, states: Sequence[Float[np.ndarray, " S"] | None]) -> Float[np.ndarray, "U S"]:
        """States of users as one batch; None is the state of a new user."""
        rows = [self.new_user if state is None else state for state in states]
        return np.stack(rows, dtype=np.float32)
