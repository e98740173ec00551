"""What the live service stores of a user, and the interface of a store.

A document holds a user's newest events, the state before them and the state after them. So a late
event can enter at its place in time, and a new model can compute the state again.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from jaxrec.errors import StoreError
from jaxrec.serving.stores.items import ItemStore
from jaxrec.serving.stores.retention import Retention

NEVER = -1  # time of the last event of a user without events
MAX_IMPRESSIONS = 1000  # lists kept per user
MAX_POSITIVES, MAX_UNKNOWN = 4096, 256  # items per event type, in the catalogue and outside of it
MAX_IDS_OF_A_SECOND = 1024  # events with an `event_id` of one user


class LiveEvent(NamedTuple):
    """An event of a user, at `time` seconds since 1970."""

    time: int
    item_id: str
    event_type: str
    event_id: str | None = None


@dataclass(frozen=True)
class UserDocument:
    """All that a store keeps of one user.

    States are flat: the leaves of the user's `InterestState`s, concatenated. They are float32, or
    float16 if the service runs with that precision. Every part is bounded, so a document is too: by
    twice the window of events, as much feedback of each type, `MAX_POSITIVES` + `MAX_UNKNOWN` items
    of each event type, `MAX_IDS_OF_A_SECOND` ids and two states.
    """

    user_id: str
    events: tuple[LiveEvent, ...] = ()  # the newest events, in time order
    state: Float[np.ndarray, " S"] | None = None  # after all events; None: not computed yet
    base: Float[np.ndarray, " S"] | None = None  # state before `events`; None: the initial state
    base_time: int = NEVER  # time of the last event that is in `base` or is no longer kept
    # ids of the events at `base_time` that are no longer kept, up to `MAX_IDS_OF_A_SECOND`
    base_ids: frozenset[str] = frozenset()
    num_in_base: int = 0  # how many of `events`, from the first, `base` already includes
    truncated: int = 0  # number of events that are no longer kept
    approximate: bool = False  # True: the state lacks the truncated events
    # event type -> items of all events ever recorded, each once, the last recorded one last; only
    # the newest `MAX_POSITIVES` items of the catalogue and `MAX_UNKNOWN` others
    positives: dict[str, tuple[str, ...]] = field(default_factory=dict)
    feedback: tuple[LiveEvent, ...] = ()  # events that only the strategy reads, in time order
    model: str = ""  # version of the model that computed the states
    version: int = 0  # changes with every write; 0: not stored yet
    # when the user was deleted (s): earlier events are refused. The store knows it, not the bytes.
    deleted_at: int = NEVER

    @property
    def last_time(self) -> int:
        """Time of the newest event in the state; `NEVER` without events."""
        return max(self.events[-1].time if self.events else NEVER, self.base_state[1])

    @property
    def base_state(self) -> tuple[Float[np.ndarray, " S"] | None, int]:
        """The base and the time of its last event."""
        return self.base, NEVER if self.base is None else self.base_time

    @property
    def events_after_base(self) -> tuple[LiveEvent, ...]:
        """The kept events that the base does not include."""
        return self.events[self.num_in_base :]


@dataclass(frozen=True)
class Impression:
    """A randomised list that a user was shown, for evaluation by inverse propensity scoring."""

    user_id: str
    time: int  # seconds since 1970
    model: str
    items: tuple[str, ...]
    propensities: tuple[float, ...]  # of each item at its rank, given the items above it

    @classmethod
    def of(
        cls, user_id: str, time: int, model: str, items: list[str], propensities: list[float]
    ) -> "Impression":
        """An impression of lists, as JSON has them."""
        return cls(user_id, time, model, tuple(items), tuple(propensities))


class Loaded(NamedTuple):
    """What a store holds of some users; users that it does not know are in neither part."""

    documents: dict[str, UserDocument]
    damaged: dict[str, StoreError]  # why the document of a user cannot be read


@runtime_checkable
class Store(Protocol):
    """User documents and impressions, by user id, and documents of items.

    All methods raise a StoreError when the store fails.

    Attributes:
        observe: called with the bytes of every user document that is written.
    """

    observe: Callable[[int], object]

    @property
    def items(self) -> ItemStore:
        """The items that a shop has sent."""

    def load(self, user_ids: Sequence[str]) -> Loaded:
        """Return the stored documents by user id; a damaged one harms no other user.

        A user with a tombstone and no document has an empty document of version 0.
        """

    def save(self, documents: Iterable[UserDocument]) -> list[str]:
        """Write documents, except those that were changed since they were loaded.

        A document is written if the stored version still equals its own. It is durable when this
        returns, and its version is one higher, or `first_version` for a new document. A new
        document is not written either if its user was deleted since it was loaded.

        Returns:
            User ids whose documents were not written: load them again and retry.
        """

    def delete(self, user_id: str, deleted_at: int | None = None) -> bool:
        """Delete the document and impressions of a user; return whether a document existed.

        Args:
            deleted_at: the time (s) of a tombstone, which refuses earlier events and impressions
                until it expires; it holds a keyed hash of the id. None leaves nothing.
        """

    def add_impressions(self, impressions: Iterable[Impression]) -> None:
        """Add impressions; only the newest `MAX_IMPRESSIONS` of each user stay."""

    def impressions(self, user_id: str) -> list[Impression]:
        """Return the impressions of a user, oldest first."""

    def expire(self, retention: Retention) -> int:
        """Delete what is not to be kept; return the number of deleted documents.

        The same rule deletes impressions, those of users without a document included.

        Raises:
            StoreError: too many documents would go at once; nothing is deleted.
        """

    def newest(self, count: int) -> list[str]:
        """Return ids of up to `count` users, those whose documents were written last first."""

    def count(self) -> int:
        """Return the number of documents; tombstones do not count."""

    def size(self) -> int:
        """Return the bytes that the store takes: of its files, or of the server's memory."""

    def compact(self) -> list[str]:
        """Rewrite what the store has on disk, so that nothing of deleted users remains there.

        Returns:
            What remains, and why; empty if nothing does.
        """

    def check(self) -> None:
        """Raise a StoreError if the store cannot be read and written now; waits for a second."""

    def close(self) -> None:
        """Close files and connections."""


def first_version() -> int:
    """Version of a new document: higher than any that its user had before a deletion."""
    return time.time_ns() // 1000
