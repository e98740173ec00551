"""Queries that a database answers, as streams of Arrow batches."""

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow
from pyarrow import compute

from jaxrec.data.spec import TableSpec
from jaxrec.data.sql import identifier, literal
from jaxrec.errors import DataError

POSTGRESQL = ("postgresql", "postgres")
FILES = ("duckdb", "sqlite")
ROWS_PER_BATCH = 100_000
# SQLite's types of values, the most general first; a column has the first that occurs.
SQLITE_TYPES = {
    "blob": pyarrow.binary(),
    "text": pyarrow.string(),
    "real": pyarrow.float64(),
    "integer": pyarrow.int64(),
}


@contextmanager
def answer(spec: TableSpec) -> Iterator[pyarrow.RecordBatchReader]:
    """The rows of a query of a database.

    Args:
        spec: its `database` is a URL: `duckdb:///shop.duckdb`, `sqlite:///shop.db` (files relative
            to `base`, or `sqlite:////absolute`) or `postgresql://user@host/shop`. Variables of the
            environment, such as `$SHOP_URL`, are filled in: a file need not hold a password.
            Messages do not show the URL.

    Raises:
        DataError: the scheme is unknown, the driver is not installed, the file is missing, or the
            database refuses the query.
    """
    url = os.path.expandvars(spec.database)
    scheme, _, rest = url.partition("://")
    if url.startswith("$"):
        raise DataError(f"{spec.origin}: the environment variable {url} is not set")
    if scheme in POSTGRESQL:
        with _postgresql(url, spec) as rows:
            yield rows
        return
    if scheme not in FILES:
        known = ", ".join((*FILES, *POSTGRESQL))
        raise DataError(f"{spec.origin}: `database` must begin with one of {known}, and ://")
    path = spec.base / rest.removeprefix("/")
    if not path.is_file():
        raise DataError(f"{spec.origin}: {path}: no such file")
    with (_duckdb if scheme == "duckdb" else _sqlite)(path, spec) as rows:
        yield rows


@contextmanager
def _duckdb(path: Path, spec: TableSpec) -> Iterator[pyarrow.RecordBatchReader]:
    with duckdb.connect(str(path), read_only=True) as connection:
        if spec.memory_limit:
            connection.execute(f"SET memory_limit = {literal(spec.memory_limit)}")
        yield connection.sql(spec.sql).to_arrow_reader(ROWS_PER_BATCH)


@contextmanager
def _sqlite(path: Path, spec: TableSpec) -> Iterator[pyarrow.RecordBatchReader]:
    """Each column in the most general type of its values, as columns of SQLite have no type."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    try:
        # DuckDB reads in a thread of its own
        with closing(sqlite3.connect(uri, uri=True, check_same_thread=False)) as connection:
            cursor = connection.execute(_statement(spec))
            names = [column[0] for column in cursor.description or ()]
            if not names:
                raise DataError(f"{spec.origin}: give one SELECT statement")
            schema = _sqlite_schema(connection, _statement(spec), names)
            yield pyarrow.RecordBatchReader.from_batches(schema, _sqlite_batches(cursor, schema))
    except (sqlite3.Error, sqlite3.Warning) as error:
        raise DataError(f"{spec.origin}: {error}") from error


def _sqlite_schema(
    connection: sqlite3.Connection, sql: str, names: Sequence[str]
) -> pyarrow.Schema:
    occurring = ", ".join(f"group_concat(DISTINCT typeof({identifier(name)}))" for name in names)
    kinds = connection.execute(f"SELECT {occurring} FROM ({sql})").fetchone()
    types = [
        next((t for kind, t in SQLITE_TYPES.items() if kind in (of_column or "")), pyarrow.null())
        for of_column in kinds
    ]
    return pyarrow.schema(list(zip(names, types, strict=True)))


def _sqlite_batches(
    cursor: sqlite3.Cursor, schema: pyarrow.Schema
) -> Iterator[pyarrow.RecordBatch]:
    while rows := cursor.fetchmany(ROWS_PER_BATCH):
        columns = [
            pyarrow.array([_of_type(value, field.type) for value in column], field.type)
            for column, field in zip(zip(*rows, strict=True), schema, strict=True)
        ]
        yield pyarrow.record_batch(columns, schema=schema)


def _of_type(value: Any, dtype: pyarrow.DataType) -> Any:
    if value is None:
        return None
    if pyarrow.types.is_string(dtype):
        return str(value)
    if pyarrow.types.is_binary(dtype) and not isinstance(value, bytes):
        return str(value).encode()
    return value


@contextmanager
def _postgresql(url: str, spec: TableSpec) -> Iterator[pyarrow.RecordBatchReader]:
    try:
        from adbc_driver_postgresql import dbapi
    except ImportError:
        raise DataError(f"{spec.origin}: needs a driver; pip install 'jaxrec[database]'") from None
    try:
        with closing(dbapi.connect(url)) as connection, closing(connection.cursor()) as cursor:
            cursor.execute("SET TRANSACTION READ ONLY")
            cursor.execute(_statement(spec))
            try:
                yield _usual_types(cursor.fetch_record_batch())
            finally:
                cursor.adbc_cancel()  # otherwise closing waits for all rows
    except dbapi.Error as error:
        raise DataError(f"{spec.origin}: {' '.join(str(error).split())}") from error


def _usual_types(reader: pyarrow.RecordBatchReader) -> pyarrow.RecordBatchReader:
    """Types of PostgreSQL that Arrow lacks as usual ones, and padded text without its padding."""
    source = reader.schema
    schema = pyarrow.schema([(field.name, _usual_type(field)) for field in source])

    def batches() -> Iterator[pyarrow.RecordBatch]:
        for batch in reader:
            columns = map(_usual_values, batch.columns, source, schema.types)
            yield pyarrow.record_batch(list(columns), schema=schema)

    return pyarrow.RecordBatchReader.from_batches(schema, batches())


def _usual_type(field: pyarrow.Field) -> pyarrow.DataType:
    if not isinstance(field.type, pyarrow.OpaqueType):
        return field.type
    if field.type.type_name.startswith("unnamed"):  # enum
        return pyarrow.string()
    if field.type.type_name != "numeric":
        return field.type.storage_type
    # numeric(precision, scale), if the column has them
    precision, scale = divmod(int(field.metadata.get(b"POSTGRESQL:typmod", b"0")) - 4, 2**16)
    return pyarrow.decimal128(precision, scale) if 0 < precision <= 38 else pyarrow.float64()


def _usual_values(
    column: pyarrow.Array, field: pyarrow.Field, dtype: pyarrow.DataType
) -> pyarrow.Array:
    if isinstance(field.type, pyarrow.OpaqueType):
        values = column.storage
        if field.type.type_name == "numeric":
            values = compute.if_else(compute.match_substring_regex(values, r"\d"), values, None)
        return values.cast(dtype)
    is_padded = field.metadata and field.metadata.get(b"POSTGRESQL:type") == b"bpchar"
    return compute.utf8_rtrim_whitespace(column) if is_padded else column


def _statement(spec: TableSpec) -> str:
    """The query, so that brackets can stand around it."""
    return spec.sql.strip().rstrip(";") + "\n"
