"""A store in one SQLite file, for a single machine."""

import json
import logging
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from jaxrec.data.pseudonyms import keyed_hash
from jaxrec.errors import StoreError
from jaxrec.serving.stores.base import (
    MAX_IMPRESSIONS,
    NEVER,
    Impression,
    Loaded,
    UserDocument,
    first_version,
)
from jaxrec.serving.stores.cache import DocumentCache, stored
from jaxrec.serving.stores.documents import StoredRow, decode_each, encode
from jaxrec.serving.stores.retention import Retention
from jaxrec.serving.stores.sqlite_files import (
    CHECKPOINT_SECONDS,
    checkpoint_log,
    create_private,
)
from jaxrec.serving.stores.sqlite_items import SCHEMA as ITEM_SCHEMA
from jaxrec.serving.stores.sqlite_items import SQLiteItems
from jaxrec.serving.stores.sqlite_queries import HEARTBEAT, LOAD, SAVE_NEW, SCHEMA, SHOW

logger = logging.getLogger(__name__)

MEMORY = ":memory:"
READ_SECONDS = 1.0  # to wait for a lock; readers meet one only while a file is opened or closed
CHECK_SECONDS = 1.0  # that a health check waits for other writers
LOG_SECONDS = 30.0  # to wait until the write-ahead log is in the file
CHUNK = 500  # rows deleted at a time, while other writers wait
VACUUM_PAGES = 1000  # given back at a time, while other writers wait


