"""Vector columns and numbers of a table of items as the model takes them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float, Shaped

from jaxrec.data.features import FeatureColumns, feature_arrays
from jaxrec.models.items.features import FeatureMaps


def item_features(
    items: pl.DataFrame, maps: FeatureMaps, table: str = "items"
) -> dict[str, Shaped[np.ndarray, "I ..."]]:
    """The features of items, each from its own row.

    Args:
        items: without the unknown item.
        table: where the items come from, for messages.

    Raises:
        DataError: a vector has another length than in training, or a value is no finite number.
    """
    columns = FeatureColumns(tuple(maps.vectors), tuple(maps.numbers))
    return maps.apply(feature_arrays(items, columns, maps.raw_widths, table))


def fitting_columns(columns: Mapping[str, Any], maps: FeatureMaps) -> dict[str, Any]:
    """Columns of a stored item without vectors of another length than the model reads.

    A store outlives its models: such a vector was sent for one with another encoder.
    """
    widths = maps.raw_widths
    return {
        name: value
        for name, value in columns.items()
        if name not in widths or not isinstance(value, list) or len(value) in (0, widths[name])
    }


def catalog_features(
    items: pl.DataFrame, maps: FeatureMaps, table: str = "items"
) -> dict[str, Shaped[np.ndarray, "I ..."]]:
    """The features of an item table whose row 0 is the unknown item; raises as `item_features`."""
    known = item_features(items[1:], maps, table)
    nothing: dict[str, Float[np.ndarray, "1 ..."]] = {
        name: np.full((1, width), np.nan, np.float32) for name, width in maps.raw_widths.items()
    }
    nothing |= {name: np.full(1, np.nan) for name in maps.numbers}
    unknown = maps.apply(nothing)
    return {name: np.concatenate([unknown[name], values]) for name, values in known.items()}
