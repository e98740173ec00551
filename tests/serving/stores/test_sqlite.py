"""Properties of the SQLite store alone."""

import gc
import sqlite3
from contextlib import closing

import pytest

from jaxrec.errors import StoreError
from jaxrec.serving.stores.base import UserDocument
from jaxrec.serving.stores.documents import encode
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
    document = SQLiteStore(path).load(["u"])["u"]
    assert (document.version, document.truncated) == (3, 4)


def test_a_deleted_store_object_closes_its_file(tmp_path):
    store = SQLiteStore(tmp_path / "store.db")
    connection = store.connection
    del store
    gc.collect()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute("SELECT 1")
