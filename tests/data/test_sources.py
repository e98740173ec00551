"""Named data sets and invoice tables, against published counts and hand-made rows."""

from datetime import datetime

import polars as pl
import pytest

from jaxrec.data.sources import load_source
from jaxrec.data.tables import Tables, filter_tables, validate_tables
from jaxrec.errors import DataError


@pytest.fixture(scope="module")
def movielens_100k() -> Tables:
    return load_source("ml-100k")


@pytest.fixture(scope="module")
def movielens_1m() -> Tables:
    return load_source("ml-1m")


def sequels(tables: Tables) -> set[tuple[str, str]]:
    """Titles of films and their sequels, according to the graph."""
    title = dict(tables.items.select("item_id", "title").rows())
    assert tables.triples is not None
    pairs = tables.triples.filter(pl.col("relation") == "film.film.sequel", tail_type="item")
    pairs = pairs.filter(head_type="item")
    return {(title[head], title[tail]) for head, tail in pairs.select("head", "tail").rows()}


SEQUELS = {
    ("Grease", "Grease 2"),
    ("Under Siege", "Under Siege 2: Dark Territory"),
    ("Free Willy 2: The Adventure Home", "Free Willy 3: The Rescue"),
    ("Amityville Horror, The", "Amityville II: The Possession"),
}


def test_movielens_100k_tables(movielens_100k):
    events, items = movielens_100k.events, movielens_100k.items
    assert events.row(0, named=True) == {
        "user_id": "196",
        "item_id": "242",
        "timestamp": 881250949000,
        "event": "rating",
        "rating": 3.0,
    }
    assert (len(events), events["user_id"].n_unique(), len(items)) == (100_000, 943, 1_682)
    assert items.row(0) == ("1", "Toy Story", 1995, ["Animation", "Children's", "Comedy"])
    assert items["genres"].explode().n_unique() == 19


def test_movielens_100k_five_core(movielens_100k):
    core = filter_tables(movielens_100k, min_user_events=5, min_item_events=5)
    assert (len(core.items), len(core.events)) == (1_349, 99_287)


def test_movielens_100k_graph_is_about_the_right_films(movielens_100k):
    assert sequels(movielens_100k) >= SEQUELS
    assert "1,497 of 1,682 items are linked" in movielens_100k.notes[-1]


def neighbours(tables: Tables, item: str) -> set[tuple[str, str]]:
    assert tables.triples is not None
    rows = tables.triples.filter(pl.col("head") == item, head_type="item")
    return set(rows.select("relation", "tail").rows())


def test_both_copies_of_a_film_are_linked(movielens_100k):
    copies = movielens_100k.items.filter(title="Chasing Amy")["item_id"].to_list()
    assert copies == ["246", "268"]
    first, second = (neighbours(movielens_100k, item) for item in copies)
    assert len(first) > 5 and first == second


@pytest.mark.parametrize("item", ["50", "267"])  # Star Wars: another title there; "unknown": none
def test_films_without_an_equal_title_are_not_linked(movielens_100k, item):
    assert neighbours(movielens_100k, item) == set()


@pytest.mark.parametrize("name", ["ml-100k", "ml-1m"])
def test_graph_keeps_what_connects_items(name):
    triples = load_source(name).triples
    assert triples is not None and not triples.is_duplicated().any()
    items_of: dict[str, set[str]] = {}
    for head_type, head, _, tail_type, tail in triples.rows():
        assert "item" in (head_type, tail_type)
        if head_type == "entity":
            items_of.setdefault(head, set()).add(tail)
        elif tail_type == "entity":
            items_of.setdefault(tail, set()).add(head)
    assert min(map(len, items_of.values())) == 2
    assert not triples["relation"].str.contains("films_in_this_genre").any()


def test_movielens_1m_tables(movielens_1m):
    events, items = movielens_1m.events, movielens_1m.items
    assert events.row(0) == (
        *("1m_1", "One Flew Over the Cuckoo's Nest (1975)"),
        *(978300760000, "rating", 5.0),
    )
    assert (len(events), events["user_id"].n_unique(), len(items)) == (1_000_209, 6_040, 3_883)
    first = ("Toy Story (1995)", "Toy Story", 1995, ["Animation", "Children's", "Comedy"])
    assert items.row(0) == first
    assert items["genres"].explode().n_unique() == 18


