"""Event files that cannot be streamed."""

import polars as pl
import pytest
from helpers.streams import GROUPED, SECOND, as_blocks, events_of, write, written

from jaxrec.data.stream import open_events
from jaxrec.errors import DataError


@pytest.mark.parametrize("name", ["none.parquet", "none.csv", "none.jsonl", "none.inter"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(DataError, match=rf"{name}: no such file"):
        open_events(tmp_path / name, 1)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl", ".inter"])
def test_an_empty_file_is_named(tmp_path, suffix):
    path = tmp_path / f"events{suffix}"
    path.touch()
    with pytest.raises(DataError, match=rf"events{suffix}: (the file is empty|cannot be read)"):
        open_events(path, 1)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_file_without_rows_is_named(tmp_path, suffix):
    with pytest.raises(DataError, match=rf"events{suffix}: the table has no rows"):
        open_events(written(tmp_path, [], suffix), 1)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("events.parquet", "not Parquet but long enough to have a header and a footer"),
        ("events.jsonl", '{"user_id": "a", "item_id":\n'),
        ("events.csv", f"user_id,item_id,timestamp\na,b,{SECOND}\na,b,c,d\n"),
    ],
)
def test_a_corrupt_file_is_named(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=rf"{name}: cannot be read \(.+\); write it again"):
        as_blocks(tmp_path / name, 1)


def test_a_file_of_an_unknown_format_is_refused(tmp_path):
    (tmp_path / "events.xlsx").write_text("x")
    with pytest.raises(DataError, match=r"events\.xlsx: unknown file format"):
        open_events(tmp_path / "events.xlsx", 1)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl", ".inter"])
@pytest.mark.parametrize("column", ["user_id", "item_id", "timestamp"])
def test_a_missing_column_is_named(tmp_path, suffix, column):
    path = write(events_of(GROUPED).drop(column), tmp_path / f"events{suffix}")
    with pytest.raises(DataError, match=rf"events{suffix}: no column '{column}'; it has "):
        open_events(path, 1)


def test_columns_of_one_name_are_refused(tmp_path):
    path = tmp_path / "events.csv"
    path.write_text(f"user_id,item_id,timestamp,user_id\na,b,{SECOND},c\n")
    with pytest.raises(DataError, match=r"events\.csv: columns of the same name"):
        open_events(path, 1)
    path = write(events_of(GROUPED).with_columns(Event=pl.lit("x")), tmp_path / "events.parquet")
    with pytest.raises(DataError, match=r"events\.parquet: columns of the same name"):
        open_events(path, 1)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize("column", ["user_id", "item_id"])
def test_a_null_id_is_found_by_its_batch_and_row(tmp_path, suffix, column):
    frame = events_of(GROUPED).with_row_index()
    holed = frame.with_columns(pl.when(pl.col("index") != 9).then(pl.col(column)).alias(column))
    path = write(holed.drop("index"), tmp_path / f"events{suffix}")
    place = rf"events{suffix}, batch from row 9, column '{column}'"
    message = rf"{place}: 1 of 4 values are null or empty \(row 2: None\)"
    with pytest.raises(DataError, match=message):
        as_blocks(path, 1, rows_per_batch=4)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
@pytest.mark.parametrize(
    ("first", "second"), [(SECOND, SECOND * 1000), (SECOND * 1000, SECOND), (SECOND * 1000, 0)]
)
def test_batches_in_two_units_are_refused(tmp_path, suffix, first, second):
    stamps = pl.Series("timestamp", [first] * 4 + [second] * 8)
    path = write(events_of(GROUPED).with_columns(stamps), tmp_path / f"events{suffix}")
    message = rf"events{suffix}, batch from row 5, column 'timestamp': \w*seconds after rows of"
    with pytest.raises(DataError, match=message):
        as_blocks(path, 1, rows_per_batch=4)


def test_dates_and_numbers_in_two_batches_are_refused(tmp_path):
    path = tmp_path / "events.csv"
    path.write_text(f"user_id,item_id,timestamp\na,i,2024-01-01\na,j,{SECOND}\n")
    with pytest.raises(DataError, match="seconds after rows of dates"):
        as_blocks(path, 1, rows_per_batch=1)


def test_an_event_id_of_two_events_of_a_user_is_refused(tmp_path):
    frame = events_of(GROUPED).with_columns(event_id=pl.lit(None, pl.String))
    clash = pl.Series("event_id", ["x" if row in (3, 7) else None for row in range(12)])
    path = write(frame.with_columns(clash), tmp_path / "events.parquet")
    with pytest.raises(DataError, match=r"block 3 of users, .*several different rows"):
        as_blocks(path, 1, rows_per_batch=2)
