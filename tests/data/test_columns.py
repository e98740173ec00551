from datetime import UTC, date, datetime, timedelta, timezone

import polars as pl
import pytest
from helpers.tables import EVENTS, ITEMS, SECOND, assert_names, message

from jaxrec.data import opener
from jaxrec.data.columns import as_type
from jaxrec.data.sources import load_source
from jaxrec.data.tables import validate_items, validate_tables
from jaxrec.errors import DataError


@pytest.mark.parametrize(
    "categories",
    [
        ["Care > Hair", " Care >  > ", "", None],
        [["Care", None, "Hair"], ["Care ", " ", ""], [], None],
    ],
)
def test_blank_names_are_not_part_of_a_category_path(categories):
    items = pl.DataFrame({"item_id": ["a", "b", "c", "d"], "categories": categories})
    result, *_ = validate_items(items, "items")
    assert result["categories"].to_list() == [
        ["Care", "Hair"],
        ["Care"],
        [],
        None,
    ]


def test_a_category_path_of_paths_is_refused():
    items = pl.DataFrame({"item_id": ["a"], "categories": [[["Care", "Hair"], ["Gifts"]]]})
    with pytest.raises(DataError, match=r"items, column 'categories': wrong type List\(List"):
        validate_items(items, "items")


def test_null_is_the_only_missing_value_of_item_columns():
    """Columns as pandas writes them: NaN, categories, arrays, lists without a value."""
    items = pl.DataFrame(
        [
            pl.Series("item_id", ["a", "b"]),
            pl.Series("price", [1.0, float("nan")]),
            pl.Series("brand", ["acme", None], dtype=pl.Categorical),
            pl.Series("genres", [["x", "y"], ["z", None]], dtype=pl.Array(pl.String, 2)),
            pl.Series("tags", [["new"], []], dtype=pl.List(pl.Categorical)),
            pl.Series("merchant", [[], None], dtype=pl.List(pl.Null)),
        ]
    )
    result, *_ = validate_items(items, "items")
    assert result.to_dict(as_series=False) == {
        "item_id": ["a", "b"],
        "price": [1.0, None],
        "brand": ["acme", None],
        "genres": [["x", "y"], ["z", None]],
        "tags": [["new"], []],
        "merchant": [None, None],
    }
    assert result.schema["brand"] == pl.String and result.schema["tags"] == pl.List(pl.String)


def test_numeric_ids_become_strings_and_event_is_filled_in():
    events = pl.DataFrame({"user_id": [7, 8], "item_id": [1.0, 2.0], "timestamp": [SECOND] * 2})
    tables = validate_tables(events, pl.DataFrame({"item_id": [2, 1]}), None)
    assert tables.events["user_id"].to_list() == ["7", "8"]
    assert tables.events["item_id"].to_list() == ["1", "2"]
    assert tables.events["event"].to_list() == ["event", "event"]
    assert tables.items["item_id"].to_list() == ["2", "1"]


