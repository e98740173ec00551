"""Where live documents are kept: one document each, replaced only by whoever read it last.

A document holds a document's newest events, the state before them and the state after them, so
that a late event can be folded in its place, and a new model can rebuild the state.
"""

import json
import sqlite3
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from jaxrec.errors import StoreError

NEVER = -1
CHECKPOINT_SECONDS = 1.0
LOG_PAGES = 25_000  # 100 MB
MAX_IMPRESSIONS = 1000  # lists kept of a user


@dataclass(frozen=True)
class LiveEvent:
    """What a document did, at `time` seconds since the epoch."""

    time: int
    item_id: str
    event_type: str
    event_id: str | None = None


TIME = attrgetter("time")


@dataclass(frozen=True)
class UserDocument:
    """A document of the store.

    States are flat: the leaves of a user's `InterestState`s one after another.
    """

    user_id: str
    events: tuple[LiveEvent, ...] = ()  # the newest, in time order
    state: Float[np.ndarray, " S"] | None = None  # after all events; None of a newcomer
    base: Float[np.ndarray, " S"] | None = None  # before `events`; None of a newcomer
    base_time: int = NEVER  # of the last event that is no longer kept, or is in `base`
    base_ids: frozenset[str] = frozenset()  # event ids of that time that are no longer kept
    folded: int = 0  # of `events`, those that `base` has folded
    truncated: int = 0  # events that are no longer kept
    approximate: bool = False  # the state lacks the truncated events
    positives: dict[str, frozenset[str]] = field(
        default_factory=dict
    )  # event_type -> items, of all events
    feedback: tuple[LiveEvent, ...] = ()  # judgements beside `events`, in time order
    model: str = ""  # whose states these are
    version: int = 0  # another one whenever the document is written; 0 of a newcomer

    @property
    def last_time(self) -> int:
        """Of the newest event that the state has folded; negative without events."""
        return max(self.events[-1].time if self.events else NEVER, self.beginning[1])

    @property
    def beginning(self) -> tuple[Float[np.ndarray, " S"] | None, int]:
        """The base, and the time of the last event that it has folded."""
        return self.base, NEVER if self.base is None else self.base_time

    @property
    def unfolded(self) -> tuple[LiveEvent, ...]:
        """The kept events that the base has not folded."""
        return self.events[self.folded :]


@dataclass(frozen=True)
class Impression:
    """A list that chance has had a part in, for evaluation by inverse propensities."""

    user_id: str
    time: int  # seconds since the epoch
    model: str
    items: tuple[str, ...]
    propensities: tuple[float, ...]  # of every item at its place, given those before it


class Store(Protocol):
    """Documents by user id. All methods raise a StoreError when the store fails."""

    def load(self, user_ids: Sequence[str]) -> dict[str, UserDocument]:
        """The documents there are of some users."""

    def save(self, documents: Iterable[UserDocument]) -> list[str]:
        """Write all documents whose version is still the one stored; the other users' ids.

        What is not among them is durable when this returns, with another version: one higher,
        or `first_version` for a document that was not there.
        """

    def forget(self, user_id: str) -> bool:
        """Delete all that is kept of a user; whether there was anything."""

    def show(self, lists: Iterable[Impression]) -> None:
        """Keep what was shown: the newest `MAX_IMPRESSIONS` lists of a user."""

    def shown(self, user_id: str) -> list[Impression]:
        """What was shown to a user, oldest first."""

    def expire(self, before: float, most: int) -> int:
        """Delete users not written since `before` (s), and the stalest beyond `most`; how many.

        What was shown is deleted by the same rule, of users who never did anything as well.
        """

    def count(self) -> int:
        """Users that are kept."""

    def close(self) -> None:
        """Let go of files and connections."""


