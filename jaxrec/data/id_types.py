"""The types that ids come in: ids are text inside, and leave in the type that they came in."""

from collections.abc import Mapping
from typing import Any

import polars as pl

IdType = Any  # a data type of polars


def id_type(dtype: IdType) -> IdType:
    """The type in which ids of a column leave: 64-bit integers for integers, else text."""
    if dtype == pl.UInt64:
        return pl.UInt64()
    return pl.Int64() if dtype.is_integer() else pl.String()


def with_id_types(table: pl.DataFrame, types: Mapping[str, IdType]) -> pl.DataFrame:
    """A table whose columns of text ids have the given types, as far as it has these columns."""
    return table.with_columns(
        pl.col(name).cast(dtype) for name, dtype in types.items() if name in table.columns
    )


def fitting_type(ids: pl.Series, wanted: IdType) -> IdType:
    """The wanted type if it holds all ids as they are written, else text."""
    numbers = ids.cast(wanted, strict=False)
    return wanted if numbers.cast(pl.String).equals(ids, null_equal=True) else pl.String()
