"""Typed columns of RecBole's atomic files."""

from collections.abc import Sequence

import polars as pl

from jaxrec.data.columns import reject


def named_types(header: Sequence[str]) -> list[tuple[str, str]]:
    """The names and types in a header of fields `name:type`.

    Types are token, float, token_seq and float_seq.
    """
    return [(name, kind) for name, _, kind in (field.partition(":") for field in header)]


def typed(column: pl.Series, field_type: str, table: str) -> pl.Series:
    """Text as values of a type. Raises a DataError for text that is no number."""
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
