"""Checks and normal forms of single columns: ids, labels, timestamps."""

from typing import Any

import polars as pl

from jaxrec.errors import DataError

ISO_FORMATS = (
    "%Y-%m-%dT%H:%M:%S%.f%#z",
    "%Y-%m-%dT%H:%M%#z",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%d",
)
TIME_FIX = "Use integer seconds or milliseconds since 1970, a datetime, or ISO 8601 text"
SHOWN_ROWS, SHOWN_WIDTH = 5, 80
MILLISECONDS_FROM = 1e11  # as seconds that is the year 5138, as milliseconds 1973


def require(frame: pl.DataFrame, name: str, table: str) -> pl.Series:
    """A required column; raises a DataError if it is missing or the table has no rows."""
    if name not in frame.columns:
        has = ", ".join(frame.columns) or "no columns at all"
        raise DataError(f"{table}: no column {name!r}; it has {has}. Rename or add the column")
    if frame.is_empty():
        raise DataError(f"{table}: the table has no rows; add rows, or remove an optional table")
    return frame[name]


def reject(bad: pl.Series, column: pl.Series, table: str, problem: str, fix: str) -> None:
    """Raise a DataError with the first bad rows (counted from 1) and their values, if any."""
    rows = bad.arg_true()
    if len(rows):
        shown = ", ".join(f"row {row + 1}: {_shown(column, row)}" for row in rows.head(SHOWN_ROWS))
        raise DataError(
            f"{table}, column {column.name!r}: {len(rows):,} of {len(column):,} values "
            f"{problem} ({shown}). {fix}"
        )


def reject_same_names(names: list[str], table: str) -> None:
    """Raise a DataError if two names differ only in case or in spaces at their ends."""
    normal = pl.Series(names, dtype=pl.String).str.strip_chars().str.to_lowercase()
    clashes = [name for name, clash in zip(names, normal.is_duplicated(), strict=True) if clash]
    if clashes:
        listed = ", ".join(map(repr, clashes))
        raise DataError(f"{table}: columns of the same name ({listed}); rename all but one")


def as_text(column: pl.Series, table: str) -> pl.Series:
    """Text or whole numbers as strings; nulls stay null. Raises a DataError for other values."""
    if column.dtype.is_float():
        fix = "Write ids as text or integers"
        reject(column.is_not_null() & ~_is_whole(column), column, table, "are not whole", fix)
        column = column.cast(pl.Int64)
    if not (column.dtype.is_integer() or column.dtype in (pl.String, pl.Categorical, pl.Enum)):
        raise wrong_type(column, table, "text or integers")
    return column.cast(pl.String)


def as_ids(column: pl.Series, table: str) -> pl.Series:
    """As `as_text`, but also raises a DataError for null, empty and blank values."""
    text = column.cast(pl.String) if column.dtype == pl.Null else as_text(column, table)
    missing = text.is_null() | (text.str.strip_chars() == "")
    reject(missing, column, table, "are null or empty", "Fill them in or remove these rows")
    return text


def with_simple_type(column: pl.Series) -> pl.Series:
    """NaN and lists without a type as null, fixed-size arrays as lists, categories as text."""
    if isinstance(column.dtype, pl.Array):
        column = column.arr.to_list()
    is_list, value_type = isinstance(column.dtype, pl.List), _value_type(column)
    if is_list and value_type == pl.Null:
        return pl.Series(column.name, [None] * len(column))
    if value_type in (pl.Categorical, pl.Enum):
        return column.cast(pl.List(pl.String) if is_list else pl.String)
    return column.fill_nan(None) if column.dtype.is_float() else column


def as_labels(column: pl.Series, table: str) -> pl.Series:
    """Values or lists of values as strings; raises a DataError for nested or binary values."""
    is_list, value_type = isinstance(column.dtype, pl.List), _value_type(column)
    if value_type.is_nested() or value_type in (pl.Binary, pl.Object):
        raise wrong_type(column, table, "text, numbers or lists of them")
    return column.cast(pl.List(pl.String) if is_list else pl.String)


def as_cells(column: pl.Series, table: str) -> pl.Series:
    """Single values as strings; raises a DataError for lists, structs and binary values."""
    if column.dtype.is_nested() or column.dtype in (pl.Binary, pl.Object):
        raise wrong_type(column, table, "text or numbers")
    return column.cast(pl.String)