def test_movielens_1m_item_filter(movielens_1m):
    core = filter_tables(movielens_1m, min_item_events=5)
    assert (len(core.items), len(core.events)) == (3_416, 999_611)


def test_movielens_1m_graph_is_about_the_right_films(movielens_1m):
    assert sequels(movielens_1m) >= SEQUELS
    assert "1,598 of 3,883 items are linked" in movielens_1m.notes[-1]


# ---- invoices

INVOICES = pl.DataFrame(
    [
        ("1", "10001 ", "LAMP ", 6, 1.0, 17850),  # code and title with a blank
        ("1", "10001", "LAMP", 6, 1.0, 17850),  # the same article twice on one invoice
        ("2", "10002a", "old name", 1, 2.0, 17850),  # lower case
        ("2", "10002A", "NEW NAME", 1, 4.0, 12345),
        ("3", "10001", "GREEN LAMP", 2, 9.0, 12345),
        ("3", "POST", "POSTAGE", 1, 18.0, 12345),
        ("3", "BANK CHARGES", None, 1, 5.0, 12345),
        ("C4", "10001", "LAMP RETURNED", -2, 50.0, 12345),  # credit note
        ("5", "10003", "damaged", -7, 0.0, 12345),  # negative without the letter; never sold
        ("6", "10001", "LAMP", 1, 100.0, None),  # no customer
        ("7", "10004", None, 1, 3.0, 12345),  # no title
    ],
    schema=["InvoiceNo", "StockCode", "Description", "Quantity", "UnitPrice", "CustomerID"],
    orient="row",
).with_columns(
    InvoiceDate=pl.datetime(2011, 1, 1, 8, pl.int_range(pl.len(), dtype=pl.Int8)),
    Country=pl.lit("France"),
)


def check_invoices(tables: Tables) -> None:
    rows = tables.events.select("user_id", "item_id", "event").rows()
    assert rows == [
        ("17850", "10001", "buy"),
        ("17850", "10001", "buy"),
        ("17850", "10002A", "buy"),
        ("12345", "10002A", "buy"),
        ("12345", "10001", "buy"),
        ("12345", "10001", "cancel"),
        ("12345", "10003", "cancel"),
        ("12345", "10004", "buy"),
    ]
    eight = datetime(2011, 1, 1, 8)
    minutes = [0, 1, 2, 3, 4, 7, 8, 10]
    start = int((eight - datetime(1970, 1, 1)).total_seconds() * 1000)
    assert tables.events["timestamp"].to_list() == [start + 60_000 * m for m in minutes]
    assert tables.items.rows() == [
        ("10001", "LAMP", 1.0),  # the median of 1, 1, 9
        ("10002A", "old name", 3.0),  # once each: the first seen
        ("10003", None, None),
        ("10004", None, 3.0),
    ]
    assert tables.triples is None
    assert "no customer: 1." in tables.notes[0]
    assert "five digits): 2." in tables.notes[1]


def test_invoices_from_parquet(tmp_path):
    INVOICES.write_parquet(tmp_path / "invoices.parquet")
    check_invoices(load_source(str(tmp_path / "invoices.parquet")))


def test_invoices_from_csv_with_customers_as_floats(tmp_path):
    invoices = INVOICES.with_columns(pl.col("CustomerID").cast(pl.Float64))
    invoices.write_csv(tmp_path / "invoices.csv")
    check_invoices(load_source(str(tmp_path / "invoices.csv")))


def test_second_edition_in_a_directory(tmp_path):
    names = {"InvoiceNo": "Invoice", "UnitPrice": "Price", "CustomerID": "Customer ID"}
    INVOICES.rename(names).drop("Country").write_parquet(tmp_path / "a.parquet")
    (tmp_path / "README.md").touch()
    check_invoices(load_source(str(tmp_path)))


