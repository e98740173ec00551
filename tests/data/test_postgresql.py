"""Three tables of a real PostgreSQL server, from `validate` to `recommend`."""

import polars as pl
import pytest
from helpers.postgres import PostgresServer

from jaxrec import cli
from jaxrec.data.opener import open_table
from jaxrec.data.sources import load_source
from jaxrec.data.spec import TableSpec
from jaxrec.data.stream import open_events
from jaxrec.errors import DataError

TABLES = """
CREATE TYPE action AS ENUM ('view', 'buy');
CREATE TABLE log (who bigint, sku numeric(20, 0), at timestamptz, what action);
INSERT INTO log
    SELECT u, i, timestamptz '2024-01-01 00:00:00+00' + (20 * u + i) * interval '1 hour',
        (CASE WHEN i % 3 = 0 THEN 'buy' ELSE 'view' END)::action
    FROM generate_series(1, 12) u, generate_series(1, 9) i;
CREATE TABLE goods (id numeric(20, 0), name varchar(80), maker char(12), path text[],
    cost numeric(10, 2), weight numeric, active boolean, delivery interval, uid uuid);
INSERT INTO goods
    SELECT i, 'Item ' || i, 'maker' || i % 3, ARRAY['Shoes', 'S' || i % 2], 1.5 * i, 2.5, i % 2 = 0,
        interval '2 days', '123e4567-e89b-12d3-a456-426614174000'
    FROM generate_series(1, 12) i;
CREATE TABLE links (head text, relation text, tail text);
INSERT INTO links SELECT i, 'goes_with', i % 12 + 1 FROM generate_series(1, 12) i;
"""
DESCRIPTION = """
events:
  database: $SHOP_URL
  sql: SELECT who AS user_id, sku AS item_id, at AS timestamp, what AS event FROM log;
items:
  database: $SHOP_URL
  sql: |
    SELECT id AS item_id, name AS title, maker AS brand, path AS categories, cost AS price,
      weight, active, delivery, uid
    FROM goods -- all of them
triples:
  database: $SHOP_URL
  sql: SELECT 'item' AS head_type, head, relation, 'item' AS tail_type, tail FROM links
"""
TINY = {
    "model.experts": "id+graph",
    "model.hidden_size": 8,
    "train.epochs": 1,
    "split.scheme": "leave_one_out",
}


@pytest.fixture(scope="module")
def server():
    running = PostgresServer()
    from adbc_driver_postgresql import dbapi

    with dbapi.connect(running.url, autocommit=True) as connection, connection.cursor() as cursor:
        for statement in TABLES.split(";\n")[:-1]:
            cursor.execute(statement)
    yield running
    running.stop()


@pytest.fixture
def shop(server, tmp_path, monkeypatch):
    monkeypatch.setenv("SHOP_URL", server.url)
    (tmp_path / "dataset.yaml").write_text(DESCRIPTION)
    return tmp_path


def test_three_tables_keep_their_values(shop):
    tables = load_source(str(shop))
    assert tables.events.row(0) == ("1", "1", 1_704_142_800_000, "view")
    assert len(tables.events) == 108
    row = tables.items.row(0, named=True)
    assert (row["item_id"], row["title"], row["brand"]) == ("1", "Item 1", "maker1")
    assert row["categories"] == ["Shoes", "S1"]
    assert (float(row["price"]), row["weight"], row["active"]) == (1.5, 2.5, False)
    assert row["delivery"] == "2 days"
    assert tables.triples is not None and len(tables.triples) == 12


def test_events_come_in_blocks(shop):
    blocks = list(open_events(shop, 50).blocks())
    assert sum(map(len, blocks)) == 108


@pytest.mark.slow
def test_it_is_validated_trained_on_and_scored(shop, capsys):
    with pytest.raises(SystemExit):
        cli.main(["validate", "--data", str(shop)])
    assert "108 of 108 events whose item is in the items table" in capsys.readouterr().out
    run, out = shop / "run", shop / "out"
    options = [part for name, value in TINY.items() for part in (f"--{name}", str(value))]
    cli.main(["train", "--data", str(shop), "--run", str(run), *options])
    where = ["--items", str(shop), "--where", "price > 16"]
    cli.main(["recommend", str(run), "--events", str(shop), "--out", str(out), "--k", "3", *where])
    items = pl.read_parquet(out / "*.parquet")["item_id"].cast(pl.Int64)
    assert set(items) == {11, 12}  # users have seen the first nine


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT nothing FROM log", "nothing"),
        ("DELETE FROM log RETURNING who AS user_id", "read-only|COPY"),
        ("SELECT 1 / (who - 5) AS user_id, 'i' AS item_id, 0 AS timestamp FROM log", "zero"),
    ],
)
def test_a_refused_query_is_told_and_changes_nothing(server, sql, message):
    table = TableSpec("events", sql=sql, database=server.url)
    with pytest.raises(DataError, match=rf"events \(query\): .*({message})"):
        open_table(table).read()
    count = TableSpec("events", sql="SELECT count(*) AS n FROM log", database=server.url)
    assert open_table(count).read()["n"].to_list() == [108]
