"""Tables in every format and dialect that shops export."""

import gzip
import os
from decimal import Decimal

import polars as pl
import pytest
from helpers.tables import EVENTS, SECOND

from jaxrec.config import Config, DataConfig, SplitConfig
from jaxrec.data import file_query
from jaxrec.data.dataset import prepare
from jaxrec.data.opener import open_source, open_table, read_table
from jaxrec.data.sources import load_source
from jaxrec.data.spec import TableSpec
from jaxrec.errors import DataError

ROWS = [("u1", "007"), ("u1", "b"), ("u2", "b")]
COMMA = "user_id,item_id,timestamp\n" + "".join(f"{u},{i},{SECOND}\n" for u, i in ROWS)


def pairs(source) -> list[tuple[str, str]]:
    return load_source(str(source)).events.select("user_id", "item_id").rows()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("events.csv", COMMA.replace(",", ";").encode()),
        ("events.csv", COMMA.replace(",", "\t").encode()),
        ("events.tsv", COMMA.replace(",", "\t").encode()),
        ("events.csv", COMMA.replace(",", "|").encode()),
        ("events.dat", COMMA.replace(",", "::").encode()),
        ("events.csv.gz", gzip.compress(COMMA.encode(), mtime=0)),
        ("events.csv", b"\xef\xbb\xbf" + COMMA.encode()),
        ("events.csv", COMMA.replace("\n", "\r").encode()),
        ("events.csv", COMMA.replace("\n", "\r\n").encode()),
        ("events.csv", COMMA.replace("user_id,item_id", "User_ID, ITEM_ID ").encode()),
        ("events.csv", b'"user_id","item_id","timestamp"\n' + COMMA.partition("\n")[2].encode()),
        ("events.csv", COMMA.replace(",", "\x01").encode()),
        ("events.csv", COMMA.replace(",", "~").encode()),
        ("events.csv", COMMA.replace(",", "','").replace("\n", "'\n'").join("''").encode()[:-2]),
        ("events.csv", f"sep=;\n{COMMA.replace(',', ';')}".encode()),
        ("events.csv", f"# exported\n# today\n{COMMA}".encode()),
        ("events.csv", COMMA.encode("utf-16")),
        ("events.csv", COMMA.replace("user_id,item_id", "userId,Item ID").encode()),
        ("EVENTS.CSV", COMMA.encode()),
        (
            "events.csv",
            COMMA.replace("p\n", "p,title\n").replace("0\n", '0,"a\r\nb"\n').encode(),
        ),
    ],
    ids=[
        *(
            "semicolon",
            "tab",
            "tsv",
            "bar",
            "colons",
            "gzip",
            "bom",
            "cr",
            "crlf",
            "case",
            "quoted",
        ),
        *("hive", "tilde", "apostrophes", "sep", "comments", "utf-16", "spelling", "capitals"),
        "line ends in quotes",
    ],
)
def test_dialects_of_text_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert pairs(tmp_path) == ROWS


