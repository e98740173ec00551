"""Documents of live documents and the states that belong to their events."""

from collections.abc import Collection, Sequence
from dataclasses import replace

import jax
import numpy as np
import polars as pl
from jaxtyping import Float, Int

from jaxrec.inference.encoding import flat_states, initial_states, user_states
from jaxrec.inference.trained_model import TrainedModel
from jaxrec.models.sequence.lstm import InterestState
from jaxrec.ranking.top_k import at_least, padded
from jaxrec.serving.stores.sqlite import NEVER, LiveEvent, UserDocument, merged, newest_of_each_type
from jaxrec.types import NO_GAP, EventLog

BATCHES = (1, 8, 64, 512)  # documents folded or ranked at a time: the shapes that are compiled

Job = tuple[Float[np.ndarray, " S"] | None, int, Sequence[LiveEvent]]
"""A state (None: a newcomer's), the time of its last event, and the events to fold into it."""


class StateUpdater:
    """Folds live events by the functions that train and score in batches.

    Args:
        window: newest events of a document to keep at least.
        feedback_types: event types that a strategy reads as judgements of their items.
    """

    def __init__(self, model: TrainedModel, window: int, feedback_types: Collection[str] = ()):
        self.model, self.window, self.feedback_types = model, window, feedback_types
        self.items = model.items
        ids = model.catalog.item_ids.to_list()
        self.number_of = {item: number for number, item in enumerate(ids) if item is not None}
        self.newcomer = initial_states(model.definition, model.params, 1)

    def renewed(self, changes: Sequence[tuple[UserDocument, UserDocument]]) -> list[UserDocument]:
        """Documents with the states that belong to their events, from what they were before.

        New events behind all others are folded into the state. Otherwise, all that are kept are
        folded into the state before them, which another model's documents do not have.
        """
        kept, jobs = [], list[Job]()
        for before, after in changes:
            count = len(before.events)
            if before.model != self.model.version:
                after = replace(after, base=None, folded=0, approximate=after.truncated > 0)
                jobs.append((*after.beginning, after.events))
            elif after.events[:count] == before.events and before.state is not None:
                jobs.append((before.state, before.last_time, after.events[count:]))
            else:
                jobs.append((*after.beginning, after.unfolded))
            kept.append(after)
        documents = [
            replace(after, state=state, model=self.model.version)
            for after, state in zip(kept, self.after(jobs), strict=True)
        ]
        return self._trimmed(documents)

    def _trimmed(self, documents: Sequence[UserDocument]) -> list[UserDocument]:
        """Documents in which the events beyond two windows are folded into the base."""
        full = [s for s in documents if len(s.events) > 2 * self.window]
        old = [s.events[: -self.window] for s in full]
        jobs = [(*s.beginning, events[s.folded :]) for s, events in zip(full, old, strict=True)]
        trimmed = {
            s.user_id: self._without(s, events, base)
            for s, events, base in zip(full, old, self.after(jobs), strict=True)
        }
        return [trimmed.get(s.user_id, s) for s in documents]

    def _without(
        self, document: UserDocument, old: Sequence[LiveEvent], base: Float[np.ndarray, " S"]
    ) -> UserDocument:
        """A document whose oldest events live on in the base, and as judgements if they are."""
        base_time = max(old[-1].time, document.base_time)
        ids = {e.event_id for e in old if e.event_id is not None and e.time == base_time}
        if document.base_time == base_time:
            ids |= document.base_ids
        later = {e.item_id: e.time for e in old if e.event_type not in self.feedback_types}
        judged = [e for e in old if e.event_type in self.feedback_types]
        standing = [  # what was chosen after it was judged is judged no more
            e for e in merged(document.feedback, judged) if later.get(e.item_id, NEVER) <= e.time
        ]
        return replace(
            document,
            events=document.events[len(old) :],
            base=base,
            base_time=base_time,
            base_ids=frozenset(ids),
            folded=max(document.folded - len(old), 0),
            truncated=document.truncated + len(old),
            feedback=newest_of_each_type(standing, 2 * self.window),
        )

    def place(self, event: LiveEvent) -> tuple[int, int]:
        """What a document's events are ordered by, as those of the run were."""
        ties = self.model.config.data.ties == "item_id"
        return event.time, self.number_of.get(event.item_id, 0) if ties else 0

    def earlier(
        self, document: UserDocument, last: int
    ) -> tuple[Float[np.ndarray, " S"] | None, int, tuple[LiveEvent, ...]]:
        """A state some `last` kept events ago, or as near to that as is kept; the time of its last
        event, and the events since."""
        since = max(len(document.events) - last, document.folded)
        old, new = document.events[document.folded : since], document.events[since:]
        [state] = self.after([(*document.beginning, old)])
        return state, old[-1].time if old else document.beginning[1], new

    def after(self, jobs: Sequence[Job]) -> list[Float[np.ndarray, " S"]]:
        """The state after every job, some hundreds of jobs at a time."""
        flat: list[Float[np.ndarray, " S"]] = []
        for begin in range(0, len(jobs), BATCHES[-1]):
            part = jobs[begin : begin + BATCHES[-1]]
            before = self.states([state for state, _, _ in part])
            last_times = np.array([last_time for _, last_time, _ in part])
            after = self.fold(self.log([events for _, _, events in part]), before, last_times)
            flat += list(flat_states(after))
        return flat

    def fold(
        self,
        log: EventLog,
        before: tuple[InterestState, ...] | None,
        last_times: Int[np.ndarray, " U"] | None,
    ) -> tuple[InterestState, ...]:
        """States after the events of a log; newcomers' before them for None."""
        model = self.model
        return user_states(
            model.definition,
            model.params,
            self.items,
            log,
            users=at_least(log.num_users, BATCHES),
            before=before,
            last_times=last_times,
        )

    def read(
        self,
        states: tuple[InterestState, ...],
        event_type: int | None = None,
        time_since_last: Sequence[int] | Int[np.ndarray, " U"] = (),
    ) -> Float[np.ndarray, "Q 1+ED"]:
        """User vectors of U states; rows of no meaning follow them.

        Args:
            event_type: of event that is asked for; by default the one that the run was to predict.
            time_since_last: seconds since the last event, for a model that is told it.
        """
        size = at_least(len(jax.tree.leaves(states)[0]), BATCHES)
        seconds = padded(np.array(time_since_last, np.int32), size, fill=NO_GAP)
        whole = jax.tree.map(lambda leaf: padded(leaf, size), states)
        return self.model.user_vectors(whole, event_type, seconds)

    def log(
        self, histories: Sequence[Sequence[LiveEvent]], event_types: tuple[str, ...] = ()
    ) -> EventLog:
        """Histories as a log of the event types that the model knows, or of others."""
        event_types = event_types or self.model.trained.event_type_names
        # a model may know fewer event_types than the one before it
        histories = [[e for e in history if e.event_type in event_types] for history in histories]
        events = [event for history in histories for event in history]
        return EventLog(
            user_ids=pl.Series([str(number) for number in range(len(histories))], dtype=pl.String),
            event_type_names=event_types,
            offsets=np.cumsum([0, *map(len, histories)]),
            items=np.array([self.number_of.get(e.item_id, 0) for e in events], np.int32),
            event_types=np.array([event_types.index(e.event_type) for e in events], np.int32),
            times=np.array([e.time for e in events], np.int64),
            has_time=self.model.config.data.time == "timestamp",
        )

    def states(self, flat: Sequence[Float[np.ndarray, " S"] | None]) -> tuple[InterestState, ...]:
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
