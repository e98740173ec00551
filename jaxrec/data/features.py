"""Columns of items that hold vectors or numbers: which they are, and their values as arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Bool, Float

from jaxrec.config import Config
from jaxrec.config.options import SOURCES
from jaxrec.data.columns import SHOWN_ROWS, wrong_type
from jaxrec.data.item_columns import LABEL_COLUMNS
from jaxrec.errors import ConfigError, DataError

MAX_WIDTH = 8192  # numbers of a vector; whitening needs the square of it
OTHER_SOURCES = tuple(name for name in SOURCES if name != "vectors")
SHORTEST_TEXT = 4  # numbers of a vector that is written as text
SAME_LENGTH = 0.9  # share of the lists of a vector column that have the same length


@dataclass(frozen=True)
class FeatureColumns:
    """The columns of items that the experts of a model read as they are."""

    vectors: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All columns."""
        return (*self.vectors, *self.numbers)


def vector_columns(items: pl.DataFrame) -> tuple[str, ...]:
    """Columns whose values are lists of numbers, nearly all of the same length."""
    return tuple(
        name for name in items.columns if name not in OTHER_SOURCES and _holds_vectors(items[name])
    )


def feature_columns(items: pl.DataFrame, config: Config, *others: pl.DataFrame) -> FeatureColumns:
    """The columns that the experts of a configuration read: those named, and all for `vectors`.

    Args:
        others: the items of other shops, which may have columns that the first ones lack.

    Raises:
        ConfigError: an expert names neither a source nor a list column, or a number has no column.
    """
    sources, tables = config.model.sources, (items, *others)
    columns = list(dict.fromkeys(name for table in tables for name in table.columns))
    with_vectors = {name for table in tables for name in vector_columns(table)}
    all_vectors = [name for name in columns if name in with_vectors]
    lists = {n for table in tables for n in table.columns if _is_list_of_numbers(table[n])}
    if unknown := [name for name in sources if name not in (*SOURCES, *lists)]:
        raise ConfigError(
            f"model.experts names {', '.join(unknown)}; the sources are {', '.join(SOURCES)} and "
            f"the vector columns of the items, which are: {', '.join(all_vectors) or 'none'}"
        )
    numbers = config.data.numeric_columns if "numbers" in sources else ()
    if missing := [name for name in numbers if name not in columns]:
        raise ConfigError(
            f"data.numeric_columns names {', '.join(missing)}; the items have {', '.join(columns)}"
        )
    named = [name for name in sources if name not in SOURCES]
    if "vectors" in sources:
        named += all_vectors
    vectors = [name for name in columns if name in named]
    return FeatureColumns(tuple(vectors), numbers)


def feature_arrays(
    items: pl.DataFrame,
    columns: FeatureColumns,
    widths: Mapping[str, int] | None = None,
    table: str = "items",
) -> dict[str, Float[np.ndarray, "I ..."]]:
    """Vector columns as float32 [I, D] and numbers as float64 [I]; NaN where there is none.

    A column that the table lacks has no values.

    Args:
        widths: the numbers that a vector must have, such as in training; None: as most have.
        table: where the items come from, for messages.

    Raises:
        DataError: a vector has another length, or a value is no finite number.
    """
    arrays: dict[str, Float[np.ndarray, "I ..."]] = {}
    for name in columns.names:
        column = items[name] if name in items.columns else pl.Series(name, [None] * len(items))
        ids = items["item_id"] if "item_id" in items.columns else None
        if name in columns.numbers:
            arrays[name] = _numbers(column, ids, table)
        else:
            arrays[name] = _vectors(column, ids, table, (widths or {}).get(name))
    return arrays


def compact(items: pl.DataFrame, columns: FeatureColumns) -> pl.DataFrame:
    """The table with its vector columns in float32, which is half the memory of JSON's numbers."""
    vectors = [name for name in columns.vectors if name in items.columns]
    return items.with_columns(pl.col(vectors).cast(pl.List(pl.Float32)))


def listed_vectors(column: pl.Series) -> pl.Series:
    """Text such as `[0.1, -2e-3, 1, 0]` as lists of numbers, if all values are such text.

    CSV files have no other way to hold vectors. Other columns stay as they are, as do labels and
    short lists such as the two ends of a range.
    """
    if column.dtype != pl.String or column.name in (*LABEL_COLUMNS, "title", "description"):
        return column
    values = column.drop_nulls()
    if not len(values) or values[0].count(",") < SHORTEST_TEXT - 1 or values[0].strip()[0] != "[":
        return column
    pattern = r"^\s*\[[-+0-9.eE,\s]*\]\s*$"
    if not values.str.contains(pattern).all():
        return column
    try:
        return column.str.json_decode(pl.List(pl.Float64))
    except pl.exceptions.PolarsError:  # such as [1,,2]
        return column