JSON_ROWS = [
    f'{{"user_id": "{user}", "item_id": "{item}", "timestamp": {SECOND}}}' for user, item in ROWS
]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("events.jsonl", "\n".join(JSON_ROWS)),
        ("events.ndjson", "\ufeff" + "\n".join(JSON_ROWS)),
        ("events.json", "[" + ",\n".join(JSON_ROWS) + "]"),
        ("events.json", "\ufeff[" + ",\n".join(JSON_ROWS) + "]"),
    ],
)
def test_json_lines_and_arrays(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert pairs(tmp_path) == ROWS


def test_parts_in_a_directory_are_one_table(tmp_path):
    """As Spark writes it: part files, a marker and checksums; also below `column=value`.

    Directories above the table hide nothing and give no columns.
    """
    source = tmp_path / "item_id=9" / "_exports"
    parts = source / "events.parquet"
    (parts / "day=2").mkdir(parents=True)
    EVENTS.head(2).write_parquet(parts / "part-0.parquet")
    EVENTS.tail(1).write_parquet(parts / "day=2" / "part-1.parquet")
    (parts / "_SUCCESS").touch()
    (parts / "part-2.parquet").touch()
    (parts / "_temporary").mkdir()
    EVENTS.write_parquet(parts / "_temporary" / "part-3.parquet")
    (parts / ".part-0.parquet.crc").write_bytes(b"crc")
    expected = EVENTS.select("user_id", "item_id").rows()
    for place in (source, parts, parts / "**/part-*.parquet"):
        assert sorted(pairs(place)) == sorted(expected)
    (parts / "part-0.parquet").unlink()
    assert read_table(parts)["day"].to_list() == [2]


def test_a_file_beside_its_compressed_copy_is_refused(tmp_path):
    parts = tmp_path / "events"
    parts.mkdir()
    (parts / "part-0.csv").write_text(COMMA)
    (parts / "part-0.csv.gz").write_bytes(gzip.compress(COMMA.encode()))
    with pytest.raises(DataError, match=r"part-0\.csv\.gz: part-0\.csv is there too"):
        pairs(tmp_path)


@pytest.mark.parametrize(
    ("log", "name"),
    [
        ("_delta_log/00000000000000000000.json", "Delta"),
        (".hoodie/hoodie.properties", "Hudi"),
        ("metadata/v1.metadata.json", "Iceberg"),
    ],
)
def test_a_directory_whose_log_says_which_rows_hold_is_refused(tmp_path, log, name):
    parts = tmp_path / "events"
    (parts / log).parent.mkdir(parents=True)
    (parts / log).touch()
    EVENTS.write_parquet(parts / "part-0.parquet")
    with pytest.raises(DataError, match=rf"events: this is a {name} table"):
        pairs(tmp_path)


def test_ids_keep_their_text_and_whole_floats_become_integers(tmp_path):
    """As pandas writes ids of a float column. `3.0` beside `x` is no number, so it stays."""
    path = tmp_path / "events.csv"
    path.write_text(f"user_id,item_id,timestamp\n3.0,1.0,{SECOND}\n007.0,x,{SECOND}\n")
    assert pairs(path) == [("3", "1.0"), ("007", "x")]
    path.write_text(f"user_id,item_id,timestamp\n007,1e5,{SECOND}\n")
    assert pairs(path) == [("007", "1e5")]


@pytest.mark.parametrize("column", ["user_id", "item_id", "timestamp"])
def test_numbers_that_a_spreadsheet_rounded_are_refused(tmp_path, column):
    path = tmp_path / "events.csv"
    EVENTS.with_columns(pl.lit("1.5E+18").alias(column)).write_csv(path)
    with pytest.raises(DataError, match=rf"'{column}': 3 of 3 values have lost digits \(row 1"):
        pairs(path)


def test_columns_without_a_name_do_no_harm(tmp_path):
    """As pandas writes its index, and as some programs end their lines."""
    lines = COMMA.splitlines()
    (tmp_path / "events.csv").write_text("\n".join(f",{line}," for line in lines))
    assert pairs(tmp_path) == ROWS


def test_json_ids_that_look_like_numbers_dates_or_uuids_keep_their_text(tmp_path):
    ids = ["A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "2024-01-01", "00:10:00"]
    pl.DataFrame({"user_id": ids, "item_id": ids, "timestamp": [SECOND] * 3}).write_ndjson(
        tmp_path / "events.jsonl"
    )
    assert pairs(tmp_path) == [(value, value) for value in ids]
    (tmp_path / "events.jsonl").write_text(
        f'{{"user_id": 12345678901234567890123, "item_id": 1, "timestamp": {SECOND}}}\n'
        f'{{"user_id": "x", "item_id": 2, "timestamp": {SECOND}}}'
    )
    assert pairs(tmp_path) == [("12345678901234567890123", "1"), ("x", "2")]


@pytest.mark.parametrize("value", ['["a"]', '{"$oid": "a"}'])
def test_json_ids_of_which_some_are_lists_or_objects_are_refused(tmp_path, value):
    row = f'{{"user_id": "u", "item_id": {value}, "timestamp": {SECOND}}}'
    (tmp_path / "events.jsonl").write_text("\n".join([*JSON_ROWS, row]))
    with pytest.raises(DataError, match="'item_id': some values are lists or objects, such as "):
        pairs(tmp_path)


def test_decimal_and_binary_ids(tmp_path):
    times = pl.Series("timestamp", [SECOND] * 2)
    decimals = pl.Series("user_id", [Decimal(10**20), Decimal(7)], pl.Decimal(38, 0))
    binary = pl.Series("item_id", [b"a", "\u00e9".encode()])
    pl.DataFrame([decimals, binary, times]).write_parquet(tmp_path / "events.parquet")
    assert pairs(tmp_path) == [(str(10**20), "a"), ("7", "\u00e9")]
    broken = pl.DataFrame([decimals, pl.Series("item_id", [b"a", b"\xff"]), times])
    broken.write_parquet(tmp_path / "events.parquet")
    with pytest.raises(DataError, match=r"'item_id': 1 of 2 values are not UTF-8 \(row 2"):
        pairs(tmp_path)


@pytest.mark.parametrize(("dtype", "first"), [(pl.Float64, 2**53), (pl.Float32, 2**24)])
def test_floats_that_cannot_tell_ids_or_times_apart_are_refused(tmp_path, dtype, first):
    ids = pl.Series("user_id", [first, first - 1], dtype)
    frame = EVENTS.head(2).with_columns(ids)
    frame.write_parquet(tmp_path / "events.parquet")
    with pytest.raises(DataError, match=r"'user_id': 1 of 2 values are 2\*\*\d\d or more, where"):
        pairs(tmp_path)
    times = pl.Series("timestamp", [SECOND, SECOND], pl.Float32)
    EVENTS.head(2).with_columns(times).write_parquet(tmp_path / "events.parquet")
    with pytest.raises(DataError, match="'timestamp': 2 of 2 values are 2"):
        pairs(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("events.csv", b"1,2,3\n4,5,6\n", r"the first row looks like data.*`header: \[user_id"),
        ("events.csv", b"u,2019-10-02,x\nu,2019-10-03,y\n", "the first row looks like data"),
        ("events.csv", COMMA.encode() * 1000 + b"u,i\n", r"line 4001 does not fit the header: u,i"),
        ("events.csv.gz", gzip.compress(b"u,i,1" * 8, mtime=0)[:20] + b"x" * 40, "cannot be read"),
        ("events.csv", COMMA.encode() + b'u,i,"\r\n"\nu,i\n', "line 6 does not fit the header"),
        ("events.csv", COMMA.encode() + b"u,i,1\r\n", r"its lines end in \\r\\n and in \\n"),
        ("events.csv", COMMA.encode() + b"u" * 2100000 + b",i,1\n", "line 5 is longer than 2 MB"),
        ("events.csv", COMMA.encode() + b"u,i\n", r"line 5 does not fit the header: u,i"),
        ("events.csv", COMMA.encode() + b"\xff,i,1\n", "line 5 is not utf-8 text.*`encoding`"),
        ("events.csv", COMMA.encode() + b'"u,i,1\n', "a quote in line 5 is not closed"),
        ("events.csv", b"\n" + COMMA.encode(), "the first line is blank"),
        ("events.jsonl", "\n".join(JSON_ROWS)[:-20].encode(), "row 3 is cut off"),
        ("events.jsonl", f"{JSON_ROWS[0]}\n{{x\n{JSON_ROWS[1]}".encode(), "row 2: Expecting"),
        ("events.parquet", b"PAR1 and no more", "cannot be read"),
    ],
)
def test_a_broken_file_is_named_with_its_row(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_table(path)
    text = str(caught.value)
    assert str(path) in text and "\n" not in text and len(text) < 600


def test_a_table_of_a_data_set_is_opened_as_its_description_says(tmp_path):
    (tmp_path / "log.csv").write_text(COMMA)
    (tmp_path / "goods.csv").write_text("sku,name\nb,Mug\n")
    items = "{files: goods.csv, columns: {item_id: sku, title: name}}"
    (tmp_path / "dataset.yaml").write_text(f"events: log.csv\nitems: {items}\n")
    for source in (tmp_path, tmp_path / "dataset.yaml"):
        assert open_source(source, "items").read().rows(named=True) == [
            {"item_id": "b", "title": "Mug"}
        ]
    assert open_source(tmp_path / "goods.csv", "items").columns == ("sku", "name")
    with pytest.raises(DataError, match="it has no triples; add them"):
        open_source(tmp_path, "triples")


def test_fields_of_nested_json_are_columns(tmp_path):
    rows = "".join(f'{{"u": {{"id": "{u}"}}, "i": "{i}", "at": {SECOND}}}\n' for u, i in ROWS)
    (tmp_path / "log.jsonl").write_text(rows)
    columns = "{user_id: u.id, item_id: i, timestamp: at}"
    (tmp_path / "dataset.yaml").write_text(f"events: {{files: log.jsonl, columns: {columns}}}\n")
    assert pairs(tmp_path) == ROWS


def test_words_for_no_value_do_not_make_a_column_text(tmp_path):
    text = "item_id,stock,new\na, 3,True\nb,NULL,FALSE\nc,nan,\nd,-1,\n"
    (tmp_path / "items.csv").write_text(text)
    table = read_table(tmp_path / "items.csv")
    assert table["stock"].to_list() == [3, None, None, -1]
    assert table["new"].to_list() == [True, False, None, None]


@pytest.mark.parametrize(
    "sql", ["SELECT INTERVAL 1 DAY AS x", "SELECT union_value(a := 1) AS x", "SELECT '1'::BIT AS x"]
)
def test_types_that_polars_lacks_become_text(sql):
    assert open_table(TableSpec("items", sql=sql)).read()["x"].dtype == pl.String


@pytest.mark.parametrize("text", ["1.5e+18", "9007199254740993.0"])
def test_json_ids_that_a_float_cannot_tell_apart_are_refused(tmp_path, text):
    rows = f'{{"user_id": {text}, "item_id": "a", "timestamp": {SECOND}}}\n'
    (tmp_path / "events.jsonl").write_text(2 * rows)
    with pytest.raises(DataError, match="column 'user_id': 2 of 2 values have lost digits"):
        load_source(str(tmp_path))


def test_a_missing_file_is_told_with_its_neighbours(tmp_path):
    EVENTS.write_parquet(tmp_path / "events.parquet")
    with pytest.raises(DataError, match=r"evnts\.parquet: no such file.* holds events\.parquet\)"):
        read_table(tmp_path / "evnts.parquet")


def test_a_pipe_is_no_missing_file(tmp_path):
    os.mkfifo(tmp_path / "events.csv")
    with pytest.raises(DataError, match=r"events\.csv: a pipe or device, which is read once"):
        read_table(tmp_path / "events.csv")


def test_files_of_one_table_have_one_header(tmp_path):
    (tmp_path / "a.csv").write_text("item_id,price\nx,1\n")
    (tmp_path / "b.csv").write_text("price,item_id\n1,x\n")
    with pytest.raises(DataError, match=r"b\.csv: its header \(price,item_id\) is not that of"):
        read_table(tmp_path / "*.csv")


def test_columns_of_text_files_become_numbers_only_if_all_values_are(tmp_path):
    path = tmp_path / "items.csv"
    path.write_text("item_id,price,size,new,none\n1,2,S,true,\n2,1.5,10,false,\n")
    frame = read_table(path)
    assert frame.schema["price"] == pl.Float64 and frame["new"].to_list() == [True, False]
    assert frame["size"].to_list() == ["S", "10"] and frame["item_id"].to_list() == ["1", "2"]


def test_a_query_over_files(tmp_path):
    (tmp_path / "a.csv").write_text("k,v\n007,1\n")
    sql = "SELECT k AS item_id, v AS price FROM read_csv('*.csv', all_varchar = true) -- all"
    frame = open_table(TableSpec("items", tmp_path, sql=sql)).read()
    assert frame.rows() == [("007", "1")]


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT 1; SELECT 2", "give one SELECT statement"),
        ("DROP TABLE x", "give one SELECT statement"),
        ("SELECT * FROM 'none.csv'", r"items \(query\): .*none\.csv"),
        ("SELECT a FROM (SELECT 1 AS b)", r"items \(query\): .*\"a\""),
    ],
)
def test_a_wrong_query_is_an_error_of_one_line(tmp_path, sql, message):
    with pytest.raises(DataError, match=message) as caught:
        open_table(TableSpec("items", tmp_path, sql=sql)).read()
    assert "\n" not in str(caught.value)


def test_training_looks_for_the_types_of_a_json_file_once(tmp_path, monkeypatch, tables):
    tables.events.write_ndjson(tmp_path / "events.jsonl")
    calls, original = [], file_query._json_query
    monkeypatch.setattr(
        file_query, "_json_query", lambda *given: calls.append(given) or original(*given)
    )
    source = str(tmp_path / "events.jsonl")
    config = Config(data=DataConfig(source=source), split=SplitConfig(scheme="leave_one_out"))
    assert prepare(config).item_id_type == "String"
    assert len(calls) == 1
