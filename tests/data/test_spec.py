"""Descriptions of data sets: `dataset.yaml`."""

import polars as pl
import pytest
from helpers.tables import SECOND

from jaxrec.config import Config, DataConfig
from jaxrec.data.dataset import filtered
from jaxrec.data.sources import load_source
from jaxrec.data.spec import TableSpec, dataset_spec
from jaxrec.data.stream import open_events
from jaxrec.errors import DataError

RATINGS = f"who,what,stars,kind,when\n1,a,5,pv,{SECOND}\n1,b,2,pv,{SECOND}\n2,c,4,x,{SECOND}\n"


def described(directory, text: str, events: str = RATINGS):
    (directory / "log.csv").write_text(events)
    (directory / "dataset.yaml").write_text(text)
    return directory


COLUMNS = "columns: {user_id: who, item_id: what, timestamp: when, rating: stars, event: kind}"


def test_columns_and_event_types_get_jaxrecs_names(tmp_path):
    text = f"events:\n  files: log.csv\n  {COLUMNS}\n  event_types: {{pv: view, x: ''}}\n"
    directory = described(tmp_path, text)
    expected = [("1", "a", "view"), ("1", "b", "view")]
    for source in (directory, directory / "dataset.yaml"):
        events = load_source(str(source)).events
        assert events.select("user_id", "item_id", "event").rows() == expected
    [block] = open_events(directory, 10).blocks()
    assert block.select("user_id", "item_id", "event").rows() == expected


def test_a_described_column_goes_before_one_that_has_the_name(tmp_path):
    text = f"events: {{files: log.csv, {COLUMNS}}}"
    rows = "".join(f"{line},x\n" for line in RATINGS.splitlines()).replace("when,x", "when,user_id")
    directory = described(tmp_path, text, rows)
    events = load_source(str(directory)).events
    assert events["user_id"].to_list() == ["1", "1", "2"]
    assert events["user_id (other)"].to_list() == ["x", "x", "x"]


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("min_rating: 4", [("a", "pv"), ("c", "x")]),
        ("ratings: {bad: 0, good: 4}", [("a", "good"), ("b", "bad"), ("c", "good")]),
        ("ratings: {good: 4}\n  min_rating: 3", [("a", "good"), ("c", "good")]),
    ],
)
def test_ratings_choose_rows_and_event_types(tmp_path, option, expected):
    directory = described(tmp_path, f"events:\n  files: log.csv\n  {COLUMNS}\n  {option}\n")
    tables = load_source(str(directory))
    assert tables.events.select("item_id", "event").rows() == expected
    [block] = open_events(directory, 10).blocks()
    assert block.select("item_id", "event").rows() == expected


def test_a_rating_without_an_event_type_is_refused(tmp_path):
    text = f"events:\n  files: log.csv\n  {COLUMNS}\n  ratings: {{good: 4}}\n"
    with pytest.raises(DataError, match=r"'rating': 1 of 3 values have no event type \(row 2: 2"):
        load_source(str(described(tmp_path, text)))


def test_ratings_that_are_no_numbers_are_refused(tmp_path):
    """A row whose rating has a decimal comma is not one below the lowest rating."""
    directory = described(
        tmp_path,
        f"events:\n  files: log.csv\n  separator: ';'\n  {COLUMNS}\n  min_rating: 4\n",
        RATINGS.replace(",", ";").replace(";5;", ";4,5;"),
    )
    for read in (
        lambda: load_source(str(directory)),
        lambda: [*open_events(directory, 9).blocks()],
    ):
        with pytest.raises(DataError, match=r"'rating': 1 of 3 values are no numbers \(row 1"):
            read()


def test_a_header_names_the_columns_of_a_file_without_one(tmp_path):
    text = "events: {files: log.csv, header: [user_id, item_id, a, event, timestamp]}"
    directory = described(tmp_path, text, RATINGS.partition("\n")[2])
    assert load_source(str(directory)).events["item_id"].to_list() == ["a", "b", "c"]
    text = "events: {files: log.csv, header: [user_id, item_id]}"
    directory = described(tmp_path, text, RATINGS.partition("\n")[2])
    with pytest.raises(DataError, match=r"`header` names 2 columns, but the first row has 5"):
        load_source(str(directory))


def test_separators_make_lists_and_other_encodings_are_read(tmp_path):
    (tmp_path / "items.txt").write_bytes("item_id;category\na;Caf\u00e9/Bar\n".encode("latin-1"))
    text = (
        f"events:\n  files: log.csv\n  {COLUMNS}\n"
        "items: {files: items.txt, encoding: latin-1, separators: {category: /}}\n"
    )
    items = load_source(str(described(tmp_path, text))).items
    assert items.row(0, named=True)["category"] == ["Caf\u00e9", "Bar"]


