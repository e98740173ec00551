"""The model and the best baseline together: what does the baseline know that the model does not?"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from jaxrec.evaluation.baselines import Scorer
from jaxrec.evaluation.protocol import Protocol, QueryScorer
from jaxrec.evaluation.tuning import tuning_ndcg, tuning_queries
from jaxrec.types import Queries

WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)


def fit_blend(
    protocol: Protocol, model: QueryScorer, baseline: QueryScorer
) -> tuple[QueryScorer, dict[str, Any]]:
    """The blend whose weight has the highest NDCG@10 on validation.

    Returns its scores, and its weight with the metrics on validation. The weight is 0 if the
    baseline does not help.
    """

    valid, queries = protocol.valid, tuning_queries(protocol)
    scores = model(queries), baseline(queries)  # once, because a model encodes the histories
    weight = max(WEIGHTS, key=lambda w: tuning_ndcg(protocol, blended(*scores, w, valid)))
    validation = protocol.evaluate(blended(*scores, weight, valid), queries)

    def blend(queries: Queries) -> Scorer:
        return blended(model(queries), baseline(queries), weight, valid)

    return blend, {"weight": weight, "validation": validation}


def blended(
    model: Scorer, baseline: Scorer, weight: float, valid: Bool[np.ndarray, " I"]
) -> Scorer:
    """Scores of the model plus `weight` times those of the baseline, both standardised."""

    def scores(start: int, stop: int) -> Float[np.ndarray, "Q I"]:
        total = standardised(model(start, stop), valid)
        if weight:
            total += weight * standardised(baseline(start, stop), valid)
        return total

    return scores


def standardised(
    scores: Float[np.ndarray, "Q I"], valid: Bool[np.ndarray, " I"]
) -> Float[np.ndarray, "Q I"]:
    """The scores of every query, shifted and scaled to mean 0 and variance 1 over valid items."""
    known = scores[:, valid]
    spread = known.std(axis=1, keepdims=True)
    return (scores - known.mean(axis=1, keepdims=True)) / np.maximum(spread, 1e-12)
