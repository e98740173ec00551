"""Tables from a query that a database answers."""

import sqlite3

import duckdb
import pytest
from helpers.tables import SECOND

from jaxrec.data.sources import load_source
from jaxrec.data.stream import open_events
from jaxrec.errors import DataError

ROWS = [("a", 7, SECOND), ("a", 8, SECOND + 1), ("b", 7, SECOND)]
SQL = "SELECT who AS user_id, what AS item_id, moment AS timestamp FROM log ORDER BY moment, who"


@pytest.fixture(params=["sqlite", "duckdb"])
def shop(request, tmp_path):
    """A directory with a database and its description."""
    connect = sqlite3.connect if request.param == "sqlite" else duckdb.connect
    database = connect(str(tmp_path / "shop.db"))
    database.execute("CREATE TABLE log (who VARCHAR, what BIGINT, moment BIGINT)")
    database.executemany("INSERT INTO log VALUES (?, ?, ?)", ROWS)
    database.commit()
    database.close()
    describe(tmp_path, f"{request.param}:///shop.db", SQL)
    return tmp_path


def describe(directory, url: str, sql: str) -> None:
    text = f"events:\n  database: {url}\n  sql: {sql}\n"
    (directory / "dataset.yaml").write_text(text)


def test_a_query_gives_the_events(shop):
    expected = [("a", "7"), ("b", "7"), ("a", "8")]
    assert load_source(str(shop)).events.select("user_id", "item_id").rows() == expected
    blocks = list(open_events(shop, 1).blocks())
    assert [block["item_id"].to_list() for block in blocks] == [["7", "8"], ["7"]]


def test_the_url_may_come_from_the_environment(shop, monkeypatch):
    scheme = (shop / "dataset.yaml").read_text().split("database: ")[1].split(":")[0]
    monkeypatch.setenv("SHOP_URL", f"{scheme}:///{shop / 'shop.db'}")
    describe(shop, "$SHOP_URL", SQL)
    assert len(load_source(str(shop)).events) == 3


@pytest.mark.parametrize(
    ("url", "sql", "message"),
    [
        ("sqlite:///none.db", SQL, r"events \(query\): .*none\.db: no such file"),
        ("oracle://secret@host", SQL, "`database` must begin with one of duckdb, sqlite"),
        ("postgresql://me:secret@localhost:1/x", SQL, "events"),
    ],
)
def test_a_database_that_cannot_be_used_is_told_without_its_url(tmp_path, url, sql, message):
    describe(tmp_path, url, sql)
    with pytest.raises(DataError, match=message) as caught:
        load_source(str(tmp_path))
    assert "secret" not in str(caught.value)


def test_a_wrong_query_is_told(shop):
    url = (shop / "dataset.yaml").read_text().split("database: ")[1].splitlines()[0]
    describe(shop, url, "SELECT nothing FROM log")
    with pytest.raises(DataError, match=r"events \(query\): .*nothing"):
        load_source(str(shop))


def test_the_memory_limit_holds_in_a_database_file(tmp_path):
    duckdb.connect(str(tmp_path / "shop.db")).close()
    sql = f"SELECT current_setting('memory_limit') AS user_id, 1 AS item_id, {SECOND} AS timestamp"
    describe(tmp_path, "duckdb:///shop.db", sql)
    events = load_source(str(tmp_path), memory_limit="64MiB").events
    assert events["user_id"].to_list() == ["64.0 MiB"]
