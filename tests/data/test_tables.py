"""Reading, validating and filtering the three tables."""

from collections import Counter

import numpy as np
import polars as pl
import pytest
from helpers.tables import EVENTS, ITEMS, TRIPLES, assert_names, message, write_csv, write_parquet
from polars.testing import assert_frame_equal

from jaxrec.data.sources import load_source
from jaxrec.data.tables import Tables, filter_tables, validate_tables
from jaxrec.errors import DataError


def test_other_columns_follow_the_known_ones():
    events = EVENTS.select(pl.lit(4).alias("rating"), pl.all().reverse())
    assert validate_tables(events, ITEMS, None).events.columns == [*EVENTS.columns, "rating"]


def test_without_an_items_table_the_events_give_the_items(tmp_path):
    EVENTS.write_csv(tmp_path / "events.csv")
    tables = load_source(str(tmp_path), strict=True)
    assert tables.items["item_id"].to_list() == ["007", "b"]
    assert tables.triples is None
    assert "2 items are those of the events" in tables.notes[0]


@pytest.mark.parametrize("name", ["events", "items", "triples"])
def test_missing_column(tmp_path, name):
    column = {"events": "timestamp", "items": "item_id", "triples": "tail"}[name]
    frame = {"events": EVENTS, "items": ITEMS, "triples": TRIPLES}[name].drop(column)
    text = message(tmp_path, **{name: frame})
    assert_names(text, f"{name}.parquet: no column '{column}'", frame.columns[0], "Rename or add")


@pytest.mark.parametrize("name", ["events", "items", "triples"])
def test_empty_table(tmp_path, name):
    frame = {"events": EVENTS, "items": ITEMS, "triples": TRIPLES}[name].clear()
    assert_names(message(tmp_path, **{name: frame}), f"{name}.parquet", "no rows", "add rows")


def test_null_item_id(tmp_path):
    items = ITEMS.with_columns(item_id=pl.Series(["b", None, "c"]))
    assert_names(message(tmp_path, items=items), "items.parquet, column 'item_id'", "row 2: None")


def test_item_id_with_two_contents(tmp_path):
    items = pl.concat([ITEMS, ITEMS.head(1), ITEMS.head(1).with_columns(price=9.0)])
    text = message(tmp_path, items=items)
    parts = ["items.parquet, column 'item_id'", "2 of 5", "row 1: 'b', row 5: 'b'", "Keep one row"]
    assert_names(text, *parts)


def test_exact_repeats_of_items_are_dropped_and_noted():
    tables = validate_tables(EVENTS, pl.concat([ITEMS, ITEMS.head(2)]), None)
    assert_frame_equal(tables.items, ITEMS)
    assert tables.notes == ("items: rows dropped because they repeat an item_id exactly: 2.",)


def test_event_id_with_two_contents(tmp_path):
    events = EVENTS.with_columns(event_id=pl.Series(["1", "2", "1"]))
    text = message(tmp_path, events)
    parts = ["events.parquet, column 'event_id'", "row 1: '1', row 3: '1'", "Keep one row"]
    assert_names(text, *parts)


def test_exact_repeats_of_an_event_id_are_dropped_and_noted():
    unnamed = EVENTS.tail(1).with_columns(event_id=pl.lit(None, pl.String))
    events = pl.concat([EVENTS, EVENTS.head(1), unnamed, unnamed])
    tables = validate_tables(events, ITEMS, None)
    assert_frame_equal(tables.events, pl.concat([EVENTS, unnamed, unnamed]))
    assert tables.notes == ("events: rows dropped because they repeat an event_id exactly: 1.",)


def test_equal_events_without_event_id_all_stay():
    events = pl.concat([EVENTS, EVENTS]).drop("event_id")
    assert_frame_equal(validate_tables(events, ITEMS, None).events, events)


@pytest.mark.parametrize("clash", ["Title", " title", "TITLE "])
def test_columns_of_the_same_name(tmp_path, clash):
    items = ITEMS.with_columns(pl.lit("x").alias(clash))
    text = message(tmp_path, items=items)
    assert_names(text, "items.parquet", f"'title', {clash!r}", "rename all but one")


def test_events_of_unknown_items(tmp_path):
    items = ITEMS.filter(pl.col("item_id") != "b")
    text = message(tmp_path, items=items, strict=True)
    parts = ["events.parquet, column 'item_id'", "2 of 3", "items.parquet", "row 2: 'b'", "Add"]
    assert_names(text, *parts)

    tables = load_source(str(tmp_path))
    assert tables.items["item_id"].to_list() == ["007", "unsold", "b"]
    assert tables.items.row(2) == ("b", None, None, None)
    assert_frame_equal(tables.events, EVENTS)
    assert_names(tables.notes[0], "not in", "2 of 3, of 1 items")


def test_events_of_only_unknown_items_are_a_mix_up_of_ids(tmp_path):
    items = ITEMS.with_columns(pl.format("item-{}", "item_id").alias("item_id"))
    assert_names(message(tmp_path, items=items), "3 of 3", "Write the ids of both tables alike")


def triple(*row: str | None) -> pl.DataFrame:
    added = pl.DataFrame([row], schema=dict.fromkeys(TRIPLES.columns, pl.String), orient="row")
    return pl.concat([TRIPLES, added])


@pytest.mark.parametrize("strict", [False, True])
def test_triple_with_an_unknown_head(tmp_path, strict):
    triples = triple("item", "ghost", "made_by", "entity", "acme")
    text = message(tmp_path, triples=triples, strict=strict)
    assert_names(text, "triples.parquet, column 'head'", "row 4: 'ghost'", "Add these items")


