"""Blocks of whole users from files of events, read in small batches."""

import tempfile
from itertools import groupby, islice
from pathlib import Path

import polars as pl
import pytest
from helpers.streams import (
    GROUPED,
    SCATTERED,
    SECOND,
    as_blocks,
    events_of,
    rows_by_user,
    users_of,
    write,
    written,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from jaxrec.data import stream as stream_module
from jaxrec.data.columns import BLANKS
from jaxrec.data.opener import read_table
from jaxrec.data.sources import load_source
from jaxrec.data.stream import open_events
from jaxrec.data.tables import validate_tables
from jaxrec.data.user_filter import UserFilter
from jaxrec.errors import DataError

# ---- equality with reading all at once


@pytest.mark.parametrize("users", [GROUPED, SCATTERED])
@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl", ".inter"])
def test_every_format_gives_the_events_that_reading_it_at_once_gives(tmp_path, suffix, users):
    path = written(tmp_path, users, suffix)
    whole = validate_tables(read_table(path), None, None).events
    blocks = as_blocks(path, 2, rows_per_batch=3)
    assert [block.schema for block in blocks] == [whole.schema] * len(blocks)
    assert sum(map(len, blocks)) == len(whole)
    assert rows_by_user(pl.concat(blocks)) == rows_by_user(whole)


@given(
    st.lists(st.tuples(st.sampled_from("abcdefg"), st.integers(1, 5)), min_size=1, max_size=12),
    st.integers(1, 4),
    st.integers(1, 7),
)
@settings(max_examples=10, deadline=None)
def test_blocks_hold_every_event_once_and_all_of_a_user_together(runs, users, rows):
    ids = [user for user, length in runs for _ in range(length)]
    order = [user for user, _ in groupby(ids)]
    with tempfile.TemporaryDirectory() as directory:
        stream = open_events(written(Path(directory), ids), users, rows_per_batch=rows)
        blocks = list(stream.blocks())
    members = [users_of(block) for block in blocks]
    listed = [user for member in members for user in member]
    expected = events_of(ids).with_columns(pl.col("timestamp") * 1000)

    assert stream.grouped == (len(order) == len(set(order)))
    assert stream.num_rows == len(ids)
    assert sorted(listed) == sorted(set(ids))
    assert rows_by_user(pl.concat(blocks)) == rows_by_user(expected)
    assert [len(member) for member in members[:-1]] == [users] * (len(members) - 1)
    if stream.grouped:
        assert_frame_equal(pl.concat(blocks), expected)


def test_a_block_ends_where_its_last_user_does(tmp_path):
    blocks = as_blocks(written(tmp_path, GROUPED), 2, rows_per_batch=4)
    assert [users_of(block) for block in blocks] == [["07", "b"], ["é", "c"], ["007", "d"]]
    assert [len(block) for block in blocks] == [3, 6, 3]


@pytest.mark.parametrize("users", [["a"] * 10 + ["b"], ["b", *["a"] * 10, "b"]])
def test_a_user_with_more_events_than_a_batch_stays_whole(tmp_path, users):
    blocks = as_blocks(written(tmp_path, users), 1, rows_per_batch=2)
    assert {users_of(block)[0]: len(block) for block in blocks} == {
        user: users.count(user) for user in users
    }


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_an_invoice_file_is_streamed_as_the_events_that_training_reads(tmp_path, suffix):
    invoices = pl.DataFrame(
        {
            "InvoiceNo": ["1", "1", "C2", "3", "4"],
            "StockCode": ["10001", "POST", "10001", "10002", "10003"],
            "Description": ["lamp", "postage", "lamp", "cup", "tray"],
            "Quantity": [1, 1, -1, 2, 1],
            "InvoiceDate": ["2011-01-01", "2011-01-01", "2011-01-02", "2011-01-03", "2011-01-04"],
            "UnitPrice": [1.0, 2.0, 1.0, 3.0, 4.0],
            "CustomerID": [7, 7, 7, 8, None],
        }
    )
    path = tmp_path / f"invoices{suffix}"
    write(invoices, path)
    expected = load_source(str(path)).events
    for source in (path, tmp_path):
        events = pl.concat(as_blocks(source, 10, event_types=("buy", "cancel")))
        assert events.select(expected.columns).equals(expected)
    assert events["event"].to_list() == ["buy", "cancel", "buy"]


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_only_known_columns_are_read(tmp_path, suffix):
    frame = events_of(GROUPED)
    path = write(frame.select(pl.lit(1.5).alias("price"), pl.all()), tmp_path / f"events{suffix}")
    assert as_blocks(path, 9)[0].columns == frame.columns


def test_a_late_row_of_another_type_is_read_as_text(tmp_path):
    path = tmp_path / "events.jsonl"
    line = f'{{"user_id": USER, "item_id": 1, "timestamp": {SECOND}}}\n'
    path.write_text(line.replace("USER", "7") * 2000 + line.replace("USER", '"x"'))
    blocks = as_blocks(path, 1, rows_per_batch=500)
    assert [(users_of(block), len(block)) for block in blocks] == [(["7"], 2000), (["x"], 1)]
    assert blocks[0]["item_id"][0] == "1"


@pytest.mark.parametrize(
    ("stamps", "milliseconds"),
    [
        ([SECOND, 1.5, 2], [SECOND * 1000, 1500, 2000]),
        ([SECOND * 1000 + 1, SECOND * 1000, 1e11], [SECOND * 1000 + 1, SECOND * 1000, 10**11]),
        (["2024-01-01", "1970-01-01T00:00:01Z", "1970-01-02"], [1_704_067_200_000, 1000, 86.4e6]),
    ],
)
def test_timestamps_of_a_csv_mean_the_same_in_every_batch(tmp_path, stamps, milliseconds):
    path = tmp_path / "events.csv"
    rows = "".join(f"{number},i,{stamp}\n" for number, stamp in enumerate(stamps))
    path.write_text("user_id,item_id,timestamp\n" + rows)
    assert pl.concat(as_blocks(path, 5, rows_per_batch=1))["timestamp"].to_list() == milliseconds


def test_positions_stay_exact(tmp_path):
    path = tmp_path / "events.csv"
    path.write_text(f"user_id,item_id,timestamp\na,i,{2**60 + 1}\na,j,5\n")
    assert as_blocks(path, 1, time="order")[0]["timestamp"].to_list() == [2**60 + 1, 5]


def test_the_only_known_event_type_fills_in_for_a_missing_column(tmp_path):
    path = write(events_of(GROUPED).drop("event"), tmp_path / "events.csv")
    assert set(as_blocks(path, 9, event_types=("buy",))[0]["event"]) == {"buy"}
    assert set(as_blocks(path, 9, event_types=("buy", "view"))[0]["event"]) == {"event"}


@pytest.mark.parametrize("users", [GROUPED, SCATTERED])
def test_repeats_of_an_event_id_are_dropped_across_batches(tmp_path, users):
    frame = events_of(users).with_columns(event_id=pl.col("item_id"))
    keyless = frame.head(2).with_columns(event_id=pl.lit(None, pl.String))
    repeated = pl.concat([frame, keyless, keyless, frame]).sort("user_id", maintain_order=True)
    path = write(repeated, tmp_path / "events.parquet")
    whole = validate_tables(read_table(path), None, None).events
    assert len(whole) == len(frame) + 4
    assert_frame_equal(pl.concat(as_blocks(path, 2, rows_per_batch=3)), whole)


# ---- reproducible blocks


@pytest.mark.parametrize("users", [GROUPED, SCATTERED])
def test_blocks_do_not_depend_on_the_run_or_on_the_batches(tmp_path, users):
    path = written(tmp_path, users)
    first, *others = (as_blocks(path, 2, rows_per_batch=rows) for rows in (3, 3, 1, 5, 100))
    for blocks in others:
        assert len(blocks) == len(first)
        for block, expected in zip(blocks, first, strict=True):
            assert_frame_equal(block, expected)


@given(
    st.lists(
        st.text(max_size=12).filter(lambda text: text.strip(BLANKS).strip()),
        min_size=1,
        max_size=20,
    )
)
@settings(max_examples=15, deadline=None)
def test_users_of_an_ungrouped_file_are_sorted_by_the_bytes_of_their_ids(users):
    with tempfile.TemporaryDirectory() as directory:
        path = written(Path(directory), [*users, "other", *users, "other"])
        stream = open_events(path, 3, rows_per_batch=7)
        listed = [user for block in stream.blocks() for user in users_of(block)]
    assert not stream.grouped
    assert listed == sorted({*users, "other"}, key=str.encode)


# ---- memory


def record_lengths(monkeypatch, name, argument=0):
    """Lengths of the frames that a function of the module gets, one after another."""
    lengths = []
    original = getattr(stream_module, name)

    def recorded(value, *rest, **options):
        if isinstance(value, pl.DataFrame):
            lengths.append(len(value))
            return original(value, *rest, **options)
        return original((lengths.append(len(frame)) or frame for frame in value), *rest)

    monkeypatch.setattr(stream_module, name, recorded)
    return lengths


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_no_batch_is_larger_than_rows_per_batch(tmp_path, monkeypatch, suffix):
    path = written(tmp_path, [str(number // 3) for number in range(100)], suffix)
    batches = record_lengths(monkeypatch, "validate_tables")
    blocks = as_blocks(path, 2, rows_per_batch=8)
    assert sum(batches) == 100
    assert max(batches) == 8
    assert max(len(block) for block in blocks) == 6


def test_an_ungrouped_file_is_sorted_within_the_memory_limit(tmp_path, monkeypatch):
    count = 600_000
    numbers = pl.Series(range(count)) * 7919 % 50_021
    frame = pl.DataFrame(
        {
            "user_id": pl.select(pl.format("a-user-with-a-long-id-{}", numbers)).to_series(),
            "item_id": pl.select(pl.format("an-item-with-a-long-id-{}", numbers)).to_series(),
            "timestamp": range(SECOND, SECOND + count),
        }
    )
    path = write(frame, tmp_path / "events.parquet")
    monkeypatch.setattr(stream_module, "MIN_MEMORY", 48 * 1000**2)
    monkeypatch.setattr(stream_module, "THREADS", 1)
    frames = record_lengths(monkeypatch, "_whole_users")
    events = pl.concat(as_blocks(path, 1000, rows_per_batch=50_000))
    assert max(frames) <= 50_000
    expected = frame.sort("user_id", maintain_order=True)
    assert events["user_id"].equals(expected["user_id"])
    assert (events["timestamp"] // 1000).equals(expected["timestamp"])


def test_blocks_come_before_the_file_is_read_to_its_end(tmp_path, monkeypatch):
    path = written(tmp_path, [str(number // 3) for number in range(100)])
    batches = record_lengths(monkeypatch, "validate_tables")
    next(open_events(path, 2, rows_per_batch=8).blocks())
    assert batches == [8]


# ---- selected users


@pytest.mark.parametrize("users", [GROUPED, SCATTERED])
def test_only_selected_users_are_kept(tmp_path, users):
    keep = pl.Series(["é", "007", "never seen", "é"])
    stream = open_events(written(tmp_path, users), 5, users=UserFilter(keep), rows_per_batch=3)
    (block,) = stream.blocks()
    expected = events_of(users).filter(pl.col("user_id").is_in(["é", "007"]))
    expected = expected.with_columns(pl.col("timestamp") * 1000)
    assert rows_by_user(block) == rows_by_user(expected)
    assert stream.num_rows == len(expected)
    assert "users without events: 1 of 3" in stream.notes[-1]


def test_kept_ids_may_be_numbers(tmp_path):
    path = written(tmp_path, ["1", "2", "3"])
    assert users_of(as_blocks(path, 5, users=UserFilter(pl.Series([3, 1])))[0]) == ["1", "3"]


def test_a_file_is_grouped_if_its_kept_users_are(tmp_path):
    path = written(tmp_path, ["x", "a", "x", "a", "x", "b", "x"])
    stream = open_events(path, 1, users=UserFilter(pl.Series(["a", "b"])), rows_per_batch=2)
    assert stream.grouped
    assert stream.notes == ()
    assert [len(block) for block in stream.blocks()] == [2, 1]


@pytest.mark.parametrize("keep", [["unknown"], []])
def test_without_a_kept_user_there_are_no_blocks(tmp_path, keep):
    path = written(tmp_path, SCATTERED)
    assert (
        as_blocks(path, 1, users=UserFilter(pl.Series(keep, dtype=pl.String)), rows_per_batch=3)
        == []
    )


# ---- sorting on disk


def test_sorting_on_disk_is_noted(tmp_path):
    assert open_events(written(tmp_path, GROUPED), 2, rows_per_batch=5).notes == ()
    (note,) = open_events(written(tmp_path, SCATTERED, ".csv"), 2, rows_per_batch=5).notes
    assert "events.csv: not grouped by user" in note
    assert "sorted on disk first (12 rows)" in note


@pytest.fixture
def scratch(tmp_path, monkeypatch) -> Path:
    """The directory for temporary files; its name has characters of a glob pattern."""
    directory = tmp_path / "scratch [1] *"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    return directory


def test_temporary_files_are_deleted_at_the_end(tmp_path, scratch):
    seen = []
    for _ in open_events(written(tmp_path, SCATTERED), 2, rows_per_batch=3).blocks():
        seen.append(len(list(scratch.rglob("*"))))
    assert seen[0] > 1
    assert list(scratch.iterdir()) == []


def test_temporary_files_are_deleted_when_reading_stops_early(tmp_path, scratch):
    blocks = open_events(written(tmp_path, SCATTERED), 2, rows_per_batch=3).blocks()
    assert len(list(islice(blocks, 1))) == 1
    assert list(scratch.iterdir())
    blocks.close()
    assert list(scratch.iterdir()) == []


def test_temporary_files_are_deleted_after_an_error(tmp_path, scratch):
    frame = events_of(SCATTERED).with_columns(pl.col("timestamp").replace(SECOND + 10, None))
    path = write(frame, tmp_path / "events.parquet")
    with pytest.raises(DataError, match="are not timestamps"):
        as_blocks(path, 2, rows_per_batch=3)
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl", ".inter"])
@pytest.mark.parametrize("name", ["ev[1]", "ev*", "ev?", "ev{a,b}"])
def test_a_name_with_the_letters_of_a_pattern_is_the_name_of_one_file(tmp_path, suffix, name):
    directory = tmp_path / "shop [2024]"
    directory.mkdir()
    write(events_of(["other"]), directory / f"ev1{suffix}")
    path = write(events_of(GROUPED), directory / f"{name}{suffix}")
    assert len(read_table(path)) == len(GROUPED)
    blocks = as_blocks(path, 2)
    assert sum(map(len, blocks)) == len(GROUPED)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_a_name_that_is_not_utf_8_is_refused(tmp_path, suffix):
    path = tmp_path / f"odd-\udcff{suffix}"
    write(events_of(GROUPED), tmp_path / f"even{suffix}").rename(path)
    for read in (read_table, lambda path: open_events(path, 2)):
        with pytest.raises(DataError, match="cannot be read"):
            read(path)


def test_a_parquet_file_without_columns_is_refused(tmp_path):
    pl.DataFrame().write_parquet(tmp_path / "events.parquet")
    with pytest.raises(DataError, match="the file has no columns"):
        open_events(tmp_path / "events.parquet", 2)


def test_suspect_users_and_times_are_noted_before_the_work(tmp_path):
    frame = events_of(GROUPED).with_columns(
        user_id=pl.lit("NULL"), timestamp=pl.Series([0, *[SECOND] * (len(GROUPED) - 1)])
    )
    notes = open_events(write(frame, tmp_path / "events.csv"), 2).notes
    assert "times 'NULL'" in notes[0]
    assert "1 of 12 timestamps lie outside 1980 to tomorrow (row 1" in notes[1]