def test_queries_in_place_of_files(tmp_path):
    text = (
        "events: SELECT who AS user_id, what AS item_id, \"when\" AS timestamp FROM 'log.csv'\n"
        "items: SELECT DISTINCT what AS item_id, 'x' AS brand FROM 'log.csv' ORDER BY what\n"
    )
    tables = load_source(str(described(tmp_path, text)))
    assert tables.events["item_id"].to_list() == ["a", "b", "c"]
    assert tables.items["brand"].to_list() == ["x"] * 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("items: a.csv", "no `events`"),
        ("events: {file: log.csv}", "unknown file; there are columns"),
        ("event: log.csv", "unknown event; there are events, items, triples"),
        ("events: {files: log.csv, sql: SELECT 1}", "either `files` or `sql`"),
        ("events: {columns: {user_id: who}}", "either `files` or `sql`"),
        ("events: [", "is not valid YAML"),
        ("- events", "expected names and values"),
        ("events: {files: log.csv, ratings: {good: many}}", "must be numbers"),
        ("events: {files: log.csv, columns: {user_id: whom}}", "`columns` names 'whom'; the table"),
        ("events: {files: log.csv, separators: {x: /}}", "`separators` needs the column 'x'"),
        ("events: {files: log.csv, encoding: cp1252}", "iconv -f cp1252 -t utf-8"),
        ("events: {files: log.csv, header: [a, b, c, d, a]}", "columns of the same name"),
        ("events: {files: log.csv, columns: {user_id: who, item_id: who}}", "a column twice"),
        ("events: {files: none.csv}", r"none\.csv: no such file"),
    ],
)
def test_a_wrong_description_is_told(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        load_source(str(described(tmp_path, text)))


def test_an_unknown_layout_is_told_with_the_known_ones(tmp_path):
    with pytest.raises(DataError, match=r"no layout 'shop'; there are amazon2023, .*yoochoose"):
        dataset_spec(tmp_path, "shop")


def test_a_description_that_is_not_utf_8_is_named(tmp_path):
    (tmp_path / "dataset.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"dataset\.yaml is not UTF-8 text"):
        dataset_spec(tmp_path)


def test_names_of_tables_in_messages(tmp_path):
    assert TableSpec("events", tmp_path, ("a.csv", "b.csv")).origin == f"{tmp_path / 'a.csv'} ..."
    assert TableSpec("items", sql="SELECT 1").origin == "items (query)"


def test_a_relative_layout_file_reads_another_directory(tmp_path):
    (tmp_path / "data").mkdir()
    pl.DataFrame({"u": ["1"], "i": ["a"], "t": [SECOND]}).write_csv(tmp_path / "data" / "x.csv")
    layout = tmp_path / "mine.yaml"
    layout.write_text("events: {files: x.csv, columns: {user_id: u, item_id: i, timestamp: t}}")
    assert len(load_source(str(tmp_path / "data"), str(layout)).events) == 1


LIMITED = "events: {{sql: \"SELECT current_setting('memory_limit') AS user_id, 'a' AS item_id, {} \
AS timestamp\", memory_limit: {}}}"


def test_the_memory_limit_is_that_of_the_option_or_of_the_description(tmp_path):
    directory = described(tmp_path, LIMITED.format(SECOND, "256MiB"))
    assert load_source(str(directory)).events["user_id"].to_list() == ["256.0 MiB"]
    events = load_source(str(directory), memory_limit="512 MiB").events
    assert events["user_id"].to_list() == ["512.0 MiB"]
    config = Config(data=DataConfig(source=str(directory), memory_limit="1GiB"))
    assert filtered(config).events["user_id"].to_list() == ["1.0 GiB"]
    for source, limit in ((LIMITED.format(SECOND, "much"), ""), ("events: log.csv", "2 GiBs")):
        with pytest.raises(DataError, match="is no size; write it as 2GB"):
            load_source(str(described(tmp_path, source)), memory_limit=limit)


def test_a_query_that_needs_more_memory_than_the_limit_is_refused(tmp_path):
    text = "events: SELECT list(range) AS user_id, 1 AS item_id, 1 AS timestamp FROM range(9000000)"
    with pytest.raises(DataError, match=r"events \(query\): DuckDB needs more .*memory_limit"):
        load_source(str(described(tmp_path, text)), memory_limit="10MB")
