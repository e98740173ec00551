"""Checks and normal forms of single columns: ids, labels, timestamps."""

import re
from contextlib import suppress
from typing import Any

import polars as pl

from jaxrec.data.codes import is_coded, per_row, texts, where
from jaxrec.errors import DataError
from jaxrec.runtime import personal

PERSONAL = ("user_id", "event_id", "session_id")  # of any table
SHOWN_ROWS, SHOWN_WIDTH, SHOWN_WORDS = 5, 80, 10
# the years 1 to 9999, in milliseconds since 1970
FIRST_IN_PYTHON, END_OF_PYTHON = -62_135_596_800_000, 253_402_300_800_000
# the first integer that a float type cannot tell from the next one
INEXACT_FROM: dict[Any, int] = {pl.Float32: 2**24, pl.Float64: 2**53}
ROUNDED = r"^-?\d(\.\d+)?[eE]\+\d{2,}$|^-?\d\.\d+[eE]\d{2,}$"
# Digits of a float from 2**53 on
LONG_FLOAT = r"^-?(\d{16,})\.0+$"
# Usual names of required columns
LIKELY_NAMES = {
    "user_id": r"(user|customer|visitor|client|member|shopper|account|reviewer|session)[ _-]?"
    r"(id|key|no|number|name|pseudo_id)?|uid",
    "item_id": r"(item|product|article|movie|book|track|variant|parent_asin)[ _-]?"
    r"(id|key|no|number|code)?|sku|asin|iid",
    "timestamp": r"(event|created|order|purchase|invoice|transaction)?[ _-]?"
    r"(time|date|datetime|at|ts|t_dat|unixreviewtime)(stamp|[ _-]utc)?",
}
# What other programs write for a missing value
NULL_WORDS = (
    *("NULL", "null", "Null", "nan", "NaN", "NAN", "None", "none", "NA", "N/A", "n/a", "<NA>"),
    *("nil", "undefined", "\\N", "(not set)", "(none)", "#N/A", "-"),
)
NULL_LABELS = (*NULL_WORDS, "-1")  # where a value is a name and no number
# at the ends of ids and names: blanks, NUL, byte order marks, marks of zero width or of direction
BLANKS = " \t\n\r\v\f\0\x85\u00a0\u2002\u2003\u2009\u200a\u200b\u200e\u200f\u202f\u2060\u3000\ufeff"
# Ids that stand for nobody or nothing, in any case
NO_IDS = (
    *{word.lower() for word in NULL_LABELS},
    *("(null)", "nat", "unknown", "anonymous", "guest", "not set", "#ref!", "#value!", "?"),
    "00000000-0000-0000-0000-000000000000",
)


class EventsName(str):
    """The name of a table of events in messages, which show none of its values; see `shown`."""


def require(frame: pl.DataFrame, name: str, table: str) -> pl.Series:
    """A required column; raises a DataError if it is missing or the table has no rows."""
    if name not in frame.columns:
        has = ", ".join(frame.columns) or "no columns at all"
        raise DataError(
            f"{table}: no column {name!r}; it has {has}. Rename or add the "
            f"column, or say which one it is in dataset.yaml ({_mapping(frame, name)})"
        )
    if frame.is_empty():
        raise DataError(f"{table}: the table has no rows; add rows, or remove an optional table")
    return frame[name]


def _mapping(frame: pl.DataFrame, missing: str) -> str:
    """The option `columns` with the likely names of the required columns that a table lacks."""
    names = {name: name.lower() for name in frame.columns}
    likely = {
        required: next((n for n, lower in names.items() if re.fullmatch(pattern, lower)), None)
        for required, pattern in LIKELY_NAMES.items()
        if required not in names
    }
    pairs = [
        f"{required}: {name}{'.id' if isinstance(frame.schema[name], pl.Struct) else ''}"
        for required, name in likely.items()
        if name
    ]
    return f"`columns: {{{', '.join(pairs)}}}`" if likely.get(missing) else "`columns`"


def reject(bad: pl.Series, column: pl.Series, table: str, problem: str, fix: str) -> None:
    """Raise a DataError with the first bad rows (counted from 1) and their values, if any."""
    rows = bad.arg_true()
    if len(rows):
        values = (f"row {row + 1}: {shown(column, row, table)}" for row in rows.head(SHOWN_ROWS))
        raise DataError(
            f"{table}, column {column.name!r}: {len(rows):,} of {len(column):,} values "
            f"{problem} ({', '.join(values)}). {fix}"
        )


def reject_same_names(names: list[str], table: str) -> None:
    """Raise a DataError if two names differ only in case or in spaces at their ends."""
    normal = pl.Series(names, dtype=pl.String).str.strip_chars().str.to_lowercase()
    clashes = [name for name, clash in zip(names, normal.is_duplicated(), strict=True) if clash]
    if clashes:
        listed = ", ".join(map(repr, clashes))
        raise DataError(f"{table}: columns of the same name ({listed}); rename all but one")


