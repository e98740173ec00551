"""Properties of the SQLite store alone."""

import gc
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest
from helpers.servers import wait, without_log

from jaxrec.errors import StoreError
from jaxrec.serving.stores.base import Impression, LiveEvent, UserDocument
from jaxrec.serving.stores.documents import encode
from jaxrec.serving.stores.retention import Retention
from jaxrec.serving.stores.sqlite import SQLiteStore


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    path = tmp_path / "nowhere" / "store.db"
    with pytest.raises(StoreError, match=r"nowhere/store\.db cannot be used as a store"):
        SQLiteStore(path)


def test_a_file_that_is_no_database_is_refused(tmp_path):
    file = tmp_path / "store.db"
    file.write_bytes(b"this is not a database" * 100)
    with pytest.raises(StoreError, match="not a database"):
        SQLiteStore(file)


def test_a_file_of_the_first_version_is_opened(tmp_path):
    path = tmp_path / "store.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(
            "CREATE TABLE shoppers (user_id TEXT PRIMARY KEY, version INTEGER, written REAL, "
            "document BLOB) WITHOUT ROWID"
        )
        row = ("u", 3, 1.0, encode(UserDocument("u", truncated=4)))
        connection.execute("INSERT INTO shoppers VALUES (?, ?, ?, ?)", row)
    document = SQLiteStore(path).load(["u"]).documents["u"]
    assert (document.version, document.truncated) == (3, 4)


def test_a_deleted_store_object_closes_its_file(tmp_path):
    store = SQLiteStore(tmp_path / "store.db")
    connection = store.connection
    del store
    gc.collect()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute("SELECT 1")


def test_reads_do_not_wait_for_a_writer(tmp_path):
    """The writer would make them wait for an hour."""
    path = tmp_path / "store.db"
    store = SQLiteStore(path, timeout=3600)
    store.save([UserDocument("u")])
    idle = SQLiteStore(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        waiting = threading.Thread(target=store.save, args=([UserDocument("v")],), daemon=True)
        waiting.start()  # a thread of this process waits for the lock as well
        wait(store.write_lock.locked)
        assert set(store.load(["u"]).documents) == {"u"}
        assert store.impressions("u") == []
        assert store.count() == 1
        with pytest.raises(StoreError, match="other threads keep writing"):
            store.check()
        with pytest.raises(StoreError, match="locked"):
            idle.check()
        other.execute("ROLLBACK")
    waiting.join(60)
    assert store.count() == 2
    store.check()


def test_threads_do_not_wait_for_a_stuck_writer_for_ever(tmp_path):
    store = SQLiteStore(tmp_path / "store.db", timeout=0.1)
    with (
        store.transaction(),
        ThreadPoolExecutor(1) as thread,
        pytest.raises(StoreError, match="other threads keep writing"),
    ):
        thread.submit(store.save, [UserDocument("u")]).result(60)


def test_only_the_owner_can_read_the_files(tmp_path, caplog):
    store = SQLiteStore(tmp_path / "store.db")
    store.save([UserDocument("u")])
    modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
    assert modes == {"store.db": 0o600, "store.db-wal": 0o600, "store.db-shm": 0o600}
    store.close()
    assert not caplog.records
    (tmp_path / "store.db").chmod(0o644)
    SQLiteStore(tmp_path / "store.db").close()
    assert "chmod 600" in caplog.text


def test_nothing_of_a_deleted_user_remains_in_the_files(tmp_path):
    store = SQLiteStore(tmp_path / "store.db")
    events = tuple(LiveEvent(n, "secret-item", "view") for n in range(3))
    content = encode(UserDocument("secret-user", events))
    for _ in range(3):
        version = store.load(["secret-user"]).documents.get("secret-user", UserDocument("")).version
        store.save([UserDocument("secret-user", events, version=version)])
    store.save([UserDocument("other")])

    def remains():
        files = b"".join(file.read_bytes() for file in tmp_path.iterdir())
        return b"secret-user" in files or content[:40] in files

    assert remains()
    store.delete("secret-user", deleted_at=9)
    wait(lambda: not remains())
    assert store.count() == 1


def test_nothing_of_many_deleted_users_remains_in_a_compacted_file(tmp_path):
    """Pages keep parts of rows that moved to other pages, which a deletion does not reach."""
    random = np.random.default_rng(0)
    ids = [f"secret-user-{number:04}" for number in random.permutation(1000)]
    with closing(SQLiteStore(tmp_path / "store.db")) as store:
        for start in range(0, len(ids), 250):
            users = ids[start : start + 250]
            sizes = random.integers(10, 300, len(users))
            states = [random.standard_normal(size).astype(np.float32) for size in sizes]
            documents = zip(users, states, strict=True)
            store.save([UserDocument(user, state=state) for user, state in documents])
            store.add_impressions([Impression(user, 1, "m", (), ()) for user in users])
        for user in ids[:200]:
            store.delete(user, deleted_at=2)
        assert store.compact() == []
        files = b"".join(file.read_bytes() for file in tmp_path.iterdir())
        assert [user for user in ids[:200] if user.encode() in files] == []
        assert ids[-1].encode() in files
        assert store.count() == 800


def test_space_is_given_back(tmp_path):
    store = SQLiteStore(tmp_path / "store.db")
    state = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    store.save([UserDocument(f"u{n}", state=state) for n in range(100)])
    wait(lambda: (tmp_path / "store.db").stat().st_size > 4_000_000)
    store.expire(Retention(before=4e9, max_users=1))
    wait(lambda: store.size() < 1_000_000)


def test_a_file_of_the_first_version_reuses_its_space(tmp_path):
    path = tmp_path / "store.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(
            "CREATE TABLE shoppers (user_id TEXT PRIMARY KEY, version INTEGER, written REAL, "
            "document BLOB) WITHOUT ROWID"
        )
    store = SQLiteStore(path)
    store.save([UserDocument(f"u{n}", truncated=n) for n in range(900)])
    assert store.expire(Retention(before=4e9, max_users=1)) == 900
    assert store.count() == 0


def test_a_check_tells_of_a_file_that_is_gone_or_damaged(tmp_path):
    path = tmp_path / "store.db"
    store = SQLiteStore(path)
    store.save([UserDocument(f"u{n}", truncated=n) for n in range(900)])
    store.check()
    without_log(store)
    content = path.read_bytes()
    path.write_bytes(b"this is not a database" * 1000)
    with pytest.raises(StoreError, match="not a database"):
        store.check()
    path.write_bytes(content)
    store.check()
    path.unlink()
    with pytest.raises(StoreError, match="unable to open"):
        store.check()
    assert not path.exists()


def test_a_check_tells_of_a_full_file(tmp_path):
    """The limit belongs to the connection, so a file system would be needed to fill the other."""
    store = SQLiteStore(":memory:")
    store.check()
    store.connection.execute("PRAGMA query_only = ON")
    with pytest.raises(StoreError, match="readonly"):
        store.check()
