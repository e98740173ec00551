"""Reading ids as codes gives what reading them as text gives."""

from pathlib import Path

import polars as pl
import pytest
from helpers.tables import (
    EVENTS,
    ITEMS,
    SECOND,
    TRIPLES,
    write_atomic,
    write_csv,
    write_jsonl,
    write_parquet,
)

from jaxrec.config import Config, DataConfig
from jaxrec.data import opener, slices
from jaxrec.data.codes import coded, is_coded, where
from jaxrec.data.columns import index_in
from jaxrec.data.dataset import filtered
from jaxrec.data.sources import load_source
from jaxrec.data.summary import summarize
from jaxrec.data.tables import Tables, filter_tables
from jaxrec.errors import DataError


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    """Many batches and slices in few rows."""
    monkeypatch.setattr(opener, "ROWS_PER_BATCH", 2)
    monkeypatch.setattr(slices, "SLICE", 3)


def as_text(events: pl.DataFrame) -> pl.DataFrame:
    return events.with_columns(
        pl.col(name).cast(pl.String) for name in ("user_id", "item_id", "event")
    )


def assert_same(tables: Tables, expected: Tables) -> None:
    assert is_coded(tables.events["user_id"]) and not is_coded(expected.events["user_id"])
    assert as_text(tables.events).equals(as_text(expected.events), null_equal=True)
    assert tables.events.columns == expected.events.columns
    assert tables.items.equals(expected.items, null_equal=True)
    for name in ("notes", "warnings", "num_unknown", "item_id_type"):
        assert getattr(tables, name) == getattr(expected, name)


def both(source: Path, **options) -> tuple[Tables, Tables]:
    """The tables of a source, read as codes and as text."""
    return tuple(load_source(str(source), as_codes=codes, **options) for codes in (True, False))


@pytest.mark.parametrize("write", [write_parquet, write_jsonl, write_csv, write_atomic])
def test_every_format(tmp_path, write):
    write(tmp_path)
    tables, expected = both(tmp_path)
    assert_same(tables, expected)
    assert tables.triples is not None
    assert tables.triples.equals(expected.triples)


COLUMNS = {
    "integer ids": {"user_id": pl.Series([7, 8, 7, 9]), "item_id": pl.Series([1, -1, 2, 1])},
    "ids that are words": {"user_id": pl.Series(["NULL", "a", "NULL", "b"])},
    "dates": {"timestamp": pl.Series(["2024-01-01", "20240103T000000"] * 2)},
    "mixed dates": {"timestamp": pl.Series(["2024-01-01", "1970-01-02", "2024-01-03", "2024"])[:3]},
    "early times": {"timestamp": pl.Series([SECOND, SECOND, SECOND, 5])},
    "milliseconds": {"timestamp": pl.Series([SECOND * 1000 + n for n in range(4)])},
    "floats": {"timestamp": pl.Series([SECOND + 0.5] * 4), "item_id": pl.Series([1.0, 2.0] * 2)},
    "late values": {"price": pl.Series([None, None, 1, 2], dtype=pl.Int32)},
    "no types": {"event": None},
    "repeats": {"event_id": pl.Series(["1", "1", "2", None])},
    "titles": {"title": pl.Series(["x", None, "y", "z"])},
}


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
@pytest.mark.parametrize("columns", COLUMNS.values(), ids=COLUMNS)
def test_odd_columns(tmp_path, columns, suffix):
    events = pl.DataFrame(
        {
            "user_id": ["a", "a", "b", "b"],
            "item_id": ["i", "i", "j", "i"],
            "timestamp": [SECOND, SECOND, SECOND, SECOND + 1],
            "event": ["view", "view", "buy", "view"],
        }
    )
    for name, column in columns.items():
        if column is None:
            events = events.drop(name)
        else:
            events = events.head(len(column)).with_columns(column.alias(name))
    path = tmp_path / f"events.{suffix}"
    getattr(events, f"write_{suffix}")(path)
    assert_same(*both(path))