@pytest.mark.parametrize(
    ("timestamps", "milliseconds"),
    [
        ([SECOND, 5], [SECOND * 1000, 5000]),
        ([SECOND * 1000, SECOND * 1000 + 1], [SECOND * 1000, SECOND * 1000 + 1]),
        ([SECOND + 0.25, -1.5], [SECOND * 1000 + 250, -1500]),
        ([date(1970, 1, 2), date(2024, 1, 1)], [86_400_000, 1_704_067_200_000]),
        (
            [datetime(1970, 1, 1, 1), datetime(2024, 1, 1, 0, 0, 0, 9000)],
            [3_600_000, 1_704_067_200_009],
        ),
        (
            [datetime(1970, 1, 1, 1, tzinfo=timezone(timedelta(hours=2))), datetime.now(UTC)],
            [-3_600_000, None],
        ),
        (["1970-01-02", "1970-01-01T00:01"], [86_400_000, 60_000]),
        (["1970-01-01 00:00:01.5", "1970-01-01T00:00:01Z"], [1500, 1000]),
        (["1970-01-01T02:00:00+02:00", "1970-01-01T02:00+0100"], [0, 3_600_000]),
        ([str(SECOND), "3.5"], [SECOND * 1000, 3500]),
        ([SECOND * 10**6, SECOND * 10**6 + 1000], [SECOND * 1000, SECOND * 1000 + 1]),
        ([SECOND * 10**9, SECOND * 10**9 + 10**6], [SECOND * 1000, SECOND * 1000 + 1]),
        ([20231114, 20231115], [1_699_920_000_000, 1_700_006_400_000]),
        (["20231114221320", "20231114221321"], [SECOND * 1000, SECOND * 1000 + 1000]),
        ([45244.5, 45244], [1_699_963_200_000, 1_699_920_000_000]),
        (["2023-11-14 22:13:20 UTC", "2023/11/14 22:13:21"], [SECOND * 1000, SECOND * 1000 + 1000]),
        (["Tue, 14 Nov 2023 22:13:20 GMT", "20231114T221320Z"], [SECOND * 1000] * 2),
        (["2023-11-14 22:13:20 +0000 UTC", "2023-11-14 22:13:20+00"], [SECOND * 1000] * 2),
        (["14/Nov/2023:22:13:20 +0000", "Tue Nov 14 22:13:20 2023"], [SECOND * 1000] * 2),
        (["14.11.2023 22:13:20", "Nov 14, 2023 22:13:20"], [SECOND * 1000] * 2),
        (["Tue Nov 14 22:13:20 +0000 2023", "Tue Nov 14 22:13:20 UTC 2023"], [SECOND * 1000] * 2),
        (["2023-11-14 10:13:20 PM", "Nov 14, 2023, 10:13:20 PM"], [SECOND * 1000] * 2),
        (["20231114 22:13:20", "20231114T221320.000"], [SECOND * 1000] * 2),
        (["2023-11-14t22:13:20z", "14-NOV-2023 22:13:20"], [SECOND * 1000] * 2),
        (["14 Nov 2023", "Nov 14, 2023"], [1_699_920_000_000] * 2),
        (
            ["Tue Nov 14 2023 23:13:20 GMT+0100 (CET)", "2023-11-14 22:13:20,5"],
            [SECOND * 1000, SECOND * 1000 + 500],
        ),
        ([2023111422, 2023111423], [1_699_999_200_000, 1_700_002_800_000]),
        (["202311142213", "202311142214"], [1_699_999_980_000, 1_700_000_040_000]),
        ([20231114221320_250, 20231114221320_500], [SECOND * 1000 + 250, SECOND * 1000 + 500]),
        ([638_355_968_000_000_000 + 10_000] * 2, [SECOND * 1000 + 1] * 2),
    ],
)
def test_timestamps_become_milliseconds(timestamps, milliseconds):
    events = EVENTS.head(2).with_columns(pl.Series("timestamp", timestamps, strict=False))
    result = validate_tables(events, ITEMS, None).events["timestamp"]
    assert result.dtype == pl.Int64
    expected = zip(result, milliseconds, strict=True)
    assert all(time is None or value == time for value, time in expected)


def test_time_zones_of_datetime_columns_count():
    local = pl.Series("timestamp", [datetime(1970, 1, 1, 9)]).dt.replace_time_zone("Asia/Tokyo")
    assert (
        validate_tables(EVENTS.head(1).with_columns(local), ITEMS, None).events["timestamp"][0] == 0
    )


@pytest.mark.parametrize("positions", [[0, 1, 2], [0.0, 1.0, 2.0], ["0", "1", "2"]])
def test_order_keeps_positions(positions):
    events = EVENTS.with_columns(pl.Series("timestamp", positions))
    tables = validate_tables(events, ITEMS, None, time="order")
    assert tables.events["timestamp"].to_list() == [0, 1, 2]
    assert tables.events["timestamp"].dtype == pl.Int64
    assert tables.notes == ()


def test_positions_taken_for_seconds_are_noted():
    tables = validate_tables(EVENTS.with_columns(timestamp=pl.Series([0, 1, 2])), ITEMS, None)
    assert "time: order" in tables.notes[0]


@pytest.mark.parametrize("time", [-(2**62), 2**63 - 1])  # the last is infinity in DuckDB
def test_a_time_outside_all_years_of_python_is_shown_as_a_number(time):
    times = pl.Series([time] * 3).cast(pl.Datetime("us"))
    tables = validate_tables(EVENTS.with_columns(timestamp=times), ITEMS, None)
    assert f"lie outside 1980 to tomorrow (row 1: {time})" in tables.warnings[0]