def reject_inexact(column: pl.Series, table: str, fix: str) -> None:
    """Raise a DataError if a column of floats has values that it cannot tell apart."""
    limit = INEXACT_FROM.get(column.dtype)
    if limit is not None:
        power = limit.bit_length() - 1
        problem = f"are 2**{power} or more, where a float cannot tell integers apart"
        reject(column.abs() >= limit, column, table, problem, fix)


def reject_rounded(column: pl.Series, table: str) -> None:
    """Raise a DataError if text has numbers such as `1.5E+18`, as floats and spreadsheets write."""
    rounded = where(column, _is_rounded).fill_null(False)
    fix = "A float or a spreadsheet has rounded them; export the column again as integers or text"
    reject(rounded, column, table, "have lost digits", fix)


def as_text(column: pl.Series, table: str) -> pl.Series:
    """Text or whole numbers as strings; nulls stay null. Coded columns stay coded.

    Raises a DataError for other values, and for numbers that their type cannot tell apart.
    """
    if is_coded(column):
        reject_rounded(column, table)
        return column
    if isinstance(column.dtype, pl.Decimal):
        whole = column.cast(pl.Decimal(38, 0), strict=False)
        fix = "Write ids as text or integers"
        reject((whole != column).fill_null(False), column, table, "are not whole", fix)
        return whole.cast(pl.String)
    if column.dtype == pl.Binary:
        try:
            return column.cast(pl.String)
        except pl.exceptions.ComputeError:
            broken = pl.Series([_is_broken(value) for value in column], dtype=pl.Boolean)
            reject(broken, column, table, "are not UTF-8", "Write ids as text")
            raise
    if column.dtype.is_float():
        column = column.fill_nan(None)
        fix = "Write ids as text or integers"
        reject(column.is_not_null() & ~is_whole(column), column, table, "are not whole", fix)
        reject_inexact(column, table, fix)
        column = column.cast(pl.Int64)
    if not (column.dtype.is_integer() or column.dtype in (pl.String, pl.Categorical, pl.Enum)):
        raise wrong_type(column, table, "text or integers")
    column = column.cast(pl.String)
    reject_rounded(column, table)
    return column


def as_ids(column: pl.Series, table: str) -> pl.Series:
    """As `as_text`, but also raises a DataError for null, empty and blank values."""
    text = column.cast(pl.String) if column.dtype == pl.Null else as_text(column, table)
    missing = text.is_null() | where(text, lambda values: values.str.strip_chars(BLANKS) == "")
    present = "<> ''" if (missing & text.is_not_null()).any() else "IS NOT NULL"
    fix = f"Fill them in, or leave these rows out by a query: WHERE {column.name} {present}"
    reject(missing, column, table, "are null or empty", fix)
    return text


def null_words(ids: pl.Series, table: str) -> list[str]:
    """A note on ids that are words for a missing value, such as `NULL`, if there are any."""
    is_word = where(ids, lambda text: text.str.strip_chars().str.to_lowercase().is_in(NO_IDS))
    counts = ids.filter(is_word).value_counts(sort=True)
    if counts.is_empty():
        return []
    words = ", ".join(
        f"{count:,} times {word!r}" for word, count in counts.head(SHOWN_WORDS).rows()
    )
    return [
        f"{table}, column {ids.name!r}: {words}. Each is one id; if it means nobody or nothing, "
        "remove these rows."
    ]


def blank_ends(ids: pl.Series, table: str) -> list[str]:
    """A note on ids with `BLANKS` at their ends, if there are any: they equal no id without."""
    is_padded = where(ids, lambda text: text != text.str.strip_chars(BLANKS))
    if not is_padded.any():
        return []
    row = is_padded.arg_max() or 0
    return [
        f"{table}, column {ids.name!r}: {is_padded.sum():,} of {len(ids):,} values have blanks at "
        f"their ends (row {row + 1}: {shown(ids, row, table)}), so they equal no id without them. "
        f"Write the file without them, or trim them in a query: trim({ids.name})."
    ]


def same_but_for_case(event_types: pl.Series, table: str) -> list[str]:
    """A note on event types that differ only in capitals, if there are any."""
    names = texts(event_types) if is_coded(event_types) else event_types.unique().cast(pl.String)
    same = names.filter(names.str.to_lowercase().is_duplicated()).sort()
    if same.is_empty():
        return []
    return [
        f"{table}, column {event_types.name!r}: {', '.join(map(repr, same.head(SHOWN_WORDS)))} "
        "differ only in capitals, and each is a type of its own. If they mean the same, say so in "
        f"dataset.yaml: `event_types: {{{same[0]}: {same[1]}}}`."
    ]