class SQLiteStore:
    """Documents in one SQLite file; see `jaxrec.serving.stores.base.Store`.

    Several processes may share the file, and several threads the object. A write locks the file
    for some milliseconds; reads do not wait for it. A document that another process has changed
    meanwhile is not written. A new file can be read by its owner only, deleted content is
    overwritten, and the space of expired documents is given back to the file system.

    Args:
        path: of the file, created if missing; `:memory:` for a store that ends with the object.
        timeout: seconds to wait for other writers.

    Raises:
        StoreError: the file cannot be opened.
    """

    def __init__(self, path: str | Path, *, timeout: float = 5.0):
        self.path, self.timeout = str(path), timeout
        self.observe: Callable[[int], object] = lambda size: None
        self.items, self.cache = SQLiteItems(self), DocumentCache()
        self.write_lock = threading.Lock()
        self.closed, self.erased = threading.Event(), threading.Event()
        weakref.finalize(self, self.closed.set)
        try:
            self._open()
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{path} cannot be used as a store: {error}") from error

    def _open(self) -> None:
        in_memory = self.path == MEMORY
        if not in_memory:
            create_private(self.path)
        self.connection = self._connect(self.timeout)
        self.connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # before a new file has a table
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.executescript(SCHEMA + ITEM_SCHEMA)
        [(self.tombstone_key,)] = self.connection.execute("SELECT key FROM tombstone_key")
        # a database in memory belongs to one connection
        self.reader = self.connection if in_memory else self._connect(READ_SECONDS)
        self.read_lock = self.write_lock if in_memory else threading.Lock()
        self.checkpoints = threading.Thread(
            target=checkpoint_log, args=(self.path, self.closed, self.erased), daemon=True
        )
        self.checkpoints.start()

    def _connect(self, timeout: float) -> sqlite3.Connection:
        # one thread at a time uses a connection, but not always the same thread
        connection = sqlite3.connect(
            self.path, timeout=timeout, isolation_level=None, check_same_thread=False
        )
        weakref.finalize(self, connection.close)
        connection.execute("PRAGMA synchronous = FULL")  # a commit survives a power cut
        connection.execute("PRAGMA secure_delete = ON")
        # a checkpoint within a commit would delay the request by half a second
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        return connection

    def load(self, user_ids: Sequence[str]) -> Loaded:
        """See `Store.load`."""
        known = self.cache.get(user_ids)
        versions = {
            user: (known[user].version if user in known else None, self._tombstone(user))
            for user in user_ids
        }
        # one query for all users, as other threads may take turns at every call
        rows = self.rows(LOAD, json.dumps(versions, ensure_ascii=False))
        loaded = decode_each({user_id: StoredRow(*row) for user_id, *row in rows}, known)
        self.cache.put(d for d in loaded.documents.values() if d.version and d.deleted_at == NEVER)
        return loaded

    def save(self, documents: Iterable[UserDocument]) -> list[str]:
        """See `Store.save`."""
        rows = [(d, encode(d)) for d in documents]
        for _, content in rows:
            self.observe(len(content))
        with self.transaction() as connection:
            versions = [
                _write(connection, d, content, self._tombstone(d.user_id)) for d, content in rows
            ]
        results = [(d, version) for (d, _), version in zip(rows, versions, strict=True)]
        self.cache.put(stored(d, version) for d, version in results if version)
        return [d.user_id for d, version in results if not version]

    def delete(self, user_id: str, deleted_at: int | None = None) -> bool:
        """See `Store.delete`."""
        with self.transaction() as connection:
            self.cache.drop(user_id)
            connection.execute("DELETE FROM shown WHERE user_id = ?", (user_id,))
            deleted = connection.execute("DELETE FROM shoppers WHERE user_id = ?", (user_id,))
            # a tombstone of an earlier version holds the id
            query = "DELETE FROM deleted WHERE user_id = ? RETURNING time"
            times = [time for (time,) in connection.execute(query, (user_id,)).fetchall()]
            connection.executemany(
                "INSERT INTO deleted VALUES (?, ?) ON CONFLICT (user_id) "
                "DO UPDATE SET time = max(time, excluded.time)",
                [
                    (self._tombstone(user_id), time)
                    for time in (*times, deleted_at)
                    if time is not None
                ],
            )
        self.erased.set()
        return deleted.rowcount > 0

    def add_impressions(self, impressions: Iterable[Impression]) -> None:
        """See `Store.add_impressions`."""
        rows = []
        for i in impressions:
            content = json.dumps([i.model, i.items, i.propensities])
            rows.append((i.user_id, i.time, content, self._tombstone(i.user_id)))
        users = {(user_id, user_id, MAX_IMPRESSIONS) for user_id, *_ in rows}
        with self.transaction() as connection:
            connection.executemany(SHOW, rows)
            connection.executemany(
                "DELETE FROM shown WHERE user_id = ? AND rowid IN (SELECT rowid FROM shown "
                "WHERE user_id = ? ORDER BY time DESC, rowid DESC LIMIT -1 OFFSET ?)",
                users,
            )

    def impressions(self, user_id: str) -> list[Impression]:
        """See `Store.impressions`."""
        query = "SELECT time, document FROM shown WHERE user_id = ? ORDER BY time, rowid"
        rows = self.rows(query, user_id)
        return [Impression.of(user_id, seconds, *json.loads(content)) for seconds, content in rows]

    def expire(self, retention: Retention) -> int:
        """See `Store.expire`; while another process does this, nothing is done."""
        self.cache.clear()  # what other processes have deleted goes from memory, too
        lock: AbstractContextManager = nullcontext()
        if self.path != MEMORY:  # two processes that count at once would delete twice as many users
            lock = FileLock(f"{self.path}.lock", blocking=False)
        try:
            with lock:
                return self._expire(retention)
        except Timeout:
            return 0

    def _expire(self, retention: Retention) -> int:
        count, num_bytes = self.count(), self._used()
        num_old = self._number("SELECT count(*) FROM shoppers WHERE written < ?", retention.before)
        number = retention.number_to_delete(count, num_old, num_bytes)
        oldest = self.rows("SELECT user_id, written FROM shoppers ORDER BY written LIMIT ?", number)
        statement = "DELETE FROM shoppers WHERE user_id = ? AND written = ?"  # not written since
        deleted = self._delete_each(statement, oldest)
        self._expire_impressions(retention, num_bytes)
        with self.transaction() as connection:
            connection.execute("DELETE FROM deleted WHERE time < ?", (retention.tombstones_before,))
            connection.execute(
                "DELETE FROM deleted WHERE user_id IN "
                "(SELECT user_id FROM deleted ORDER BY time DESC LIMIT -1 OFFSET ?)",
                (retention.max_users,),
            )
        self._give_back()
        return deleted

    def newest(self, count: int) -> list[str]:
        """See `Store.newest`."""
        rows = self.rows("SELECT user_id FROM shoppers ORDER BY written DESC LIMIT ?", count)
        return [user_id for (user_id,) in rows]

    def count(self) -> int:
        """See `Store.count`."""
        return self._number("SELECT count(*) FROM shoppers")

    def size(self) -> int:
        """See `Store.size`."""
        if self.path == MEMORY:
            return self._used()
        files = (Path(self.path + suffix) for suffix in ("", "-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    def compact(self) -> list[str]:
        """See `Store.compact`; writers wait meanwhile."""
        with self._writing() as connection:
            connection.execute("VACUUM")  # pages keep parts of rows that moved to other pages
        if self.path == MEMORY:
            return []
        self.erased.set()
        for _ in range(int(LOG_SECONDS / CHECKPOINT_SECONDS)):
            if not self.erased.is_set():
                return []
            time.sleep(CHECKPOINT_SECONDS)
        return [f"{self.path}-wal still holds earlier content, as another process reads it"]

    def check(self) -> None:
        """See `Store.check`."""
        if self.path == MEMORY:
            with self.transaction() as connection:
                connection.execute(HEARTBEAT, (time.time(),))
            return
        address = Path(self.path).absolute().as_uri() + "?mode=rw"  # a missing file is an error
        with (
            self._writing(CHECK_SECONDS),  # SQLite's own lock is not fair
            closing(
                sqlite3.connect(address, timeout=CHECK_SECONDS, isolation_level=None, uri=True)
            ) as own,
        ):
            own.execute("PRAGMA synchronous = NORMAL")  # nobody waits for the disk
            own.execute("PRAGMA wal_autocheckpoint = 0")
            own.execute("SELECT document FROM shoppers LIMIT 1").fetchone()
            own.execute(HEARTBEAT, (time.time(),))

    def close(self) -> None:
        """Close the file."""
        self.closed.set()
        self.checkpoints.join()
        self.reader.close()
        self.connection.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit everything that the block writes, or nothing; other writers wait."""
        with self._writing() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # SQLite itself rolls back on a full disk
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _writing(self, timeout: float | None = None) -> Iterator[sqlite3.Connection]:
        if not self.write_lock.acquire(timeout=self.timeout if timeout is None else timeout):
            raise StoreError("the store fails: other threads keep writing")
        try:
            with _store_errors():
                yield self.connection
        finally:
            self.write_lock.release()

    def rows(self, query: str, *arguments: Any) -> list[tuple]:
        """The rows of a query."""
        with self.read_lock, _store_errors():
            return self.reader.execute(query, arguments).fetchall()

    def _tombstone(self, user_id: str) -> str:
        """What a tombstone holds in place of an id."""
        return keyed_hash(self.tombstone_key, user_id)

    def _number(self, query: str, *arguments: Any) -> int:
        return self.rows(query, *arguments)[0][0]

    def _used(self) -> int:
        """Bytes of the file that hold content; free pages will be given back or used again."""
        pages = self._number("PRAGMA page_count") - self._number("PRAGMA freelist_count")
        return pages * self._number("PRAGMA page_size")

    def _expire_impressions(self, retention: Retention, num_bytes: int) -> None:
        old = self.rows("SELECT rowid FROM shown WHERE time < ?", retention.before)
        self._delete_each("DELETE FROM shown WHERE rowid = ?", old)
        users = self._number("SELECT count(DISTINCT user_id) FROM shown")
        surplus = self.rows(
            "SELECT user_id FROM shown GROUP BY user_id ORDER BY max(time) DESC LIMIT -1 OFFSET ?",
            retention.most_users(users, num_bytes),
        )
        self._delete_each("DELETE FROM shown WHERE user_id = ?", surplus)

    def _delete_each(self, statement: str, rows: Sequence[tuple]) -> int:
        """Execute a DELETE for every row, some at a time; return the number of deleted rows."""
        deleted = 0
        for start in range(0, len(rows), CHUNK):
            with self.transaction() as connection:
                deleted += connection.executemany(statement, rows[start : start + CHUNK]).rowcount
        return deleted

    def _give_back(self) -> None:
        """Shrink the file by its free pages; a file of an earlier version keeps them for reuse."""
        free = self._number("PRAGMA freelist_count")
        while free:
            with self._writing() as connection:
                connection.execute(f"PRAGMA incremental_vacuum({VACUUM_PAGES})").fetchall()
            before, free = free, self._number("PRAGMA freelist_count")
            if free >= before:
                break
        self.erased.set()


def _write(
    connection: sqlite3.Connection, document: UserDocument, content: bytes, tombstone: str
) -> int:
    """Write a document; return its version, or 0 if its version or tombstone is not as stored."""
    row = (time.time(), content, document.user_id)
    if document.version:
        version = document.version + 1
        cursor = connection.execute(
            "UPDATE shoppers SET version = ?, written = ?, document = ? "
            "WHERE user_id = ? AND version = ?",
            (version, *row, document.version),
        )
    else:
        version = first_version()
        cursor = connection.execute(SAVE_NEW, (version, *row, tombstone, document.deleted_at))
    return version if cursor.rowcount == 1 else 0


@contextmanager
def _store_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(f"the store fails: {error}") from error
