"""Files whose names do not say what they hold."""

import bz2
import gzip
import io

import pytest
from helpers.tables import EVENTS

from jaxrec.data.opener import read_table
from jaxrec.data.sources import load_source
from jaxrec.errors import DataError

CSV, JSON = EVENTS.write_csv().encode(), EVENTS.write_ndjson().encode()


def parquet() -> bytes:
    EVENTS.write_parquet(buffer := io.BytesIO())
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("events.csv", gzip.compress(CSV, mtime=0)),
        ("events.csv.gz", CSV),
        ("events.jsonl", gzip.compress(JSON, mtime=0)),
        ("events.csv", JSON),
        ("events.csv", parquet()),
        ("part-0000", parquet()),
    ],
    ids=["gzip", "plain", "gzip of JSON", "JSON", "Parquet", "no suffix"],
)
def test_a_file_is_read_by_what_it_holds(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    frame = read_table(tmp_path / name)
    assert frame["item_id"].to_list() == EVENTS["item_id"].to_list()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"PK\x03\x04 ...",
            "ZIP archive or a spreadsheet, which is not read. Unpack it, or export",
        ),
        (bz2.compress(b"x"), "compressed by bzip2, which is not read. Compress it by gzip"),
        (b"ARROW1\0\0", "Arrow .* Write it as Parquet"),
    ],
)
def test_other_formats_are_named_with_the_fix(tmp_path, content, message):
    (tmp_path / "events.csv").write_bytes(content)
    with pytest.raises(DataError, match=rf"events\.csv: this is .*{message}"):
        read_table(tmp_path / "events.csv")


def test_two_compressions_in_a_table_are_refused(tmp_path):
    (tmp_path / "part-0.csv").write_bytes(CSV)
    (tmp_path / "part-1.csv").write_bytes(gzip.compress(CSV))
    with pytest.raises(DataError, match=r"part-1\.csv: is compressed by gzip, which its name"):
        read_table(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "x.csv",
            b"a,b\n1,2\n3,4\r\n",
            r"its lines end in \\r\\n and in \\n; write all",
        ),
        ("x.jsonl", JSON.decode().encode("utf-16"), "it is UTF-16 text"),
        ("x.json", b'[{"a": 1},\n{"a": 2},\n]', r"line \d, column \d"),
        ("x.csv", b'a,b\n1,"6\\" shoe"\n', "Write quotes inside quotes twice"),
    ],
)
def test_what_cannot_be_read_is_told_with_the_cause(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}: cannot be read \(.*{message}"):
        read_table(tmp_path / name)


def test_numbered_files_of_a_directory_are_one_table(tmp_path):
    for number, row in enumerate(EVENTS.iter_slices(1)):
        row.write_parquet(tmp_path / f"data_{number}.parquet")
    assert len(load_source(str(tmp_path)).events) == len(EVENTS)