@pytest.mark.parametrize(
    "columns",
    [
        {"user_id": pl.Series(["u", None, "", " "])},
        {"item_id": pl.Series(["1.5E+18", "2", "3", "4"])},
        {"item_id": pl.Series([1, None, 2, 3])},
        {"timestamp": pl.Series([SECOND, SECOND, SECOND * 1000, SECOND])},
        {"timestamp": pl.Series([SECOND, SECOND, None, SECOND])},
        {"timestamp": pl.Series(["2024-01-01", "2024-01-01", "yesterday", str(SECOND)])},
        {"event": pl.Series(["view", None, "buy", "buy"])},
        {"event_id": pl.Series(["1", "2", "1", None])},
        {"item_id": pl.Series([["a"], ["b"], ["a"], ["c"]])},
    ],
)
def test_bad_values_are_named_alike(tmp_path, columns):
    events = pl.concat([EVENTS, EVENTS.tail(1)]).drop("event_id").with_columns(**columns)
    events.write_parquet(tmp_path / "events.parquet")
    messages = []
    for codes in (True, False):
        with pytest.raises(DataError) as caught:
            load_source(str(tmp_path), as_codes=codes)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("strict", [True, False])
def test_events_of_unknown_items(tmp_path, strict):
    write_parquet(tmp_path)
    ITEMS.filter(pl.col("item_id") != "b").write_parquet(tmp_path / "items.parquet")
    TRIPLES.head(0).write_parquet(tmp_path / "triples.parquet")
    (tmp_path / "triples.parquet").unlink()
    if not strict:
        assert_same(*both(tmp_path))
        return
    for codes in (True, False):
        with pytest.raises(DataError, match=r"2 of 3 values are not in .*\(row 2: 'b', row 3"):
            load_source(str(tmp_path), strict=True, as_codes=codes)


def test_positions_stay_positions(tmp_path):
    EVENTS.write_parquet(tmp_path / "events.parquet")
    tables, expected = both(tmp_path, time="order")
    assert_same(tables, expected)
    assert tables.events["timestamp"].to_list() == EVENTS["timestamp"].to_list()


def test_a_table_without_rows(tmp_path):
    EVENTS.clear().write_parquet(tmp_path / "events.parquet")
    with pytest.raises(DataError, match="has no rows"):
        load_source(str(tmp_path), as_codes=True)


def test_event_types_and_ratings_of_a_description(tmp_path):
    (tmp_path / "log.csv").write_text(
        f"user_id,item_id,rating,event,timestamp\n1,a,5,pv,{SECOND}\n1,b,2,pv,{SECOND}\n"
        f"2,c,4,x,{SECOND}\n2,a,4,ping,{SECOND}\n"
    )
    (tmp_path / "dataset.yaml").write_text(
        "events: {files: log.csv, event_types: {pv: view, ping: ''}, min_rating: 3}"
    )
    tables, expected = both(tmp_path)
    assert_same(tables, expected)
    assert tables.events["event"].to_list() == ["view", "x"]


@pytest.mark.parametrize("drop_repeats", [False, True])
def test_filters_and_the_summary(tmp_path, drop_repeats, tables):
    tables.events.write_parquet(tmp_path / "events.parquet")
    tables.items.write_parquet(tmp_path / "items.parquet")
    options = {"min_user_events": 5, "min_item_events": 8, "drop_repeats": drop_repeats}
    config = Config(data=DataConfig(source=str(tmp_path), **options))
    read, expected = filtered(config), filter_tables(tables, **options)
    assert 0 < len(read.events) < len(tables.events)
    assert as_text(read.events).equals(as_text(expected.events))
    assert read.items.equals(expected.items)
    summaries = [vars(summarize(each, config)) for each in (read, expected)]
    for summary in summaries:
        for name in ("user_events", "item_events"):
            summary[name] = summary[name].values.to_list()
    assert summaries[0] == summaries[1]


def test_conditions_and_numbers_of_codes():
    column = coded(pl.Series("id", ["b", None, "a", "b"]))
    assert is_coded(column)
    assert where(column, lambda text: text == "b").to_list() == [True, None, False, True]
    assert not where(column, lambda text: text == "z").any()
    assert index_in(column, pl.Series([None, "a"])).to_list() == [None, None, 1, None]
    assert not is_coded(pl.Series(["a"], dtype=pl.Categorical))