def test_a_file_of_events_is_a_data_set(tmp_path):
    events = pl.DataFrame({"user_id": ["u", "u"], "item_id": ["a", "b"], "timestamp": [1, 2]})
    events.write_csv(tmp_path / "log.csv")
    tables = load_source(str(tmp_path / "log.csv"), time="order")
    assert tables.events["item_id"].to_list() == tables.items["item_id"].to_list() == ["a", "b"]
    with pytest.raises(DataError, match=r"no events table \(it holds log\.csv\); name it events"):
        load_source(str(tmp_path), time="order")
    events.drop("item_id").write_csv(tmp_path / "log.csv")
    with pytest.raises(DataError, match=r"log\.csv: no column 'item_id'"):
        load_source(str(tmp_path / "log.csv"))


def test_missing_invoice_column(tmp_path):
    INVOICES.drop("CustomerID").write_csv(tmp_path / "a.csv")
    with pytest.raises(DataError, match=r"a\.csv: no column 'CustomerID'; it has InvoiceNo"):
        load_source(str(tmp_path))


def test_invoice_quantity_of_the_wrong_type(tmp_path):
    text = INVOICES.with_columns(Quantity=pl.lit("six"))
    text.write_csv(tmp_path / "a.csv")
    with pytest.raises(DataError, match=r"a\.csv, column 'Quantity': wrong type .*'six'"):
        load_source(str(tmp_path))


def test_invoices_whose_texts_are_numbers(tmp_path):
    numbers = INVOICES.with_columns(Description=pl.lit(7.5))
    numbers.write_csv(tmp_path / "a.csv")
    assert set(load_source(str(tmp_path)).items["title"].drop_nulls()) == {"7.5"}
    numbers = INVOICES.with_columns(Description=pl.lit(None))
    numbers.write_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.csv").unlink()
    assert load_source(str(tmp_path)).items["title"].null_count() == 4


@pytest.mark.parametrize("name", ["InvoiceNo", "StockCode", "Description", "CustomerID"])
@pytest.mark.parametrize("value", [["x"], b"x"], ids=["list", "bytes"])
def test_invoice_texts_of_the_wrong_type(tmp_path, name, value):
    wrong = INVOICES.with_columns(pl.Series(name, [value] * len(INVOICES)))
    wrong.write_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=rf"a\.parquet, column '{name}': wrong type"):
        load_source(str(tmp_path))


def test_an_invoice_column_in_both_spellings(tmp_path):
    INVOICES.with_columns(Invoice="InvoiceNo").write_csv(tmp_path / "a.csv")
    with pytest.raises(DataError, match="'Invoice' and 'InvoiceNo' mean the same; remove one"):
        load_source(str(tmp_path))


def test_invoices_without_any_customer(tmp_path):
    anonymous = INVOICES.with_columns(CustomerID=pl.lit(None, pl.Int64))
    anonymous.write_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: the table has no rows"):
        load_source(str(tmp_path))


# ---- directories and mistakes


def test_directory_with_tables_may_hold_other_files(tmp_path):
    events = pl.DataFrame({"user_id": ["u"], "item_id": ["i"], "timestamp": [5]})
    events.write_csv(tmp_path / "events.csv")
    tables = load_source(str(tmp_path), time="order", strict=True)
    assert tables.events["timestamp"].to_list() == [5]
    assert tables.items.equals(validate_tables(events, None, None, time="order").items)


def test_source_that_does_not_exist():
    with pytest.raises(DataError, match="ml-10k: neither ml-100k nor ml-1m, nor an existing"):
        load_source("ml-10k")


def test_file_of_an_unknown_format(tmp_path):
    (tmp_path / "retail.xlsx").touch()
    with pytest.raises(DataError, match=r"retail\.xlsx: unknown file format; use .parquet"):
        load_source(str(tmp_path / "retail.xlsx"))


def test_directory_with_two_files_and_no_events(tmp_path):
    INVOICES.write_csv(tmp_path / "a.csv")
    INVOICES.write_csv(tmp_path / "b.csv")
    with pytest.raises(DataError, match=r"no events table \(it holds a.csv, b.csv\)"):
        load_source(str(tmp_path))
