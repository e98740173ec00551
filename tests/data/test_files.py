import pytest
from helpers.tables import (
    EVENTS,
    ITEMS,
    SECOND,
    TRIPLES,
    assert_names,
    write_atomic,
    write_csv,
    write_jsonl,
    write_parquet,
)
from polars.testing import assert_frame_equal

from jaxrec.data.sources import load_source
from jaxrec.errors import DataError


@pytest.mark.parametrize("write", [write_parquet, write_jsonl, write_csv, write_atomic])
def test_every_format_gives_the_same_tables(tmp_path, write):
    write(tmp_path)
    tables = load_source(str(tmp_path), strict=True)
    assert_frame_equal(tables.events, EVENTS)
    assert_frame_equal(tables.items, ITEMS)
    assert tables.triples is not None
    assert_frame_equal(tables.triples, TRIPLES)
    assert tables.notes == ()


def test_atomic_sequences_of_numbers_become_lists(tmp_path):
    write_atomic(tmp_path)
    (tmp_path / "shop.item").write_text("item_id:token\tv:float_seq\nb\t1 2.5\n007\t3 4\n")
    items = load_source(str(tmp_path)).items
    assert items["v"].to_list() == [[1.0, 2.5], [3.0, 4.0]]


def test_crlf_and_unquoted_quotes_in_atomic_files(tmp_path):
    write_atomic(tmp_path)
    text = 'item_id:token\ttitle:token\r\nb\t6" heel\r\n007\t"Sock\r\n'
    (tmp_path / "shop.item").write_bytes(text.encode())
    assert load_source(str(tmp_path)).items["title"].to_list() == ['6" heel', '"Sock']


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_file_of_zero_bytes(tmp_path, suffix):
    (tmp_path / f"events.{suffix}").touch()
    with pytest.raises(DataError, match=rf"events\.{suffix}: (the file is empty|cannot be read)"):
        load_source(str(tmp_path))


def test_bad_number_in_atomic_file(tmp_path):
    write_atomic(tmp_path)
    path = tmp_path / "shop.inter"
    path.write_text(path.read_text().replace(f"{SECOND}.5", "noon"))
    with pytest.raises(DataError) as caught:
        load_source(str(tmp_path))
    assert_names(str(caught.value), "shop.inter, column 'timestamp'", "row 1: 'noon'")


@pytest.mark.parametrize(
    ("name", "header"),
    [("items.csv", "item_id,t,t"), ("x.item", "item_id:token\tt:token\tt:float")],
)
def test_columns_of_the_same_name_in_a_header(tmp_path, name, header):
    EVENTS.write_csv(tmp_path / "events.csv")
    (tmp_path / name).write_text(f"{header}\n")
    with pytest.raises(DataError, match=rf"{name}: columns of the same name \('t', 't'\); rename"):
        load_source(str(tmp_path))


def test_kg_without_link(tmp_path):
    write_atomic(tmp_path)
    (tmp_path / "shop.link").unlink()
    with pytest.raises(DataError, match=r"shop\.kg: needs shop\.link beside it"):
        load_source(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("events.parquet", b"not parquet"),
        ("events.jsonl", b'{"user_id": 1, "item'),
        ("events.csv", b"user_id,item_id,timestamp\n1,2,3,4,5\n"),
        ("x.inter", b"user_id:token\titem_id:token\ttimestamp:float\n1\t2\t3\t4\n"),
    ],
)
def test_corrupt_file(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}: cannot be read \(.+\); write it again"):
        load_source(str(tmp_path))


def test_truncated_parquet(tmp_path):
    path = tmp_path / "events.parquet"
    EVENTS.write_parquet(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"events.parquet: cannot be read"):
        load_source(str(tmp_path))