def as_positions(column: pl.Series, table: str) -> pl.Series:
    """Whole numbers as int64. Raises a DataError for other values."""
    numbers = _numbers(column, table, "integers")
    fix = "Positions are integers: 0, 1, 2 ..."
    reject(~_is_whole(numbers), column, table, "are not whole numbers", fix)
    return numbers.cast(pl.Int64)


def as_milliseconds(column: pl.Series, table: str) -> pl.Series:
    """Timestamps as int64 milliseconds since 1970.

    The column holds dates, datetimes (UTC unless they have a zone), ISO 8601 text or numbers.
    Numbers are all seconds or all milliseconds, as the largest one shows.

    Raises:
        DataError: the column has another type; a value is null, no timestamp, or in another unit.
    """
    if column.dtype in (pl.Date, pl.Datetime):
        times = column
    elif column.dtype == pl.String:
        readings = (_dates(column), _numbers(column, table, "text"))
        times = max(readings, key=lambda reading: reading.count())
    else:
        times = _numbers(column, table, "integers, datetimes or ISO 8601 text")
    reject(times.is_null(), column, table, "are not timestamps", TIME_FIX)
    if times.dtype.is_temporal():
        return times.dt.epoch("ms")
    return _from_epoch(times, column, table)


def index_in(column: pl.Series, ids: pl.Series) -> pl.Series:
    """The index (int32) of every value in a list of distinct ids; null for other values."""
    index = pl.LazyFrame({"id": ids, "index": pl.int_range(len(ids), dtype=pl.Int32, eager=True)})
    values = column.alias("id").to_frame().lazy()
    indexed = values.join(index, on="id", how="left", maintain_order="left")
    return indexed.select("index").collect().to_series()


def wrong_type(column: pl.Series, table: str, expected: str) -> DataError:
    """The error of a column whose type is not the expected one."""
    return DataError(
        f"{table}, column {column.name!r}: wrong type {column.dtype} (row 1: {_shown(column, 0)}). "
        f"Convert it to {expected}"
    )


def _shown(column: pl.Series, row: int) -> str:
    """A value in one line."""
    value = column[row]
    shown = " ".join(repr(value.to_list() if isinstance(value, pl.Series) else value).split())
    return shown if len(shown) <= SHOWN_WIDTH else f"{shown[:SHOWN_WIDTH]} ..."


def _value_type(column: pl.Series) -> Any:
    """The type of the values of a column, or of its lists."""
    return column.dtype.inner if isinstance(column.dtype, pl.List) else column.dtype


def _is_whole(numbers: pl.Series) -> pl.Series:
    return (numbers == numbers.cast(pl.Int64, strict=False)).fill_null(False)


def _numbers(column: pl.Series, table: str, expected: str) -> pl.Series:
    """Integers as int64, other numbers and text as float64; null where there is no number."""
    if column.dtype.is_integer():
        return column.cast(pl.Int64, strict=False)
    if not (column.dtype.is_numeric() or column.dtype in (pl.String, pl.Null)):
        raise wrong_type(column, table, expected)
    numbers = column.cast(pl.Float64, strict=False)
    return numbers.set(~numbers.is_finite(), None)


def _dates(column: pl.Series) -> pl.Series:
    """ISO 8601 text as UTC datetimes; null for other text."""
    text = column.str.strip_chars().str.replace(" ", "T")
    utc = [
        text.str.to_datetime(iso_format, time_unit="ms", time_zone="UTC", strict=False)
        for iso_format in ISO_FORMATS
    ]
    return pl.select(pl.coalesce(utc)).to_series()


def _from_epoch(times: pl.Series, column: pl.Series, table: str) -> pl.Series:
    """Numbers in seconds or milliseconds as milliseconds."""
    sizes = times.cast(pl.Float64).abs()  # as an integer, -2^63 has no absolute value
    reject(sizes >= 1e14, column, table, "are beyond the year 5138", TIME_FIX)
    if not (sizes >= MILLISECONDS_FROM).any():
        return (times * 1000).round().cast(pl.Int64)
    problem = "look like seconds among milliseconds"
    reject(sizes < MILLISECONDS_FROM, column, table, problem, "Use one unit in the whole column")
    return times.round().cast(pl.Int64)
