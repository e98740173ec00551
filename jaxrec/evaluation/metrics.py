"""Ranking metrics: values of queries from ranks, properties of lists, confidence intervals.

A rank counts from 0. It may end in .5 where the target shares its score with other items. In lists,
item 0 marks an empty place; `num_items` counts it, as `Catalog.num_items` does.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

CUTOFFS = (5, 10, 20, 50)


def recall(ranks: Float[np.ndarray, " Q"], k: int) -> Float[np.ndarray, " Q"]:
    """1 where the target is among the first k, else 0. With one target, recall is the hit rate."""
    return (ranks < k).astype(np.float64)


def ndcg(ranks: Float[np.ndarray, " Q"], k: int) -> Float[np.ndarray, " Q"]:
    """Normalised discounted cumulative gain of one target: 1 / log2(rank + 2) within the first k.

    Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques", 2002.
    """
    return recall(ranks, k) / np.log2(ranks + 2)


def mrr(ranks: Float[np.ndarray, " Q"], k: int) -> Float[np.ndarray, " Q"]:
    """Reciprocal rank of the target, 1 / (rank + 1) within the first k."""
    return recall(ranks, k) / (ranks + 1)


def summarise(ranks: Float[np.ndarray, " Q"], cutoffs: Sequence[int] = CUTOFFS) -> dict[str, float]:
    """Means over the queries: `ndcg@10`, `recall@10`, `mrr@10`, ..., and the `count` of queries.

    Without queries every mean is 0.
    """
    means = {
        f"{metric.__name__}@{k}": _mean(metric(ranks, k))
        for metric in (ndcg, recall, mrr)
        for k in cutoffs
    }
    return {"count": len(ranks), **means}


def segments(
    ranks: Float[np.ndarray, " Q"],
    masks: Mapping[str, Bool[np.ndarray, " Q"]],
    cutoffs: Sequence[int] = CUTOFFS,
) -> dict[str, dict[str, float]]:
    """`summarise` of every named subset of the queries; subsets may overlap or be empty."""
    return {name: summarise(ranks[mask], cutoffs) for name, mask in masks.items()}


def coverage(top_items: Int[np.ndarray, "Q K"], num_items: int) -> float:
    """Share of the catalogue that appears in at least one list."""
    return np.count_nonzero(_recommendations(top_items, num_items)) / max(num_items - 1, 1)


def gini(top_items: Int[np.ndarray, "Q K"], num_items: int) -> float:
    """Gini index of the recommendations per item: 0 if even or without any, near 1 on one item."""
    ascending = np.sort(_recommendations(top_items, num_items))
    size, total = len(ascending), ascending.sum()
    if total == 0:
        return 0.0
    positions = np.arange(1, size + 1)
    return float(2 * (positions @ ascending) / (size * total) - (size + 1) / size)


def mean_popularity(top_items: Int[np.ndarray, "Q K"], counts: Float[np.ndarray, " I"]) -> float:
    """Mean training count of the recommended items."""
    return _mean(counts[top_items[top_items > 0]])


def mean_interval(values: Float[np.ndarray, " Q"]) -> tuple[float, float]:
    """95 % interval of the mean of values from 0 to 1, by the normal approximation."""
    if len(values) < 2:
        return 0.0, 1.0
    mean, error = values.mean(), 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    # among n zeros, a share of 3 / n would be missed in one case of twenty
    high = max(mean + error, 3 / len(values))
    return float(max(mean - error, 0)), float(min(high, 1))


def ndcg_interval(ranks: Float[np.ndarray, " Q"], k: int) -> dict[str, float]:
    """The ends `low` and `high` of the 95 % interval of the mean NDCG@k, by `mean_interval`."""
    low, high = mean_interval(ndcg(ranks, k))
    return {"low": low, "high": high}


def bootstrap_interval(
    a: Float[np.ndarray, " Q"],
    b: Float[np.ndarray, " Q"],
    *,
    samples: int,
    seed: int,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of mean(a - b), two systems' values on the same queries.

    Efron and Tibshirani, "An Introduction to the Bootstrap", 1993.

    Raises:
        ValueError: the values are not paired.
    """
    if a.shape != b.shape:
        raise ValueError(f"values of shapes {a.shape} and {b.shape}: pair them query by query")
    if len(a) == 0:
        return 0.0, 0.0
    generator = np.random.default_rng(seed)
    differences = a - b
    # one resample at a time, because [samples, Q] indices need too much memory
    means = [generator.choice(differences, len(a)).mean() for _ in range(samples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _mean(values: Float[np.ndarray, " Q"]) -> float:
    return float(values.mean()) if values.size else 0.0


def _recommendations(
    top_items: Int[np.ndarray, "Q K"], num_items: int
) -> Int[np.ndarray, " items"]:
    return np.bincount(top_items.ravel(), minlength=num_items)[1:]
