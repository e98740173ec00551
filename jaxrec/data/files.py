"""Readers of one file: Parquet, CSV, JSON lines and RecBole's atomic files."""

from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

import polars as pl

from jaxrec.data.columns import reject, reject_same_names, require
from jaxrec.errors import DataError

TRIPLE_COLUMNS = ("head_type", "head", "relation", "tail_type", "tail")
# CSV has no types: these columns stay text even if all values look like numbers ("007").
TEXT_COLUMNS = (
    *("user_id", "item_id", "event", "event_id", "session_id", *TRIPLE_COLUMNS),
    *("title", "description", "brand", "category", "categories", "merchant"),
)


def read_table(path: Path) -> pl.DataFrame:
    """Read one file; its suffix decides how: .parquet, .csv, .jsonl or a RecBole atomic file.

    Raises:
        DataError: the file is missing, empty, corrupt or of an unknown format, or two columns have
            the same name.
    """
    with unreadable(path):
        match path.suffix:
            case ".parquet":
                return pl.read_parquet(path, glob=False)
            case ".csv":
                return _read_csv(path)
            case ".jsonl":
                return pl.read_ndjson(escape(str(path)), infer_schema_length=None)
            case ".inter" | ".item" | ".kg" | ".link":
                return _read_atomic(path)
    raise DataError(f"{path}: unknown file format; use .parquet, .csv or .jsonl")


@contextmanager
def unreadable(path: Path) -> Iterator[None]:
    """Turn the errors of a file reader into a DataError that names the file."""
    try:
        str(path).encode()  # polars takes no other paths
        yield
    except pl.exceptions.NoDataError:
        raise DataError(f"{path}: the file is empty; it needs a header and rows") from None
    except FileNotFoundError:
        raise DataError(f"{path}: no such file{_neighbours(path)}") from None
    except (pl.exceptions.PolarsError, OSError, UnicodeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(
            f"{path}: cannot be read ({reason}); write it again as valid {path.suffix} in UTF-8"
        ) from error


def _neighbours(path: Path) -> str:
    """What the directory of a missing file holds, in brackets."""
    if not path.parent.is_dir():
        return f" (there is no directory {path.parent})"
    names = sorted(entry.name for entry in path.parent.iterdir() if entry.suffix)
    more = ", ..." if len(names) > 10 else ""
    return f" ({path.parent} holds {', '.join(names[:10])}{more})" if names else ""


def csv_header(path: Path) -> list[str]:
    """The column names of a CSV file. Polars would rename a column that occurs twice."""
    row = pl.read_csv(path, has_header=False, n_rows=1, infer_schema=False, glob=False).row(0)
    header = [name or "" for name in row]
    reject_same_names(header, str(path))
    return header


def _read_csv(path: Path) -> pl.DataFrame:
    text = {name: pl.String for name in csv_header(path) if name in TEXT_COLUMNS}
    return pl.read_csv(path, schema_overrides=text, infer_schema_length=None, glob=False)


def _read_atomic(path: Path) -> pl.DataFrame:
    """Tab-separated values; a header `name:type` gives token, float, token_seq or float_seq."""
    frame = pl.read_csv(path, separator="\t", quote_char=None, infer_schema=False, glob=False)
    fields = [column.partition(":") for column in frame.columns]
    reject_same_names([name for name, _, _ in fields], str(path))
    return pl.DataFrame(
        _atomic_values(column, field_type, str(path)).alias(name)
        for column, (name, _, field_type) in zip(frame, fields, strict=True)
    )


def _atomic_values(column: pl.Series, field_type: str, table: str) -> pl.Series:
    match field_type:
        case "float":
            numbers = column.cast(pl.Float64, strict=False)
            lost = numbers.is_null() & column.is_not_null()
            reject(lost, column, table, "are not numbers", "Correct them or leave them empty")
            return numbers
        case "float_seq":
            return column.str.split(" ").cast(pl.List(pl.Float64))
        case "token_seq":
            return column.str.split(" ")
        case _:
            return column


def read_linked_triples(kg_path: Path, item_ids: pl.Series) -> pl.DataFrame:
    """Triples of a RecBole `.kg` file, with items linked by the `.link` file beside it.

    Raises a DataError if a file is missing, unreadable or lacks a column.
    """
    link_path = kg_path.with_suffix(".link")
    if not link_path.is_file():
        raise DataError(f"{kg_path}: needs {link_path.name} beside it, with the items' entities")
    kg, link = read_table(kg_path), read_table(link_path)
    names = ("head_id", "relation_id", "tail_id")
    kg = pl.DataFrame([require(kg, name, str(kg_path)) for name in names])
    link = pl.DataFrame([require(link, name, str(link_path)) for name in ("item_id", "entity_id")])
    return link_entities(kg, link.filter(pl.col("item_id").is_in(item_ids.implode())))


def link_entities(kg: pl.DataFrame, link: pl.DataFrame) -> pl.DataFrame:
    """Triples of a RecBole knowledge graph with items in place of their entities.

    Args:
        kg: head_id, relation_id, tail_id.
        link: item_id, entity_id. An entity of several items gives a triple for each of them. An
            entity without an item gets the type `entity`.
    """
    for end in ("head", "tail"):
        entity_id, end_type = f"{end}_id", f"{end}_type"
        items = link.select(
            pl.col("entity_id").alias(entity_id),
            pl.col("item_id").alias(end),
            pl.lit("item").alias(end_type),
        )
        kg = kg.join(items, on=entity_id, how="left", maintain_order="left").with_columns(
            pl.col(end).fill_null(pl.col(entity_id)), pl.col(end_type).fill_null("entity")
        )
    return kg.rename({"relation_id": "relation"}).select(TRIPLE_COLUMNS)