def with_simple_type(column: pl.Series) -> pl.Series:
    """NaN and lists without a type as null, fixed-size arrays as lists, categories and bytes of
    UTF-8 as text."""
    if isinstance(column.dtype, pl.Array):
        column = column.arr.to_list()
    is_list, value_type = isinstance(column.dtype, pl.List), _value_type(column)
    if is_list and value_type == pl.Null:
        return pl.Series(column.name, [None] * len(column))
    if value_type in (pl.Categorical, pl.Enum):
        return column.cast(pl.List(pl.String) if is_list else pl.String)
    if column.dtype == pl.Binary:
        with suppress(pl.exceptions.ComputeError):
            return column.cast(pl.String)
    return column.fill_nan(None) if column.dtype.is_float() else column


def as_labels(column: pl.Series, table: str) -> pl.Series:
    """Values or lists of values as strings; raises a DataError for nested or binary values."""
    is_list, value_type = isinstance(column.dtype, pl.List), _value_type(column)
    if value_type.is_nested() or value_type in (pl.Binary, pl.Object):
        raise wrong_type(column, table, "text, numbers or lists of them")
    return column.cast(pl.List(pl.String) if is_list else pl.String)


def as_type(column: pl.Series, dtype: Any, table: str) -> pl.Series:
    """Values in the type that a column has in the catalogue.

    Numbers with fractions stay as they are where the catalogue has whole numbers.

    Raises:
        DataError: a value would be lost.
    """
    if column.dtype == dtype:
        return column
    try:
        if column.dtype == pl.String and dtype == pl.Date:
            cast = column.str.to_date()
        elif column.dtype == pl.String and isinstance(dtype, pl.Datetime):
            zoned = column.str.to_datetime(time_unit=dtype.time_unit, time_zone="UTC")
            cast = zoned.cast(dtype)
        else:
            cast = column.cast(dtype)
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"{table}, column {column.name!r}: {column.dtype} does not become {dtype}, its type in "
            f"the catalogue ({str(error).splitlines()[0]}). Convert it"
        ) from error
    has_fractions = column.dtype.is_float() and dtype.is_integer() and (cast != column).any()
    return column if has_fractions else cast


def as_cells(column: pl.Series, table: str) -> pl.Series:
    """Single values as strings; raises a DataError for lists, structs and binary values."""
    if column.dtype.is_nested() or column.dtype in (pl.Binary, pl.Object):
        raise wrong_type(column, table, "text or numbers")
    return column.cast(pl.String)


def index_in(column: pl.Series, ids: pl.Series) -> pl.Series:
    """The index (int32) of every value in a list of distinct ids; null for other values."""
    if is_coded(column):
        return per_row(column, index_in(texts(column), ids))
    index = pl.LazyFrame({"id": ids, "index": pl.int_range(len(ids), dtype=pl.Int32, eager=True)})
    values = column.alias("id").to_frame().lazy()
    indexed = values.join(index, on="id", how="left", maintain_order="left")
    return indexed.select("index").collect().to_series()


def wrong_type(column: pl.Series, table: str, expected: str) -> DataError:
    """The error of a column whose type is not the expected one."""
    return DataError(
        f"{table}, column {column.name!r}: wrong type {column.dtype} (row 1: "
        f"{shown(column, 0, table)}). Convert it to {expected}"
    )


def shown(column: pl.Series, row: int, table: str) -> str:
    """A value in one line; see `personal` for values of events and ids of users."""
    value = column.to_physical()[row]
    if not column.dtype.is_temporal() or _is_in_python(column.slice(row, 1)):
        value = column[row]
    value = value.to_list() if isinstance(value, pl.Series) else value
    is_personal = isinstance(table, EventsName) or column.name in PERSONAL
    text = personal(value) if is_personal else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= SHOWN_WIDTH else f"{text[:SHOWN_WIDTH]} ..."


def _is_in_python(moment: pl.Series) -> bool:
    """Whether a time lies in the years 1 to 9999, as those of Python do."""
    if moment.dtype not in (pl.Date, pl.Datetime):
        return True
    milliseconds = moment.dt.epoch("ms")[0]
    return milliseconds is None or FIRST_IN_PYTHON <= milliseconds < END_OF_PYTHON


def _value_type(column: pl.Series) -> Any:
    """The type of the values of a column, or of its lists."""
    return column.dtype.inner if isinstance(column.dtype, pl.List) else column.dtype


def _is_rounded(text: pl.Series) -> pl.Series:
    digits = text.str.extract(LONG_FLOAT).cast(pl.Float64)
    return text.str.contains(ROUNDED) | (digits >= INEXACT_FROM[pl.Float64]).fill_null(False)


def is_whole(numbers: pl.Series) -> pl.Series:
    """Whether each value is a whole number of 64 bits; false for null."""
    return (numbers == numbers.cast(pl.Int64, strict=False)).fill_null(False)


def _is_broken(value: bytes | None) -> bool:
    """Whether bytes are no UTF-8 text."""
    try:
        (value or b"").decode()
    except UnicodeDecodeError:
        return True
    return False
