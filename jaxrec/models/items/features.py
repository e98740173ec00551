"""Vector columns and numbers of items -> inputs of the model, by maps fitted on a catalogue."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from jaxrec.models.text.whitening import Whitening, fit_whitening

NUM_BINS = 32  # of a numeric column, beside the bin of items without a number

Columns = Mapping[str, Float[np.ndarray, "I ..."]]
"""Vectors [I, D] and numbers [I] by column; NaN where an item has none."""
Features = Mapping[str, Shaped[np.ndarray, "..."]]
"""What a model reads of such columns; see `FeatureMaps.apply`."""


@dataclass(frozen=True)
class FeatureMaps:
    """What the columns of a catalogue went through before the model read them.

    Attributes:
        vectors: the whitening of each column of vectors.
        numbers: the quantiles of each numeric column that divide its bins, increasing.
    """

    vectors: dict[str, Whitening] = field(default_factory=dict)
    numbers: dict[str, Float[np.ndarray, " edges"]] = field(default_factory=dict)

    @property
    def raw_widths(self) -> dict[str, int]:
        """The numbers of a vector as it is given, by column."""
        return {name: len(whitening.mean) for name, whitening in self.vectors.items()}

    @property
    def widths(self) -> tuple[tuple[str, int], ...]:
        """Columns of vectors and the widths of what the model reads of them."""
        return tuple((name, w.projection.shape[1] + 1) for name, w in self.vectors.items())

    def apply(self, columns: Columns) -> dict[str, Shaped[np.ndarray, "I ..."]]:
        """Vectors whitened, float32 with the flag of a missing one behind; numbers as bins, int32.

        A missing vector is the mean, zero, with the flag 1. A missing number has bin 0.
        """
        vectors = {name: _whitened(columns[name], w) for name, w in self.vectors.items()}
        bins = {name: _bins(columns[name], edges) for name, edges in self.numbers.items()}
        return {**vectors, **bins}


def fit_features(columns: Columns, trained: Bool[np.ndarray, " I"], width: int) -> FeatureMaps:
    """Fit the maps to a catalogue.

    Vectors are whitened as text vectors are. The bins of a number hold about equally many items.

    Args:
        trained: items with a training event, whose numbers give the bins; all items if none of
            these has a number.
        width: principal components of a column of vectors to keep.

    Returns:
        Maps without the columns of vectors that hold fewer than two different vectors.
    """
    vectors, numbers = {}, {}
    for name, values in columns.items():
        if values.ndim == 1:
            numbers[name] = _quantiles(values, trained)
            continue
        known = ~np.isnan(values[:, 0])
        if (whitening := fit_whitening(values, known, width)) is not None:
            vectors[name] = whitening
    return FeatureMaps(vectors, numbers)


def _whitened(vectors: Float[np.ndarray, "I D"], whitening: Whitening) -> np.ndarray:
    known = ~np.isnan(vectors[:, 0])
    filled = np.where(known[:, None], vectors, 0)
    whitened = whitening.apply(filled, known)
    return np.concatenate([whitened, ~known[:, None]], axis=1, dtype=np.float32)


def _bins(
    numbers: Float[np.ndarray, " I"], edges: Float[np.ndarray, " edges"]
) -> Int[np.ndarray, " I"]:
    bins = 1 + np.searchsorted(edges, numbers, side="right")
    return np.where(np.isnan(numbers), 0, bins).astype(np.int32)


def _quantiles(
    numbers: Float[np.ndarray, " I"], trained: Bool[np.ndarray, " I"]
) -> Float[np.ndarray, " edges"]:
    known = ~np.isnan(numbers)
    chosen = numbers[known & trained] if (known & trained).any() else numbers[known]
    if not len(chosen):
        return np.zeros(0)
    inner = np.arange(1, NUM_BINS) / NUM_BINS
    return np.unique(np.quantile(chosen, inner, method="inverted_cdf"))


def padded_rows(features: Features, rows: int) -> dict[str, Shaped[np.ndarray, "rows ..."]]:
    """Features with zeros behind, up to a number of rows; the number 0 is the missing bin."""
    return {
        name: np.pad(values, ((0, rows - len(values)), *[(0, 0)] * (values.ndim - 1)))
        for name, values in features.items()
    }
