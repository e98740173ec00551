"""Reading, validating and filtering the three tables."""

from collections import Counter
from datetime import UTC, date, datetime, timedelta, timezone

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from jaxrec.data.tables import Tables, filter_tables, read_tables, validate_items, validate_tables
from jaxrec.errors import DataError

SECOND = 1_700_000_000
EVENTS = pl.DataFrame(
    {
        "user_id": ["02", "01", "02"],
        "item_id": ["007", "b", "b"],
        "timestamp": [SECOND * 1000 + 500, SECOND * 1000, SECOND * 1000 + 2000],
        "event": ["view", "buy", "view"],
        "event_id": ["1", "2", "3"],
        "session_id": ["s", None, "t"],
    }
)
ITEMS = pl.DataFrame(
    {
        "item_id": ["b", "007", "unsold"],
        "title": ["Red shoe", None, "Blue sock, left"],
        "price": [1.5, 2.0, None],
        "categories": [["Shoes", "Red"], ["Shoes"], ["Socks"]],
    }
)
TRIPLES = pl.DataFrame(
    [
        ("item", "b", "made_by", "entity", "acme"),
        ("entity", "acme", "based_in", "entity", "Oslo"),
        ("item", "b", "goes_with", "item", "007"),
    ],
    schema=["head_type", "head", "relation", "tail_type", "tail"],
    orient="row",
)


def write_parquet(directory):
    EVENTS.write_parquet(directory / "events.parquet")
    ITEMS.write_parquet(directory / "items.parquet")
    TRIPLES.write_parquet(directory / "triples.parquet")


def write_jsonl(directory):
    EVENTS.write_ndjson(directory / "events.jsonl")
    ITEMS.write_ndjson(directory / "items.jsonl")
    TRIPLES.write_ndjson(directory / "triples.jsonl")


def write_csv(directory):
    EVENTS.write_csv(directory / "events.csv")
    paths = ITEMS.with_columns(pl.col("categories").list.join(" > "))
    paths.write_csv(directory / "items.csv")
    TRIPLES.write_csv(directory / "triples.csv")


def write_atomic(directory):
    (directory / "shop.inter").write_text(
        "user_id:token\titem_id:token\ttimestamp:float\tevent:token\tevent_id:token"
        "\tsession_id:token\n"
        f"02\t007\t{SECOND}.5\tview\t1\ts\n"
        f"01\tb\t{SECOND}\tbuy\t2\t\n"
        f"02\tb\t{SECOND + 2}\tview\t3\tt\n"
    )
    (directory / "shop.item").write_text(
        "item_id:token\ttitle:token\tprice:float\tcategories:token_seq\n"
        "b\tRed shoe\t1.5\tShoes Red\n007\t\t2\tShoes\nunsold\tBlue sock, left\t\tSocks\n"
    )
    (directory / "shop.kg").write_text(
        "head_id:token\trelation_id:token\ttail_id:token\n"
        "m.b\tmade_by\tacme\nacme\tbased_in\tOslo\nm.b\tgoes_with\tm.7\n"
    )
    (directory / "shop.link").write_text(
        "item_id:token\tentity_id:token\nb\tm.b\n007\tm.7\nnot here\tacme\n"
    )


@pytest.mark.parametrize("write", [write_parquet, write_jsonl, write_csv, write_atomic])
def test_every_format_gives_the_same_tables(tmp_path, write):
    write(tmp_path)
    tables = read_tables(tmp_path, strict=True)
    assert_frame_equal(tables.events, EVENTS)
    assert_frame_equal(tables.items, ITEMS)
    assert tables.triples is not None
    assert_frame_equal(tables.triples, TRIPLES)
    assert tables.notes == ()


def test_atomic_sequences_of_numbers_become_lists(tmp_path):
    write_atomic(tmp_path)
    (tmp_path / "shop.item").write_text("item_id:token\tv:float_seq\nb\t1 2.5\n007\t3 4\n")
    items = read_tables(tmp_path).items
    assert items["v"].to_list() == [[1.0, 2.5], [3.0, 4.0]]


