"""DuckDB queries that read all rows of the files of a table, by their format."""

from collections.abc import Sequence
from pathlib import Path

import duckdb
from pyarrow import parquet

from jaxrec.data.columns import reject_same_names
from jaxrec.data.content import compression_of_all, format_of_all, is_marked_array
from jaxrec.data.csv_header import csv_form
from jaxrec.data.listing import has_partitions
from jaxrec.data.spec import TEXT_COLUMNS, TableSpec
from jaxrec.data.sql import file_names, identifier, literal
from jaxrec.errors import DataError
from jaxrec.runtime import personal

# JSON types whose text DuckDB would change, or that stand for several types
RESTORED_TYPES = (
    *("DATE", "TIME", "TIMESTAMP", "TIMESTAMP WITH TIME ZONE", "UUID", "HUGEINT", "JSON"),
)


def file_query(
    files: Sequence[Path], spec: TableSpec, connection: duckdb.DuckDBPyConnection
) -> tuple[str, str]:
    """The query of a table's files and their format."""
    kind = format_of_all(files)
    # by itself, DuckDB lets directories above a table replace its columns
    own = has_partitions(spec.base, spec.files, files)
    partitions = "" if own else ", hive_partitioning = false"
    match kind:
        case "parquet":
            query = _parquet_query(files, partitions)
        case "json":
            query = _json_query(files, spec, connection, partitions)
        case _:
            query = _csv_query(files, spec, connection, kind)
            query = f"{query.removesuffix(')')}{partitions})"
    return query, kind


def _parquet_query(files: Sequence[Path], partitions: str) -> str:
    for path in files[:1]:  # DuckDB merges columns whose names differ only in case
        columns = parquet.read_schema(path).names
        reject_same_names(columns, str(path))
        if not columns:
            raise DataError(f"{path}: the file has no columns; write it again with its columns")
    return f"SELECT * FROM read_parquet({file_names(files)}, union_by_name = true{partitions})"


def _csv_query(
    files: Sequence[Path], spec: TableSpec, connection: duckdb.DuckDBPyConnection, kind: str
) -> str:
    """All values as text, because a type guessed from some rows may not fit the others."""
    form = csv_form(connection, files, spec)
    columns = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in form.names)
    quote = "" if kind == "atomic" else form.quote
    return (
        f"SELECT * FROM read_csv({file_names(files)}, auto_detect = false, "
        f"delim = {literal(form.separator)}, quote = {literal(quote)}, escape = {literal(quote)}, "
        f"header = {not spec.header}, skip = {form.num_skipped}, "
        f"encoding = {literal(form.encoding)}, compression = {literal(form.compression)}, "
        f"columns = {{{columns}}})"
    )


def _json_query(
    files: Sequence[Path], spec: TableSpec, connection: duckdb.DuckDBPyConnection, partitions: str
) -> str:
    """All rows give the types, as a late row may have another type than the first ones."""
    form = "array" if all(map(is_marked_array, files)) else "auto"
    source = (
        f"read_json({file_names(files)}, sample_size = -1, union_by_name = true, "
        f"format = '{form}', compression = {literal(compression_of_all(files))}{partitions}"
    )
    described = connection.execute(f"DESCRIBE FROM {source})").fetchall()
    mixed = [name for name, kind, *_ in described if kind == "JSON" and _is_text(name, spec)]
    for name in mixed:
        _refuse_nested(name, source, spec, connection)
    types = {
        name: "VARCHAR" if _is_restored(name, type_name) else type_name
        for name, type_name, *_ in described
    }
    columns = ", ".join(f"{literal(name)}: {literal(kind)}" for name, kind in types.items())
    return f"SELECT * FROM {source}, columns = {{{columns}}})"


def _is_text(name: str, spec: TableSpec) -> bool:
    """Whether a column of a source is one of `TEXT_COLUMNS`."""
    given = {source: own for own, source in spec.columns.items()}
    return given.get(name, name.strip().lower()) in TEXT_COLUMNS


def _refuse_nested(
    name: str, source: str, spec: TableSpec, connection: duckdb.DuckDBPyConnection
) -> None:
    """Raise a DataError if only some of the values of a JSON column are lists or objects."""
    column = identifier(name)
    nested = connection.execute(
        f"SELECT {column} FROM {source}, columns = {{{literal(name)}: 'JSON'}}) "
        f"WHERE json_type({column}) IN ('ARRAY', 'OBJECT') LIMIT 1"
    ).fetchone()
    if nested:
        value = personal(nested[0]) if spec.name == "events" else nested[0]
        raise DataError(
            f"{spec.origin}, column {name!r}: some values are lists or objects, such as {value}, "
            "and others are not; write all alike"
        )


def _is_restored(name: str, type_name: str) -> bool:
    nested = type_name.endswith("]") or type_name.startswith(("STRUCT", "MAP"))
    is_text = name.strip().lower() in TEXT_COLUMNS
    return type_name in RESTORED_TYPES or (is_text and not nested)