class SQLiteStore:
    """Documents in one SQLite file, for a single machine.

    Several processes may share it: a write holds the file for some milliseconds, and one that
    finds a document changed is refused that document.

    Args:
        path: of the file, which is made if it is not there.
        patience: seconds to wait for another process.
    """

    def __init__(self, path: str | Path, *, patience: float = 5.0):
        try:
            self._open(path, patience)
        except sqlite3.Error as error:
            raise StoreError(f"{path} cannot be used as a store: {error}") from error

    def _open(self, path: str | Path, patience: float) -> None:
        # one thread at a time uses it, though not always the same
        self.connection = sqlite3.connect(
            path, timeout=patience, isolation_level=None, check_same_thread=False
        )
        weakref.finalize(self, self.connection.close)
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = FULL")  # a commit survives a power cut
        # a checkpoint within a commit would keep documents waiting for half a second
        self.connection.execute("PRAGMA wal_autocheckpoint = 0")
        self.closed = threading.Event()
        weakref.finalize(self, self.closed.set)
        self.checkpoints = threading.Thread(
            target=_checkpoint, args=(path, self.closed), daemon=True
        )
        self.checkpoints.start()
        self.connection.execute(
            "CREATE TABLE IF NOT EXISTS documents (user_id TEXT PRIMARY KEY, version INTEGER, "
            "written REAL, document BLOB) WITHOUT ROWID"
        )
        self.connection.execute("CREATE INDEX IF NOT EXISTS by_age ON documents (written)")
        self.connection.execute(
            "CREATE TABLE IF NOT EXISTS shown (user_id TEXT, time INTEGER, document TEXT)"
        )
        self.connection.execute("CREATE INDEX IF NOT EXISTS shown_to ON shown (user_id, time)")
        self.connection.execute("CREATE INDEX IF NOT EXISTS shown_at ON shown (time)")

    def load(self, user_ids: Sequence[str]) -> dict[str, UserDocument]:
        """See `Store.load`."""
        query = "SELECT version, document FROM documents WHERE user_id = ?"
        with _told():
            rows = {u: self.connection.execute(query, (u,)).fetchone() for u in user_ids}
        return {user_id: decode(user_id, *row) for user_id, row in rows.items() if row}

    def save(self, documents: Iterable[UserDocument]) -> list[str]:
        """See `Store.save`."""
        with self.transaction() as connection:
            return [s.user_id for s in documents if not self._write(connection, s)]

    def forget(self, user_id: str) -> bool:
        """See `Store.forget`."""
        with self.transaction() as connection:
            connection.execute("DELETE FROM shown WHERE user_id = ?", (user_id,))
            deleted = connection.execute("DELETE FROM documents WHERE user_id = ?", (user_id,))
            return deleted.rowcount > 0

    def show(self, lists: Iterable[Impression]) -> None:
        """See `Store.show`."""
        rows = [(s.user_id, s.time, json.dumps([s.model, s.items, s.propensities])) for s in lists]
        users = {(user_id, user_id, MAX_IMPRESSIONS) for user_id, _, _ in rows}
        with self.transaction() as connection:
            connection.executemany("INSERT INTO shown VALUES (?, ?, ?)", rows)
            connection.executemany(
                "DELETE FROM shown WHERE user_id = ? AND rowid IN (SELECT rowid FROM shown "
                "WHERE user_id = ? ORDER BY time DESC, rowid DESC LIMIT -1 OFFSET ?)",
                users,
            )

    def shown(self, user_id: str) -> list[Impression]:
        """See `Store.shown`."""
        query = "SELECT time, document FROM shown WHERE user_id = ? ORDER BY time, rowid"
        with _told():
            rows = self.connection.execute(query, (user_id,)).fetchall()
        return [as_impression(user_id, time, document) for time, document in rows]

    def expire(self, before: float, most: int) -> int:
        """See `Store.expire`."""
        with self.transaction() as connection:
            connection.execute("DELETE FROM shown WHERE time < ?", (before,))
            connection.execute(
                "DELETE FROM shown WHERE user_id IN (SELECT user_id FROM shown "
                "GROUP BY user_id ORDER BY max(time) DESC LIMIT -1 OFFSET ?)",
                (most,),
            )
            old = connection.execute("DELETE FROM documents WHERE written < ?", (before,)).rowcount
            surplus = connection.execute(
                "DELETE FROM documents WHERE user_id IN "
                "(SELECT user_id FROM documents ORDER BY written DESC LIMIT -1 OFFSET ?)",
                (most,),
            ).rowcount
            return old + surplus

    def count(self) -> int:
        """See `Store.count`."""
        with _told():
            return self.connection.execute("SELECT count(*) FROM documents").fetchone()[0]

    def close(self) -> None:
        """Let go of the file."""
        self.closed.set()
        self.checkpoints.join()
        self.connection.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Everything or nothing; other writers wait."""
        with _told():
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield self.connection
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:  # a full disk has rolled back by itself
                    self.connection.execute("ROLLBACK")
                raise

    @staticmethod
    def _write(connection: sqlite3.Connection, document: UserDocument) -> bool:
        row = (time.time(), encode(document), document.user_id)
        if document.version:
            return (
                connection.execute(
                    "UPDATE documents SET version = version + 1, written = ?, document = ? "
                    "WHERE user_id = ? AND version = ?",
                    (*row, document.version),
                ).rowcount
                == 1
            )
        return (
            connection.execute(
                "INSERT OR IGNORE INTO documents (version, written, document, user_id) "
                "VALUES (?, ?, ?, ?)",
                (first_version(), *row),
            ).rowcount
            == 1
        )


def first_version() -> int:
    """Of a new document: none that one of the same user had before it was deleted."""
    return time.time_ns() // 1000


def open_store(address: str | Path) -> Store:
    """The store at a path (SQLite) or a redis:// address.

    Raises:
        ValueError: a package is missing.
        StoreError: the store cannot be opened.
    """
    if not str(address).startswith(("redis://", "rediss://", "unix://")):
        return SQLiteStore(address)
    try:
        from jaxrec.serving.stores.redis import RedisStore
    except ImportError as error:
        raise ValueError(f"{address} needs more: pip install 'jaxrec[redis]' ({error})") from error
    return RedisStore(str(address))


def _checkpoint(path: str | Path, closed: threading.Event) -> None:
    """Move the log into the file again and again, beside who writes, until the store is closed."""
    connection = sqlite3.connect(path, isolation_level=None)
    mode = "PASSIVE"
    while not closed.wait(CHECKPOINT_SECONDS):
        with suppress(sqlite3.Error):  # another process is at it, or the disk is full
            pages = connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()[1]
            # the log begins anew where nobody writes meanwhile; else writers wait for it once
            mode = "RESTART" if pages > LOG_PAGES else "PASSIVE"
    connection.close()


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(f"the store fails: {error}") from error


def as_impression(user_id: str, time: int, document: str | bytes) -> Impression:
    """A kept list from the JSON of model, items and propensities."""
    model, items, propensities = json.loads(document)
    return Impression(user_id, time, model, tuple(items), tuple(propensities))


def encode(document: UserDocument) -> bytes:
    """A document as bytes: a line of JSON, then the states as little-endian float32."""
    states = [s for s in (document.state, document.base) if s is not None]
    head = {
        "events": [_plain(event) for event in document.events],
        "feedback": [_plain(event) for event in document.feedback],
        "has_state": document.state is not None,
        "has_base": document.base is not None,
        "base_time": document.base_time,
        "base_ids": sorted(document.base_ids),
        "folded": document.folded,
        "truncated": document.truncated,
        "approximate": document.approximate,
        "positives": {
            event_type: sorted(items) for event_type, items in document.positives.items()
        },
        "model": document.model,
    }
    text = json.dumps(head, ensure_ascii=False, separators=(",", ":"))
    return text.encode() + b"\n" + b"".join(s.astype("<f4").tobytes() for s in states)


def decode(user_id: str, version: int, document: bytes) -> UserDocument:
    """The inverse of `encode`.

    Raises:
        StoreError: the document is not one of `encode`.
    """
    try:
        return _decoded(user_id, version, document)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise StoreError(f"what is kept of {user_id!r} cannot be read: {error}") from error


def _decoded(user_id: str, version: int, document: bytes) -> UserDocument:
    text, _, numbers = document.partition(b"\n")
    head: dict[str, Any] = json.loads(text)
    names = [name for name in ("state", "base") if head.pop(f"has_{name}")]
    states: Any = np.frombuffer(numbers, "<f4").reshape(max(len(names), 1), -1)
    return UserDocument(
        user_id,
        events=tuple(LiveEvent(*event) for event in head.pop("events")),
        feedback=tuple(LiveEvent(*event) for event in head.pop("feedback", ())),
        base_ids=frozenset(head.pop("base_ids", ())),
        positives={
            event_type: frozenset(items) for event_type, items in head.pop("positives").items()
        },
        version=version,
        **dict(zip(names, states, strict=False)),
        **head,
    )


def with_events(
    document: UserDocument, events: Sequence[LiveEvent], place: Callable[[LiveEvent], Any] = TIME
) -> UserDocument:
    """A document with more events for the model, each in its place."""
    positives = dict(document.positives)
    for event_type in {event.event_type for event in events}:
        items = {event.item_id for event in events if event.event_type == event_type}
        positives[event_type] = positives.get(event_type, frozenset()) | items
    behind = merged(document.unfolded, events, place)  # what is folded stays before what is not
    return replace(
        document, events=document.events[: document.folded] + behind, positives=positives
    )


def merged(
    kept: Sequence[LiveEvent],
    arrived: Sequence[LiveEvent],
    place: Callable[[LiveEvent], Any] = TIME,
) -> tuple[LiveEvent, ...]:
    """Events in the order of their places, those that arrived later behind among equals."""
    return tuple(sorted((*kept, *arrived), key=place))


def newest_of_each_type(events: Sequence[LiveEvent], count: int) -> tuple[LiveEvent, ...]:
    """The newest events of every event type: a flood of one must not wash the others out."""
    seen, kept = Counter[str](), list[LiveEvent]()
    for event in reversed(events):
        seen[event.event_type] += 1
        if seen[event.event_type] <= count:
            kept.append(event)
    return tuple(reversed(kept))


def _plain(event: LiveEvent) -> list:
    return [event.time, event.item_id, event.event_type, event.event_id]
