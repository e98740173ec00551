"""Blocks of users made of shares, which several workers could read."""

import pickle
import tempfile
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest
from helpers.streams import GROUPED, SCATTERED, SECOND, events_of, write
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from jaxrec.data.forgotten import add_forgotten, read_forgotten
from jaxrec.data.shares import BLOCK, block_starts, first_rows, numbered, ordered_block, shares
from jaxrec.data.stream import open_events
from jaxrec.data.user_filter import UserFilter
from jaxrec.errors import DataError


def cut(frame, directory, cuts, suffix=".parquet"):
    """The rows as files of one directory."""
    directory.mkdir(exist_ok=True)
    edges = [0, *sorted(cuts), len(frame)]
    for number, (start, stop) in enumerate(pairwise(edges)):
        write(frame[start:stop], directory / f"part-{number:03}{suffix}")
    return directory


def by_shares(stream, most=256):
    """The blocks of a stream, with its shares read elsewhere and the rows brought out of order."""
    rows = [
        events
        for number, share in enumerate(shares(stream, most))
        for events in numbered(pickle.loads(pickle.dumps(share)), number)
    ]
    starts = block_starts(map(first_rows, rows), stream)
    events = pl.concat([part.with_columns(starts.numbers(part)) for part in reversed(rows)])
    assert events[BLOCK].unique().sort().to_list() == list(range(len(starts.firsts)))
    return [
        ordered_block(events.filter(pl.col(BLOCK) == number), number, stream)
        for number in range(len(starts.firsts))
    ]


def assert_same_blocks(stream, most=256):
    expected, found = list(stream.blocks()), by_shares(stream, most)
    assert len(found) == len(expected)
    for block, other in zip(found, expected, strict=True):
        assert_frame_equal(block, other)


@given(
    st.lists(st.tuples(st.sampled_from("abcdefgé"), st.integers(1, 4)), min_size=1, max_size=12),
    st.lists(st.integers(0, 30), max_size=4),
    st.integers(1, 4),
    st.integers(1, 7),
    st.integers(1, 5),
)
@settings(max_examples=15, deadline=None)
def test_shares_give_the_blocks_of_the_stream(runs, cuts, users, rows, most):
    frame = events_of([user for user, length in runs for _ in range(length)])
    with tempfile.TemporaryDirectory() as place:
        directory = cut(frame, Path(place, "events"), [min(cut, len(frame)) for cut in cuts])
        assert_same_blocks(open_events(directory, users, rows_per_batch=rows), most)


@pytest.mark.parametrize("users", [GROUPED, SCATTERED])
@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_files_of_every_format_are_shares(tmp_path, suffix, users):
    stream = open_events(cut(events_of(users), tmp_path / "events", [4, 8], suffix), 2)
    assert stream.grouped == (users is GROUPED)
    assert [share.num_files for share in map(Counted, shares(stream))] == [1, 1, 1]
    assert [share.num_files for share in map(Counted, shares(stream, 2))] == [2, 1]
    assert_same_blocks(stream)


class Counted:
    def __init__(self, share):
        self.num_files = len(share.table.files)


@pytest.mark.parametrize(
    "other",
    [
        pl.col("item_id").str.to_integer(),  # with text, 3 could become 3.0 or 003
        pl.col("session_id").alias("event_id"),
    ],
)
def test_files_that_differ_are_read_by_one_worker(tmp_path, other):
    directory = cut(events_of(SCATTERED), tmp_path / "events", [6])
    first = directory / "part-000.parquet"
    pl.read_parquet(first).with_columns(other).write_parquet(first)
    stream = open_events(directory, 2)
    assert len(shares(stream)) == 1
    assert_same_blocks(stream)


def test_a_file_without_rows_is_a_share_without_rows(tmp_path):
    assert_same_blocks(open_events(cut(events_of(SCATTERED), tmp_path / "events", [6, 6]), 2))


def test_one_file_and_invoices_are_one_share(tmp_path):
    stream = open_events(write(events_of(SCATTERED), tmp_path / "events.csv"), 2)
    assert len(shares(stream)) == 1
    assert_same_blocks(stream)


def test_repeats_of_an_event_in_two_files_count_once(tmp_path):
    frame = events_of(SCATTERED).with_row_index("event_id").cast({"event_id": pl.String})
    repeated = pl.concat([frame, frame[:3]])
    stream = open_events(cut(repeated, tmp_path / "events", [6, 12]), 2)
    assert sum(map(len, by_shares(stream))) == len(frame)
    assert_same_blocks(stream)


def test_listed_and_forgotten_users_with_pseudonyms(tmp_path):
    directory = cut(events_of(SCATTERED), tmp_path / "events", [5, 9])
    listed = UserFilter(pl.Series(["b", "d", "é", "none"]), id_key=b"key" * 11)
    add_forgotten(tmp_path / "gone.txt", ["d"], SECOND + 5)
    forgotten = UserFilter(forgotten=read_forgotten(tmp_path / "gone.txt"))
    for users in (listed, forgotten):
        assert_same_blocks(open_events(directory, 1, users=users))


def test_a_unit_of_one_file_alone_is_an_error_as_in_the_stream(tmp_path):
    directory = cut(events_of(SCATTERED), tmp_path / "events", [4, 8])
    last = directory / "part-002.parquet"
    pl.read_parquet(last).with_columns(pl.col("timestamp") * 1000).write_parquet(last)
    stream = open_events(directory, 2, rows_per_batch=4)
    for blocks in (lambda: list(stream.blocks()), lambda: by_shares(stream)):
        with pytest.raises(DataError, match="milliseconds after rows of seconds"):
            blocks()
