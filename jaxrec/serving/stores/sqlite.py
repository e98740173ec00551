"""A store in one SQLite file, for a single machine."""

import json
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from jaxrec.errors import StoreError
from jaxrec.serving.stores.base import MAX_IMPRESSIONS, Impression, UserDocument, first_version
from jaxrec.serving.stores.documents import decode, decode_impression, encode

CHECKPOINT_SECONDS = 1.0
LOG_PAGES = 25_000  # 100 MB

# Tables keep the names that they had in the first version, so that existing files can be opened.
SCHEMA = """
CREATE TABLE IF NOT EXISTS shoppers
    (user_id TEXT PRIMARY KEY, version INTEGER, written REAL, document BLOB) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_age ON shoppers (written);
CREATE TABLE IF NOT EXISTS shown (user_id TEXT, time INTEGER, document TEXT);
CREATE INDEX IF NOT EXISTS shown_to ON shown (user_id, time);
CREATE INDEX IF NOT EXISTS shown_at ON shown (time);
"""


class SQLiteStore:
    """Documents in one SQLite file; see `jaxrec.serving.stores.base.Store`.

    Several processes may share the file. A write locks it for some milliseconds; a document that
    another process has changed meanwhile is not written.

    Args:
        path: of the file, created if missing.
        timeout: seconds to wait for a lock.

    Raises:
        StoreError: the file cannot be opened.
    """

    def __init__(self, path: str | Path, *, timeout: float = 5.0):
        try:
            self._open(path, timeout)
        except sqlite3.Error as error:
            raise StoreError(f"{path} cannot be used as a store: {error}") from error

    def _open(self, path: str | Path, timeout: float) -> None:
        # one thread at a time uses the connection, but not always the same thread
        self.connection = sqlite3.connect(
            path, timeout=timeout, isolation_level=None, check_same_thread=False
        )
        weakref.finalize(self, self.connection.close)
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = FULL")  # a commit survives a power cut
        # a checkpoint within a commit would delay the request by half a second
        self.connection.execute("PRAGMA wal_autocheckpoint = 0")
        self.closed = threading.Event()
        weakref.finalize(self, self.closed.set)
        self.checkpoints = threading.Thread(
            target=_checkpoint_log, args=(path, self.closed), daemon=True
        )
        self.checkpoints.start()
        self.connection.executescript(SCHEMA)

    def load(self, user_ids: Sequence[str]) -> dict[str, UserDocument]:
        """See `Store.load`."""
        query = "SELECT version, document FROM shoppers WHERE user_id = ?"
        with _store_errors():
            rows = {u: self.connection.execute(query, (u,)).fetchone() for u in user_ids}
        return {user_id: decode(user_id, *row) for user_id, row in rows.items() if row}

    def save(self, documents: Iterable[UserDocument]) -> list[str]:
        """See `Store.save`."""
        with self.transaction() as connection:
            return [d.user_id for d in documents if not self._write(connection, d)]

    def delete(self, user_id: str) -> bool:
        """See `Store.delete`."""
        with self.transaction() as connection:
            connection.execute("DELETE FROM shown WHERE user_id = ?", (user_id,))
            deleted = connection.execute("DELETE FROM shoppers WHERE user_id = ?", (user_id,))
            return deleted.rowcount > 0

    def add_impressions(self, impressions: Iterable[Impression]) -> None:
        """See `Store.add_impressions`."""
        rows = [
            (i.user_id, i.time, json.dumps([i.model, i.items, i.propensities])) for i in impressions
        ]
        users = {(user_id, user_id, MAX_IMPRESSIONS) for user_id, _, _ in rows}
        with self.transaction() as connection:
            connection.executemany("INSERT INTO shown VALUES (?, ?, ?)", rows)
            connection.executemany(
                "DELETE FROM shown WHERE user_id = ? AND rowid IN (SELECT rowid FROM shown "
                "WHERE user_id = ? ORDER BY time DESC, rowid DESC LIMIT -1 OFFSET ?)",
                users,
            )

    def impressions(self, user_id: str) -> list[Impression]:
        """See `Store.impressions`."""
        query = "SELECT time, document FROM shown WHERE user_id = ? ORDER BY time, rowid"
        with _store_errors():
            rows = self.connection.execute(query, (user_id,)).fetchall()
        return [decode_impression(user_id, *row) for row in rows]

    def expire(self, before: float, max_users: int) -> int:
        """See `Store.expire`."""
        with self.transaction() as connection:
            connection.execute("DELETE FROM shown WHERE time < ?", (before,))
            connection.execute(
                "DELETE FROM shown WHERE user_id IN (SELECT user_id FROM shown "
                "GROUP BY user_id ORDER BY max(time) DESC LIMIT -1 OFFSET ?)",
                (max_users,),
            )
            old = connection.execute("DELETE FROM shoppers WHERE written < ?", (before,)).rowcount
            surplus = connection.execute(
                "DELETE FROM shoppers WHERE user_id IN "
                "(SELECT user_id FROM shoppers ORDER BY written DESC LIMIT -1 OFFSET ?)",
                (max_users,),
            ).rowcount
            return old + surplus

    def count(self) -> int:
        """See `Store.count`."""
        with _store_errors():
            return self.connection.execute("SELECT count(*) FROM shoppers").fetchone()[0]

    def close(self) -> None:
        """Close the file."""
        self.closed.set()
        self.checkpoints.join()
        self.connection.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit everything that the block writes, or nothing; other writers wait."""
        with _store_errors():
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield self.connection
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:  # SQLite itself rolls back on a full disk
                    self.connection.execute("ROLLBACK")
                raise

    @staticmethod
    def _write(connection: sqlite3.Connection, document: UserDocument) -> bool:
        """Write a document; return False if its version is not the stored one."""
        row = (time.time(), encode(document), document.user_id)
        if document.version:
            cursor = connection.execute(
                "UPDATE shoppers SET version = version + 1, written = ?, document = ? "
                "WHERE user_id = ? AND version = ?",
                (*row, document.version),
            )
        else:
            cursor = connection.execute(
                "INSERT OR IGNORE INTO shoppers (version, written, document, user_id) "
                "VALUES (?, ?, ?, ?)",
                (first_version(), *row),
            )
        return cursor.rowcount == 1


def _checkpoint_log(path: str | Path, closed: threading.Event) -> None:
    """Move the write-ahead log into the file every second, until the store is closed."""
    connection = sqlite3.connect(path, isolation_level=None)
    mode = "PASSIVE"
    while not closed.wait(CHECKPOINT_SECONDS):
        with suppress(sqlite3.Error):  # another process holds the file, or the disk is full
            pages = connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()[1]
            # RESTART makes writers wait once, so use it only where the log has grown long
            mode = "RESTART" if pages > LOG_PAGES else "PASSIVE"
    connection.close()


@contextmanager
def _store_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(f"the store fails: {error}") from error
