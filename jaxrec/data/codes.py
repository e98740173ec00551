"""Columns of text as codes: every distinct text once, and a number of four bytes for each row.

The ids of 100 million events fit in memory as numbers, not as text. A coded column is a
categorical column of Polars with categories of its own; other categorical columns are text.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Int, Int32, UInt32

from jaxrec.data.slices import counts, look_up


def new_codes() -> Any:
    """The type of a coded column whose texts are not yet known."""
    return pl.Categorical(pl.Categories.random("jaxrec", physical=pl.UInt32))


def is_coded(column: pl.Series) -> bool:
    """Whether a column is coded."""
    return isinstance(column.dtype, pl.Categorical) and not column.dtype.categories.is_global()


def coded(column: pl.Series) -> pl.Series:
    """A column of text as codes."""
    return column if is_coded(column) else column.cast(new_codes())


def texts(column: pl.Series) -> pl.Series:
    """The text of every code of a coded column, also of codes that no row has."""
    return column.dtype.categories.to_series().alias(column.name)  # type: ignore[attr-defined]


def codes(column: pl.Series) -> UInt32[np.ndarray, " n"]:
    """The codes of a coded column without nulls."""
    return column.to_physical().to_numpy()


def numbered(
    column: pl.Series,
) -> tuple[Int32[np.ndarray, " n"], pl.Series, Int[np.ndarray, " size"]]:
    """The place of every row's text among all texts in order, these texts, and their counts."""
    column = coded(column)
    names = texts(column)
    sizes = counts(codes(column), len(names))
    order = names.arg_sort().to_numpy()
    order = order[sizes[order] > 0]
    places = np.empty(len(names), np.int32)
    places[order] = np.arange(len(order))
    return look_up(places, codes(column)), names.gather(order), sizes[order]


def per_row(column: pl.Series, values: pl.Series) -> pl.Series:
    """Values of codes as values of the rows of a coded column; null for null."""
    return values.gather(column.to_physical()).alias(column.name)


def where(column: pl.Series, holds: Callable[[pl.Series], pl.Series]) -> pl.Series:
    """Whether a condition on text holds in each row; codes are tested once for each text."""
    if not is_coded(column):
        return holds(column)
    true = holds(texts(column))
    if not true.any():  # as in nearly all searches for bad values
        return pl.repeat(False, len(column), eager=True).alias(column.name)
    return per_row(column, true)
