"""What the live service stores of a user, and the interface of a store.

A document holds a user's newest events, the state before them and the state after them. So a late
event can enter at its place in time, and a new model can compute the state again.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

NEVER = -1  # time of the last event of a user without events
MAX_IMPRESSIONS = 1000  # lists kept per user


@dataclass(frozen=True)
class LiveEvent:
    """An event of a user, at `time` seconds since 1970."""

    time: int
    item_id: str
    event_type: str
    event_id: str | None = None


@dataclass(frozen=True)
class UserDocument:
    """All that a store keeps of one user.

    States are flat: the leaves of the user's `InterestState`s, concatenated.
    """

    user_id: str
    events: tuple[LiveEvent, ...] = ()  # the newest events, in time order
    state: Float[np.ndarray, " S"] | None = None  # after all events; None: not computed yet
    base: Float[np.ndarray, " S"] | None = None  # state before `events`; None: the initial state
    base_time: int = NEVER  # time of the last event that is in `base` or is no longer kept
    base_ids: frozenset[str] = frozenset()  # ids of the events at `base_time` no longer kept
    num_in_base: int = 0  # how many of `events`, from the first, `base` already includes
    truncated: int = 0  # number of events that are no longer kept
    approximate: bool = False  # True: the state lacks the truncated events
    # event type -> items, of all events ever recorded
    positives: dict[str, frozenset[str]] = field(default_factory=dict)
    feedback: tuple[LiveEvent, ...] = ()  # events that only the strategy reads, in time order
    model: str = ""  # version of the model that computed the states
    version: int = 0  # changes with every write; 0: not stored yet

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


@runtime_checkable
class Store(Protocol):
    """User documents and impressions, by user id.

    All methods raise a StoreError when the store fails.
    """

    def load(self, user_ids: Sequence[str]) -> dict[str, UserDocument]:
        """Return the stored documents by user id; unknown users are left out."""

    def save(self, documents: Iterable[UserDocument]) -> list[str]:
        """Write documents, except those that were changed since they were loaded.

        A document is written if the stored version still equals its own. It is durable when this
        returns, and its version is one higher, or `first_version` for a new document.

        Returns:
            User ids whose documents were not written: load them again and retry.
        """

    def delete(self, user_id: str) -> bool:
        """Delete the document and impressions of a user; return whether a document existed."""

    def add_impressions(self, impressions: Iterable[Impression]) -> None:
        """Add impressions; only the newest `MAX_IMPRESSIONS` of each user stay."""

    def impressions(self, user_id: str) -> list[Impression]:
        """Return the impressions of a user, oldest first."""

    def expire(self, before: float, max_users: int) -> int:
        """Delete documents not written since `before` (s), and the oldest beyond `max_users`.

        The same rule deletes impressions, those of users without a document included.

        Returns:
            The number of deleted documents.
        """

    def count(self) -> int:
        """Return the number of documents."""

    def close(self) -> None:
        """Close files and connections."""


def first_version() -> int:
    """Version of a new document: higher than any that its user had before a deletion."""
    return time.time_ns() // 1000