def test_triple_with_an_unknown_tail(tmp_path):
    triples = triple("item", "b", "goes_with", "item", "ghost")
    text = message(tmp_path, triples=triples, strict=True)
    assert_names(text, "triples.parquet, column 'tail'", "row 4: 'ghost'", "Add these items")

    tables = load_source(str(tmp_path))
    assert tables.triples is not None
    assert_frame_equal(tables.triples, TRIPLES)
    assert_names(tables.notes[0], "tail is an unknown item: 1")


@pytest.mark.parametrize("column", range(5))
def test_null_in_triples(tmp_path, column):
    row = ["item", "b", "made_by", "entity", "acme"]
    row[column] = None
    text = message(tmp_path, triples=triple(*row))
    assert_names(text, f"column '{TRIPLES.columns[column]}'", "row 4: None", "Fill them in")


def test_missing_directory(tmp_path):
    with pytest.raises(DataError, match="nowhere: neither ml-100k nor ml-1m"):
        load_source(str(tmp_path / "nowhere"))


def test_directory_without_events(tmp_path):
    (tmp_path / "notes.md").touch()
    with pytest.raises(DataError, match=r"no events table \(it holds notes.md\); name it"):
        load_source(str(tmp_path))


def test_two_tables_of_events(tmp_path):
    write_csv(tmp_path)
    write_parquet(tmp_path)
    with pytest.raises(DataError, match=r"events.csv and events.parquet\); keep one"):
        load_source(str(tmp_path))


# ---- filters


def log(*events: str, triples: pl.DataFrame | None = None) -> Tables:
    """Tables of events written as user + item, in time order; items a, b, c, d."""
    frame = pl.DataFrame(
        {
            "user_id": [event[0] for event in events],
            "item_id": [event[1] for event in events],
            "timestamp": range(len(events)),
        }
    )
    return validate_tables(frame, pl.DataFrame({"item_id": list("abcd")}), triples, time="order")


def pairs(tables: Tables) -> list[str]:
    return [user + item for user, item in tables.events.select("user_id", "item_id").rows()]


def test_no_filter_returns_the_tables():
    tables = log("1a", "1b")
    assert filter_tables(tables) is tables


def test_filters_are_repeated_until_nothing_changes():
    tables = log("1a", "2a", "1b", "2b", "3b", "3c")
    kept = filter_tables(tables, min_user_events=2, min_item_events=2)
    assert pairs(kept) == ["1a", "2a", "1b", "2b"]
    # without user 3 no item has two users, which only a second round notices
    chain = log("1a", "2a", "1b", "3b", "3c")
    with pytest.raises(DataError):
        filter_tables(chain, min_user_events=2, min_item_events=2)


@pytest.mark.parametrize("seed", range(5))
def test_core_equals_removing_one_by_one(seed):
    generator = np.random.default_rng(seed)
    users, items = generator.integers(0, 12, 60), generator.integers(0, 15, 60)
    tables = log(*(chr(97 + u) + chr(97 + i) for u, i in zip(users, items, strict=True)))
    left = pairs(tables)
    while True:
        by_user, by_item = Counter(p[0] for p in left), Counter(p[1] for p in left)
        weak = [p for p in left if by_user[p[0]] < 4 or by_item[p[1]] < 3]
        if not weak:
            break
        left.remove(weak[0])
    assert 0 < len(left) < 60
    assert pairs(filter_tables(tables, min_user_events=4, min_item_events=3)) == left


def test_items_and_triples_follow_the_events():
    triples = pl.DataFrame(
        [
            ("item", "a", "made_by", "brand", "x"),
            ("item", "c", "made_by", "brand", "x"),
            ("item", "a", "goes_with", "item", "c"),
            ("brand", "x", "part_of", "brand", "c"),
        ],
        schema=TRIPLES.columns,
        orient="row",
    )
    kept = filter_tables(log("1b", "1a", "2a", "2b", "3c", triples=triples), min_item_events=2)
    assert kept.items["item_id"].to_list() == ["a", "b"]
    assert kept.triples is not None
    assert kept.triples.rows() == [triples.row(0), triples.row(3)]
    assert "2 users, 2 items, 4 of 5 events" in kept.notes[-1]


def test_consecutive_repeats_are_found_in_time_order():
    tables = log("1a", "2a", "1a", "1b", "1a", "2b", "2b")
    assert pairs(filter_tables(tables, drop_repeats=True)) == ["1a", "2a", "1b", "1a", "2b"]

    shuffled = tables.events.with_columns(timestamp=pl.Series([0, 0, 2, 1, 3, 1, 1]))
    # user 1 in time order: rows 0 (a), 3 (b), 2 (a), 4 (a); user 2: rows 1 (a), 5 (b), 6 (b)
    kept = filter_tables(validate_tables(shuffled, None, None, time="order"), drop_repeats=True)
    assert_frame_equal(kept.events, shuffled[[0, 1, 2, 3, 5]])


def test_repeats_go_before_counts():
    tables = log("1a", "1a", "1b", "2a")
    kept = filter_tables(tables, drop_repeats=True, min_user_events=2)
    assert pairs(kept) == ["1a", "1b"]
    with pytest.raises(DataError):
        filter_tables(tables, drop_repeats=True, min_user_events=3)


def test_filters_that_remove_every_event_are_an_error():
    with pytest.raises(DataError) as caught:
        filter_tables(log("1a", "1a", "1b", "2a"), min_user_events=9)
    parts = ["No user is left", "min_user_events=9", "3 events of a user", "3 of an item", "Lower"]
    assert_names(str(caught.value), *parts)
