"""Rows of an item table from JSON values, in the types of a known table."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from jaxrec.data.columns import as_type, reject_same_names, with_simple_type
from jaxrec.data.item_columns import LABEL_COLUMNS
from jaxrec.data.tables import validate_items
from jaxrec.errors import DataError

MAX_COLUMNS = 256  # of an item table
PLACE = "items"


def item_rows(
    known: pl.DataFrame,
    values: Sequence[Mapping[str, Any]],
    schema: Mapping[str, Any],
) -> pl.DataFrame:
    """Known rows in which some values are replaced, one mapping a row.

    Args:
        known: with `item_id`; the rows of new items are null otherwise.
        values: column -> JSON value; null empties a value.
        schema: the types of all columns so far. Other columns get the types of their values.

    Raises:
        DataError: a value does not fit the type of its column, or columns have the same name.
    """
    names = list(dict.fromkeys(name for row in values for name in row))
    new = [name for name in names if name not in schema]
    if new:
        reject_same_names([*schema, *new], PLACE)
    if len(schema) + len(new) > MAX_COLUMNS:
        raise DataError(f"items: more than {MAX_COLUMNS} columns; send fewer")
    sent = {name: with_simple_type(_series(name, values)) for name in names}
    labels = [column for name, column in sent.items() if name in LABEL_COLUMNS]
    if labels and len(known):  # as in a file: paths become lists, words for no value null
        items, *_ = validate_items(pl.DataFrame([known["item_id"], *labels]), PLACE)
        sent |= {name: items[name] for name in items.columns if name != "item_id"}
    columns = []
    for name, given in sent.items():
        dtype = schema.get(name, pl.Null)
        column = given if dtype == pl.Null else as_type(given, dtype, PLACE)
        is_given = np.array([name in row for row in values])
        if not is_given.all():
            before = known[name] if name in known.columns else None
            before = pl.Series(name, [None] * len(known)) if before is None else before
            places = np.arange(len(known)) + np.where(is_given, len(known), 0)
            column = pl.concat([before.cast(column.dtype), column]).gather(places)
        columns.append(column)
    result = known.with_columns(columns)
    missing = {name: dtype for name, dtype in schema.items() if name not in result.columns}
    if missing:
        nulls = (pl.lit(None, dtype).alias(name) for name, dtype in missing.items())
        result = result.with_columns(nulls)
    return result


def surely_fits(value: Any, dtype: Any) -> bool:
    """Whether a JSON value fits a type without a closer look, as nearly all values do."""
    if value is None:
        return True
    if isinstance(value, bool | list):
        return False
    if isinstance(value, int | float):
        return dtype in (pl.Float64, pl.Int64)
    return dtype == pl.String


def _series(name: str, values: Sequence[Mapping[str, Any]]) -> pl.Series:
    given = [row.get(name) for row in values]
    numbers = [
        entry for value in given for entry in (value if isinstance(value, list) else [value])
    ]
    if any(isinstance(number, float) for number in numbers):
        given = [_as_floats(value) for value in given]
    try:
        return pl.Series(name, given)
    except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError) as error:
        raise DataError(f"items, column {name!r}: its values are of different types") from error


def _as_floats(value: Any) -> Any:
    """Whole numbers as fractions; other values as they are."""
    if isinstance(value, list):
        return [_as_floats(entry) for entry in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