def test_crlf_and_unquoted_quotes_in_atomic_files(tmp_path):
    write_atomic(tmp_path)
    text = 'item_id:token\ttitle:token\r\nb\t6" heel\r\n007\t"Sock\r\n'
    (tmp_path / "shop.item").write_bytes(text.encode())
    assert read_tables(tmp_path).items["title"].to_list() == ['6" heel', '"Sock']


@pytest.mark.parametrize(
    "categories",
    [
        ["Care > Hair", " Care >  > ", "", None],
        [["Care", None, "Hair"], ["Care ", " ", ""], [], None],
    ],
)
def test_blank_names_are_not_part_of_a_category_path(categories):
    items = pl.DataFrame({"item_id": ["a", "b", "c", "d"], "categories": categories})
    found, _ = validate_items(items, "items")
    assert found["categories"].to_list() == [
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
    """As pandas writes them: NaN, categories, arrays, lists without a value."""
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
    found, _ = validate_items(items, "items")
    assert found.to_dict(as_series=False) == {
        "item_id": ["a", "b"],
        "price": [1.0, None],
        "brand": ["acme", None],
        "genres": [["x", "y"], ["z", None]],
        "tags": [["new"], []],
        "merchant": [None, None],
    }
    assert found.schema["brand"] == pl.String and found.schema["tags"] == pl.List(pl.String)


def test_numeric_ids_become_strings_and_event_is_filled_in():
    events = pl.DataFrame({"user_id": [7, 8], "item_id": [1.0, 2.0], "timestamp": [SECOND] * 2})
    tables = validate_tables(events, pl.DataFrame({"item_id": [2, 1]}), None)
    assert tables.events["user_id"].to_list() == ["7", "8"]
    assert tables.events["item_id"].to_list() == ["1", "2"]
    assert tables.events["event"].to_list() == ["event", "event"]
    assert tables.items["item_id"].to_list() == ["2", "1"]


def test_other_columns_follow_the_known_ones():
    events = EVENTS.select(pl.lit(4).alias("rating"), pl.all().reverse())
    assert validate_tables(events, ITEMS, None).events.columns == [*EVENTS.columns, "rating"]


def test_without_an_items_table_the_events_give_the_items(tmp_path):
    EVENTS.write_csv(tmp_path / "events.csv")
    tables = read_tables(tmp_path, strict=True)
    assert tables.items["item_id"].to_list() == ["007", "b"]
    assert tables.triples is None
    assert "2 items are those of the events" in tables.notes[0]


# ---- timestamps


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
    ],
)
def test_timestamps_become_milliseconds(timestamps, milliseconds):
    events = EVENTS.head(2).with_columns(pl.Series("timestamp", timestamps, strict=False))
    found = validate_tables(events, ITEMS, None).events["timestamp"]
    assert found.dtype == pl.Int64
    expected = zip(found, milliseconds, strict=True)
    assert all(want is None or value == want for value, want in expected)


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


# ---- bad input: the message names file, column, rows and fix


def message(directory, events=EVENTS, items=ITEMS, triples=TRIPLES, **options) -> str:
    """What reading these tables from Parquet raises."""
    for name, frame in {"events": events, "items": items, "triples": triples}.items():
        frame.write_parquet(directory / f"{name}.parquet")
    with pytest.raises(DataError) as caught:
        read_tables(directory, **options)
    return str(caught.value)


def assert_names(text: str, *parts: str) -> None:
    for part in parts:
        assert part in text, f"{part!r} is not in {text!r}"


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


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_file_of_zero_bytes(tmp_path, suffix):
    (tmp_path / f"events.{suffix}").touch()
    with pytest.raises(DataError, match=rf"events\.{suffix}: (the file is empty|cannot be read)"):
        read_tables(tmp_path)


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
        ([SECOND * 10**6] * 3, ["beyond the year 5138", "row 1", "Use integer seconds"]),
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