def test_times_of_which_the_last_part_has_none_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(opener, "ROWS_PER_BATCH", 2)
    times = pl.Series("timestamp", [SECOND, SECOND, None])
    EVENTS.with_columns(times).write_parquet(tmp_path / "events.parquet")
    with pytest.raises(DataError, match=r"'timestamp': 1 of 3 values are .* \(row 3: None\)"):
        load_source(str(tmp_path), as_codes=True)


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ([[1], [2], [3]], ["wrong type List(Int64)", "row 1", "Convert it to"]),
        ([True, False, True], ["wrong type Boolean", "Convert it to"]),
        ([SECOND, None, SECOND], ["row 2: None", "Use integer seconds"]),
        ([1.0, float("nan"), float("inf")], ["2 of 3", "row 2: nan, row 3: inf", "Use integer"]),
        (["2024-01-01", "yesterday", "01/02/2024"], ["row 2: 'yesterday', row 3: '01/02/2024'"]),
        ([str(SECOND), "yesterday", "3"], ["1 of 3", "row 2: 'yesterday'", "Use integer seconds"]),
        ([SECOND * 1000, SECOND, SECOND * 1000], [f"row 2: {SECOND}", "Use one unit"]),
        ([SECOND * 1000, SECOND * 10**6, SECOND * 1000], ["look like microseconds among milli"]),
        ([20231114, 20231399, 20231115], ["1 of 3 values are not dates like", "row 2: 20231399"]),
        ([SECOND * 10**7] * 3, ["beyond the year 5138", "row 1", "Use integer seconds"]),
    ],
)
def test_bad_timestamps(tmp_path, values, parts):
    events = EVENTS.with_columns(pl.Series("timestamp", values, strict=False))
    assert_names(message(tmp_path, events), "events.parquet, column 'timestamp'", *parts)


@pytest.mark.parametrize("values", [[0.0, 1.5, 2.0], ["0", "one", "2"], [0, None, 2]])
def test_bad_positions(tmp_path, values):
    events = EVENTS.with_columns(pl.Series("timestamp", values))
    text = message(tmp_path, events, time="order")
    assert_names(text, "column 'timestamp'", f"row 2: {values[1]!r}", "Positions are integers")


@pytest.mark.parametrize(
    ("column", "values", "parts"),
    [
        ("user_id", ["u", None, ""], ["2 of 3", "row 2: None, row 3: ''", "WHERE user_id <> ''"]),
        ("user_id", [1.0, None, 2.0], ["row 2: None", "WHERE user_id IS NOT NULL"]),
        ("item_id", ["a", "\u200b", "b"], ["row 2: '\\u200b'", "null or empty"]),
        ("user_id", [None, None, None], ["3 of 3", "row 1: None"]),
        ("item_id", ["007", " ", "b"], ["row 2: ' '", "Fill them in"]),
        ("item_id", [1.0, 2.5, 3.0], ["row 2: 2.5", "Write ids as text or integers"]),
        ("item_id", [1.0, None, float("nan")], ["row 3: nan"]),
        ("item_id", [["b"], ["b"], ["b"]], ["wrong type List(String)", "Convert it to text"]),
        ("event", ["view", None, "buy"], ["row 2: None", "Fill them in"]),
        ("session_id", [0.5, 1.0, 2.0], ["row 1: 0.5", "Write ids as"]),
    ],
)
def test_bad_ids_of_events(tmp_path, column, values, parts):
    events = EVENTS.with_columns(pl.Series(column, values))
    assert_names(message(tmp_path, events), f"events.parquet, column '{column}'", *parts)


def test_a_value_of_several_lines_is_shown_in_one(tmp_path):
    lists = [[{"a": "x\n" * 50, "b": list(range(99))}]] * 3
    for column in ("item_id", "event", "timestamp"):
        events = EVENTS.with_columns(pl.Series(column, lists))
        text = message(tmp_path, events)
        assert_names(text, f"column '{column}': wrong type List(Struct", "row 1: [{'a': 'x")
        assert "\n" not in text
        assert len(text) < 400


@pytest.mark.parametrize("events", [pl.DataFrame(), pl.DataFrame(schema=["user_id"])])
def test_a_table_without_columns_or_rows(events):
    with pytest.raises(DataError, match=r"events: (no column 'user_id'; it has no col|the)"):
        validate_tables(events, None, None)


def test_the_smallest_integer_is_no_timestamp(tmp_path):
    for smallest in (-(2**63), -(2**63) + 1):
        events = EVENTS.with_columns(timestamp=pl.lit(smallest))
        assert_names(message(tmp_path, events), "3 of 3 values are beyond the year 5138")


def test_no_more_than_five_rows_are_shown(tmp_path):
    events = pl.concat([EVENTS] * 4).with_columns(user_id=pl.lit(None, pl.String))
    text = message(tmp_path, events)
    assert_names(text, "12 of 12", "row 5")
    assert "row 6" not in text


def test_values_take_the_type_that_their_column_has_in_the_catalogue():
    prices = pl.Series("price", [1.0, 2.5])
    assert as_type(prices.head(1), pl.Int64(), "items").to_list() == [1]
    assert as_type(prices, pl.Int64(), "items").equals(prices)
    days = as_type(pl.Series("day", ["2024-01-31"]), pl.Date(), "items")
    assert days.to_list() == [date(2024, 1, 31)]
    for table in ("items", "new items"):
        with pytest.raises(DataError, match=rf"^{table}, column 'price': String does not become"):
            as_type(pl.Series("price", ["cheap"]), pl.Int64(), table)
