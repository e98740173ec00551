"""One way to read tables: DuckDB reads files of every format, directories, patterns and queries."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow
from jaxtyping import Int64

from jaxrec.data.atomic import named_types, typed
from jaxrec.data.codes import new_codes
from jaxrec.data.columns import BLANKS, INEXACT_FROM, NULL_WORDS, reject_same_names
from jaxrec.data.database import answer
from jaxrec.data.file_query import file_query
from jaxrec.data.id_types import IdType
from jaxrec.data.listing import find_table, is_table_directory, list_files
from jaxrec.data.reading_errors import readable
from jaxrec.data.shape import (
    check_columns,
    check_event_types,
    check_rows,
    columns_made,
    columns_read,
    shaped,
)
from jaxrec.data.spec import (
    ID_COLUMNS,
    SPEC_FILE,
    SPEC_SUFFIXES,
    TABLES,
    TEXT_COLUMNS,
    TableSpec,
    dataset_spec,
)
from jaxrec.data.sql import connect, identifier
from jaxrec.data.times import clear_times
from jaxrec.errors import DataError

CODED_COLUMNS = (*ID_COLUMNS, "event")
ROWS_PER_BATCH = 500_000  # while a table is coded
KNOWN_COLUMNS = (*TEXT_COLUMNS, "timestamp", "genres", "price", "rating")
WORD_ENDS = r"[\s-]+|(?<=[a-z])(?=[A-Z])"
ANSWER = "answer"
INTEGER_TYPES = (
    *("TINYINT", "SMALLINT", "INTEGER", "BIGINT"),
    *("UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"),
)
# types that Polars lacks become text
FOREIGN_TYPES = re.compile(r"\b(INTERVAL|UNION|BIT|BIGNUM|GEOMETRY)\b")
CODED_TYPES = "|".join(("VARCHAR", *INTEGER_TYPES, r"DECIMAL\(\d+,0\)"))


@dataclass(frozen=True)
class OpenTable:
    """A table whose rows are read when asked for.

    Attributes:
        spec: what was opened.
        query: DuckDB query of all rows, with jaxrec's names of the columns.
        columns: these names.
        types: column -> its type in DuckDB.
        is_text: whether all values are text, as in CSV files.
        field_types: types of the columns of RecBole's atomic files.
        files: what the query reads; empty if a query of the specification or a database does.
    """

    spec: TableSpec
    query: str
    columns: tuple[str, ...]
    types: Mapping[str, str]
    is_text: bool
    field_types: Mapping[str, str]
    files: tuple[Path, ...]

    def read(self) -> pl.DataFrame:
        """All rows. Columns of text files whose values are all numbers become numbers."""
        with readable(self.spec), _connected(self.spec) as connection:
            frame = self._converted(pl.DataFrame(connection.sql(self.query)))
        return self._finished(frame)

    def read_coded(self, has_time: bool = True) -> pl.DataFrame:
        """All rows, in less memory: text and integers of `CODED_COLUMNS` as codes.

        Timestamps become datetimes if all of them are clear (see `clear_times`).

        Args:
            has_time: whether timestamps are times and not positions.
        """
        has_time = has_time and not self.field_types
        coding = [
            pl.col(name).cast(pl.String).cast(new_codes())
            for name in CODED_COLUMNS
            if re.fullmatch(CODED_TYPES, self.types.get(name, ""))
            and self.field_types.get(name, "token") == "token"
        ]
        parts: dict[str, list[pl.Series]] = {name: [] for name in self.types}
        units = set()
        stamps: list[pl.Series] = []
        with readable(self.spec), _connected(self.spec) as connection:
            for batch in connection.sql(self.query).to_arrow_reader(ROWS_PER_BATCH):
                frame = pl.DataFrame(pl.from_arrow(batch)).with_columns(coding)
                if has_time and "timestamp" in frame.columns:
                    unit, times = clear_times(frame["timestamp"]) or ("", frame["timestamp"])
                    units.add(unit)
                    if not unit or len(units) > 1:
                        return self.read_coded(has_time=False)
                    stamps.append(times.to_physical())
                    frame = frame.drop("timestamp")
                for column in frame:
                    parts[column.name].append(column)
        if not any(parts.values()):
            return self.read()
        if units:
            times = pl.Series("timestamp", pyarrow.array(_joined(stamps)))
            parts["timestamp"] = [times.cast(pl.Datetime("ms"))]
        # one column after another, so that only one is in memory twice
        columns = [pl.concat(parts.pop(name), rechunk=True) for name in list(parts)]
        return self._finished(self._converted(pl.DataFrame(columns)))

    def item_id_type(self) -> IdType:
        """The type in which item ids leave; CSV has no types, so its ids stay text."""
        kind = self.types.get("item_id")
        if kind == "UBIGINT":
            return pl.UInt64()
        return pl.Int64() if kind in INTEGER_TYPES else pl.String()

    def batches(self, columns: Sequence[str], size: int) -> Iterator[pl.DataFrame]:
        """Some columns of all rows in order, `size` rows at a time."""
        made = columns_made(self.spec)
        read = [*(name for name in columns if name not in made), *columns_read(self.spec)]
        names = ", ".join(map(identifier, dict.fromkeys(read)))
        with readable(self.spec), _connected(self.spec) as connection:
            reader = connection.sql(f"SELECT {names} FROM ({self.query})").to_arrow_reader(size)
            for batch in reader:
                frame = pl.DataFrame(pl.from_arrow(batch))
                yield shaped(self._converted(frame), self.spec).select(columns)

    def _finished(self, frame: pl.DataFrame) -> pl.DataFrame:
        if self.is_text:
            others = [n for n in frame.columns if n not in (*TEXT_COLUMNS, "timestamp")]
            frame = frame.with_columns(_as_inferred(frame[name]) for name in others)
        check_event_types(frame, self.spec)
        result = shaped(frame, self.spec)
        check_rows(len(frame), len(result), self.spec)
        return result

    def _converted(self, frame: pl.DataFrame) -> pl.DataFrame:
        if self.field_types:
            return frame.with_columns(
                typed(column, self.field_types[column.name], self.spec.origin) for column in frame
            )
        # DuckDB has no type for columns without values
        empty = [c.name for c in frame if c.dtype == pl.Int32 and c.null_count() == len(c)]
        return frame.with_columns(pl.lit(None).alias(name) for name in empty)


def read_table(path: Path) -> pl.DataFrame:
    """All rows of a file, directory or pattern; raises as `open_table`."""
    return open_table(TableSpec("table", files=(str(path),))).read()


def open_source(source: Path, name: str, layout: str = "") -> OpenTable:
    """The table `name` (events, items or triples) of a data set, or a file of that table.

    Args:
        source: a data set or its description (see `dataset_spec`); or a file, pattern or directory
            of parts.
        layout: what the files of a data set mean (see `dataset_spec`).

    Raises:
        DataError: as `open_table`; the data set has no such table.
    """
    is_set = source.is_dir() and not is_table_directory(source)
    tables = [table for table in TABLES if is_set and find_table(source, table)]
    described = source.suffix in SPEC_SUFFIXES or (source / SPEC_FILE).is_file()
    if name == "events" or described or tables or (is_set and layout):
        spec = getattr(dataset_spec(source, layout if source.is_dir() else ""), name)
        if spec is None:
            raise DataError(f"{source}: it has no {name}; add them, or name another source")
        return open_table(spec)
    return open_table(TableSpec(name, files=(str(source),)))


def open_table(spec: TableSpec) -> OpenTable:
    """Find the files of a table and the names of its columns.

    Formats: Parquet, text with separators (CSV, TSV ...), JSON lines or a JSON array, RecBole's
    atomic files; text and JSON may be compressed (.gz, .zst). Names of columns lose spaces at
    their ends, and known names may be in capitals.

    Raises:
        DataError: a file is missing, empty, corrupt or of an unknown format; the query is invalid;
            a column of the specification is missing, or two columns have the same name.
    """
    files: list[Path] = []
    with readable(spec), _connected(spec) as connection:
        if spec.database:
            query, kind = f"SELECT * FROM {ANSWER}", "query"
        elif spec.sql:
            query, kind = _checked_query(spec, connection), "query"
        else:
            listed = list_files(spec.base, spec.files)
            files = [path for path in listed if path.stat().st_size] or listed[:1]
            query, kind = file_query(files, spec, connection)
        query = _with_fields(query, spec, connection)
        relation = connection.sql(query)
        source_names, types = list(relation.columns), list(map(str, relation.types))
    fields = named_types(source_names) if kind == "atomic" else []
    names = _column_names([name for name, _ in fields] or source_names, spec)
    check_columns(tuple(names), spec)
    projection = {
        name: _readable_value(identifier(source), type_name)
        for name, source, type_name in zip(names, source_names, types, strict=True)
    }
    if kind in ("csv", "json"):
        texts = {name for name, value in zip(names, types, strict=True) if value == "VARCHAR"}
        with readable(spec), _connected(spec) as connection:
            for name in sorted(texts & {*ID_COLUMNS}):
                projection[name] = _without_zero_fraction(connection, query, projection[name])
    selected = ", ".join(f"{value} AS {identifier(name)}" for name, value in projection.items())
    return OpenTable(
        spec=spec,
        query=f"SELECT {selected} FROM ({query})",
        columns=tuple(dict.fromkeys([*names, *columns_made(spec)])),
        types=dict(zip(names, types, strict=True)),
        is_text=kind == "csv",
        field_types=dict(zip(names, (field_type for _, field_type in fields), strict=False)),
        files=tuple(files),
    )


def _checked_query(spec: TableSpec, connection: duckdb.DuckDBPyConnection) -> str:
    statements = connection.extract_statements(spec.sql)
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise DataError(f"{spec.origin}: give one SELECT statement")
    return spec.sql.strip().rstrip(";") + "\n"  # the end of a comment


def _with_fields(query: str, spec: TableSpec, connection: duckdb.DuckDBPyConnection) -> str:
    """The query with columns for the fields of structs that `columns` names: `user.id`."""
    names = connection.sql(query).columns if any("." in n for n in spec.columns.values()) else []
    fields = [
        f"{'.'.join(map(identifier, name.split('.')))} AS {identifier(name)}"
        for name in dict.fromkeys(spec.columns.values())
        if "." in name and name not in names and name.split(".")[0] in names
    ]
    return f"SELECT *, {', '.join(fields)} FROM ({query})" if fields else query


def _column_names(source: list[str], spec: TableSpec) -> list[str]:
    """jaxrec's names of the columns of a source.

    Known names may be in capitals, with spaces or hyphens (`User ID`), or joined (`userId`).
    """
    by_name = {name.strip().lower(): jaxrec_name for jaxrec_name, name in spec.columns.items()}
    if len(by_name) < len(spec.columns):
        raise DataError(
            f"{spec.origin}: `columns` names a column twice; give it two names by a query: "
            "SELECT sku AS item_id, sku AS title"
        )
    normal = [name.strip(BLANKS).lower() for name in source]
    if missing := [name for name in spec.columns.values() if name.strip().lower() not in normal]:
        raise DataError(
            f"{spec.origin}: `columns` names {', '.join(map(repr, missing))}; the table has "
            f"{', '.join(source)}"
        )
    reject_same_names(source, spec.origin)
    spelled = [re.sub(WORD_ENDS, "_", name.strip(BLANKS)).lower() for name in source]
    once = {words for words in spelled if spelled.count(words) == 1} - set(spec.columns)
    names = []
    for name, key, words in zip(source, normal, spelled, strict=True):
        known = [n for n in (key, words) if n in KNOWN_COLUMNS and (n == key or n in once)]
        own = [*known, name.strip(BLANKS)][0]
        own += " (other)" * (own in spec.columns)  # `columns` gives the name to another column
        names.append(by_name.get(key, own))
    reject_same_names(names, spec.origin)
    return names


def _readable_value(value: str, type_name: str) -> str:
    is_foreign = FOREIGN_TYPES.search(type_name) and not type_name.startswith("ENUM")
    return f"CAST({value} AS VARCHAR)" if is_foreign else value


def _without_zero_fraction(connection: duckdb.DuckDBPyConnection, query: str, column: str) -> str:
    """`3.0` as `3` if all ids are whole numbers with a fraction of zeros, as pandas writes them."""
    others = (
        f"SELECT 1 FROM ({query}) WHERE {column} IS NOT NULL "
        rf"AND (NOT regexp_full_match({column}, '-?\d+\.0+') "
        rf"OR abs(TRY_CAST({column} AS DOUBLE)) >= {INEXACT_FROM[pl.Float64]}) LIMIT 1"
    )
    if connection.execute(others).fetchone():
        return column
    return rf"regexp_replace({column}, '\.0+$', '')"


def _as_inferred(column: pl.Series) -> pl.Series:
    """Text that holds only numbers or words for none as numbers, and only truth values as such."""
    if column.dtype != pl.String or column.null_count() == len(column):
        return column
    values = column.str.strip_chars()
    values = values.set(values.is_in(NULL_WORDS), None)
    for dtype in (pl.Int64, pl.Float64):
        numbers = values.cast(dtype, strict=False)
        if values.null_count() == numbers.null_count() < len(values):
            return numbers
    truths = values.str.to_lowercase()
    is_truth = truths.is_in(["true", "false"]).all() and truths.count()
    return truths == "true" if is_truth else column


def _joined(parts: list[pl.Series]) -> Int64[np.ndarray, " n"]:
    """The parts as one array. Each is deleted when it is copied, so that memory holds all once."""
    joined = np.empty(sum(map(len, parts)), np.int64)
    end = len(joined)
    while parts:
        part = parts.pop()
        joined[end - len(part) : end] = part.to_numpy()
        end -= len(part)
    return joined


@contextmanager
def _connected(spec: TableSpec) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection; the answer of a database is its table `ANSWER`."""
    with connect(spec.base, memory_limit=spec.memory_limit) as connection:
        if not spec.database:
            yield connection
            return
        with answer(spec) as rows:
            connection.register(ANSWER, rows)
            yield connection