def test_bad_number_in_atomic_file(tmp_path):
    write_atomic(tmp_path)
    path = tmp_path / "shop.inter"
    path.write_text(path.read_text().replace(f"{SECOND}.5", "noon"))
    with pytest.raises(DataError) as caught:
        read_tables(tmp_path)
    assert_names(str(caught.value), "shop.inter, column 'timestamp:float'", "row 1: 'noon'")


@pytest.mark.parametrize(
    ("column", "values", "parts"),
    [
        ("user_id", ["u", None, ""], ["2 of 3", "row 2: None, row 3: ''", "Fill them in"]),
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


def test_no_more_than_five_rows_are_shown(tmp_path):
    events = pl.concat([EVENTS] * 4).with_columns(user_id=pl.lit(None, pl.String))
    text = message(tmp_path, events)
    assert_names(text, "12 of 12", "row 5")
    assert "row 6" not in text


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


@pytest.mark.parametrize(
    ("name", "header"),
    [("items.csv", "item_id,t,t"), ("x.item", "item_id:token\tt:token\tt:float")],
)
def test_columns_of_the_same_name_in_a_header(tmp_path, name, header):
    EVENTS.write_csv(tmp_path / "events.csv")
    (tmp_path / name).write_text(f"{header}\n")
    with pytest.raises(DataError, match=rf"{name}: columns of the same name \('t', 't'\); rename"):
        read_tables(tmp_path)


def test_events_of_unknown_items(tmp_path):
    items = ITEMS.filter(pl.col("item_id") != "b")
    text = message(tmp_path, items=items, strict=True)
    parts = ["events.parquet, column 'item_id'", "2 of 3", "items.parquet", "row 2: 'b'", "Add"]
    assert_names(text, *parts)

    tables = read_tables(tmp_path)
    assert tables.items["item_id"].to_list() == ["007", "unsold", "b"]
    assert tables.items.row(2) == ("b", None, None, None)
    assert_frame_equal(tables.events, EVENTS)
    assert_names(tables.notes[0], "not in", "2 (of 1 items)")


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

    tables = read_tables(tmp_path)
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
    with pytest.raises(DataError, match="nowhere: no such directory; give one"):
        read_tables(tmp_path / "nowhere")


def test_directory_without_events(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"no events table \(it holds notes.txt\); name it"):
        read_tables(tmp_path)


def test_two_tables_of_events(tmp_path):
    write_csv(tmp_path)
    write_parquet(tmp_path)
    with pytest.raises(DataError, match=r"events.parquet and events.csv\); keep one"):
        read_tables(tmp_path)


def test_kg_without_link(tmp_path):
    write_atomic(tmp_path)
    (tmp_path / "shop.link").unlink()
    with pytest.raises(DataError, match=r"shop\.kg: needs shop\.link beside it"):
        read_tables(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("events.parquet", b"not parquet"),
        ("events.jsonl", b'{"user_id": 1, "item'),
        ("events.csv", b"user_id,item_id,timestamp\n1,2,3,4,5\n"),
        ("events.csv", b"user_id,item_id,timestamp\n\xff\xfe,2,3\n"),
        ("x.inter", b"user_id:token\titem_id:token\ttimestamp:float\n1\t2\t3\t4\n"),
    ],
)
def test_corrupt_file(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}: cannot be read \(.+\); write it again"):
        read_tables(tmp_path)


def test_truncated_parquet(tmp_path):
    path = tmp_path / "events.parquet"
    EVENTS.write_parquet(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"events.parquet: cannot be read"):
        read_tables(tmp_path)


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


def test_nobody_left():
    with pytest.raises(DataError) as caught:
        filter_tables(log("1a", "1a", "1b", "2a"), min_user_events=9)
    parts = ["No user is left", "min_user_events=9", "3 events of a user", "3 of an item", "Lower"]
    assert_names(str(caught.value), *parts)
