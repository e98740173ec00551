"""How true predicted probabilities are."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxrec.ranking.item_table import ItemTable
from jaxrec.ranking.top_k import EvalQueries, best_items


@dataclass(frozen=True)
class Reliability:
    """Predicted probabilities beside observed frequencies, in bins of ascending probability."""

    predicted: Float[np.ndarray, " bins"]  # mean of the bin
    observed: Float[np.ndarray, " bins"]  # share of hits in the bin
    standard_error: Float[np.ndarray, " bins"]  # of observed, binomial
    counts: Int[np.ndarray, " bins"]
    expected_error: float  # mean |predicted - observed| over all pairs
    predicted_to_observed: float  # ratio of the totals; infinite without hits

    def as_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON; an infinite ratio is None."""
        fields = {name: np.asarray(value).tolist() for name, value in asdict(self).items()}
        ratio = self.predicted_to_observed
        return fields | {"predicted_to_observed": ratio if math.isfinite(ratio) else None}


def likely_items_reliability(
    queries: EvalQueries, items: ItemTable, k: int = 20, *, inverse_temperature: float = 1.0
) -> Reliability:
    """`reliability` of the k likeliest items of every query; a target among them is a hit.

    Args:
        inverse_temperature: multiplies the scores.
    """
    best = best_items(
        queries.vectors,
        items,
        min(k, int(items.valid.sum())),
        queries.adjustments,
        with_log_z=True,
        inverse_temperature=inverse_temperature,
    )
    assert best.log_z is not None
    probabilities = np.exp(best.scores - best.log_z[:, None])
    return reliability(np.minimum(probabilities, 1), best.items == queries.targets[:, None])


def reliability(
    probabilities: Float[np.ndarray, "Q K"], hits: Bool[np.ndarray, "Q K"], bins: int = 10
) -> Reliability:
    """Compare predicted probabilities with what happened, in bins of equal count.

    Equal counts suit probabilities over many orders of magnitude. Equal probabilities share a bin,
    so there may be fewer than `bins`. The expected error is the ECE of arXiv:1706.04599; the ratio
    of the totals is the calibration of He et al., "Practical lessons from predicting clicks on ads
    at Facebook", 2014.

    Raises:
        ValueError: shapes differ, a value is no probability, there is none, or `bins` is not
            positive.
    """
    _check_probabilities(probabilities, hits, bins)
    order = np.argsort(probabilities, axis=None, kind="stable")
    ascending = probabilities.ravel()[order].astype(np.float64)
    size = len(ascending)
    starts = np.unique(np.searchsorted(ascending, ascending[np.arange(bins) * size // bins]))
    counts = np.diff(starts, append=size)
    predicted = np.add.reduceat(ascending, starts) / counts
    observed = np.add.reduceat(hits.ravel()[order].astype(np.float64), starts) / counts
    total_hits = int(np.count_nonzero(hits))
    return Reliability(
        predicted=predicted,
        observed=observed,
        standard_error=np.sqrt(observed * (1 - observed) / counts),
        counts=counts,
        expected_error=float(counts @ np.abs(predicted - observed) / size),
        predicted_to_observed=float(ascending.sum()) / total_hits if total_hits else math.inf,
    )


def _check_probabilities(
    probabilities: Float[np.ndarray, "Q K"], hits: Bool[np.ndarray, "Q K"], bins: int
) -> None:
    if probabilities.shape != hits.shape:
        raise ValueError(
            f"probabilities of shape {probabilities.shape} and hits of shape {hits.shape} differ"
        )
    if not probabilities.size:
        raise ValueError("no probabilities; give at least one")
    wrong = probabilities[~((probabilities >= 0) & (probabilities <= 1))]
    if len(wrong):
        examples = ", ".join(f"{value:g}" for value in wrong[:5])
        raise ValueError(
            f"{len(wrong):,} of {probabilities.size:,} values are no probabilities ({examples})"
        )
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