def width_of(column: pl.Series) -> int:
    """The length that most lists of a column have; 0 without lists."""
    lengths = column.list.len().filter(column.list.len() > 0)
    return int(lengths.mode().max() or 0) if len(lengths) else 0  # type: ignore[arg-type]


def _holds_vectors(column: pl.Series) -> bool:
    if not _is_list_of_numbers(column):
        return False
    lengths = column.list.len()
    filled, width = lengths.filter(lengths > 0), width_of(column)
    share = (filled == width).mean() if len(filled) else 0.0
    return width > 1 and float(share or 0) >= SAME_LENGTH  # type: ignore[arg-type]


def _is_list_of_numbers(column: pl.Series) -> bool:
    return isinstance(column.dtype, pl.List) and column.dtype.inner.is_numeric()


def _vectors(
    column: pl.Series, ids: pl.Series | None, table: str, width: int | None
) -> Float[np.ndarray, "I D"]:
    if column.dtype == pl.Null:
        return np.full((len(column), width or 1), np.nan, np.float32)
    if not _is_list_of_numbers(column):
        raise wrong_type(column, table, "lists of numbers")
    lengths = column.list.len().fill_null(0).to_numpy()
    expected = width or width_of(column)
    if expected > MAX_WIDTH:
        raise DataError(
            f"{table}, column {column.name!r}: vectors of {expected:,} numbers; reduce them to "
            f"{MAX_WIDTH:,} or fewer, such as by PCA"
        )
    known = lengths > 0
    wrong = known & (lengths != expected)
    of_training = " as in training" if width else ""
    _refuse(
        wrong,
        lambda row: f"{lengths[row]:,} numbers",
        (column.name, ids, table),
        f"vectors do not have {expected:,} numbers{of_training}",
    )
    vectors = np.full((len(column), expected), np.nan, np.float32)
    values = column.filter(pl.Series(known)).explode().cast(pl.Float32)
    vectors[known] = values.to_numpy().reshape(-1, expected)
    broken = known & ~np.isfinite(vectors).all(1)
    _refuse(
        broken,
        lambda row: f"number {np.flatnonzero(~np.isfinite(vectors[row]))[0] + 1}",
        (column.name, ids, table),
        "vectors hold NaN, an infinite number or null",
    )
    return vectors


def _numbers(column: pl.Series, ids: pl.Series | None, table: str) -> Float[np.ndarray, " I"]:
    if column.dtype.is_nested() or column.dtype.is_temporal() or column.dtype == pl.Binary:
        raise wrong_type(column, table, "numbers")
    values = column.cast(pl.Float64, strict=False)
    blank = column.is_null()
    if column.dtype == pl.String:
        blank |= (column.str.strip_chars() == "").fill_null(True)
    numbers = values.to_numpy().copy()
    bad = ~blank.to_numpy() & (values.is_null().to_numpy() | np.isinf(numbers))
    _refuse(bad, lambda row: repr(column[row]), (column.name, ids, table), "values are no numbers")
    return numbers


def _refuse(
    bad: Bool[np.ndarray, " I"], shown, place: tuple[str, pl.Series | None, str], problem: str
) -> None:
    """Raise a DataError that names the first bad rows, counted from 1, and their items."""
    rows = np.flatnonzero(bad)
    if not len(rows):
        return
    name, ids, table = place

    def where(row: int) -> str:
        return f"row {row + 1}" if ids is None else f"row {row + 1}, item {ids[row]!r}"

    listed = "; ".join(f"{where(int(row))}: {shown(int(row))}" for row in rows[:SHOWN_ROWS])
    raise DataError(
        f"{table}, column {name!r}: {len(rows):,} of {len(bad):,} {problem} ({listed}). Correct "
        "them, or leave them empty"
    )


def unused_notes(
    items: pl.DataFrame, columns: FeatureColumns, numeric_columns: Sequence[str]
) -> list[str]:
    """Notes on vectors that no expert reads, and on `data.numeric_columns` without an expert."""
    notes = [
        f"items: the vectors of {name} are not used; add +{name} to an expert of model.experts"
        for name in vector_columns(items)
        if name not in columns.names
    ]
    if numeric_columns and not columns.numbers:
        notes.append("data.numeric_columns is not used; add +numbers to an expert of model.experts")
    return notes


def missing_shares(arrays: Mapping[str, Float[np.ndarray, "I ..."]]) -> dict[str, float]:
    """The share of items without a value, by column."""
    return {
        name: float(np.isnan(values if values.ndim == 1 else values[:, 0]).mean())
        for name, values in arrays.items()
    }


def missing_notes(shares: Mapping[str, float]) -> list[str]:
    """Notes on columns that many items lack."""
    return [
        f"items, column {name!r}: {share:.1%} of the items have no value."
        for name, share in shares.items()
        if share
    ]
