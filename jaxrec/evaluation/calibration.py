"""What validation corrects of a trained model: how much what is popular and what is familiar count,
and the temperature of its scores, so that probabilities compare across users."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int
from scipy.optimize import minimize, minimize_scalar

from jaxrec.evaluation.metrics import ndcg
from jaxrec.ranking.top_k import (
    NEG_INF,
    AdjustmentBlocks,
    ScoreAdjustments,
    best_items,
    no_adjustments,
    padded,
    padded_adjustments,
    power_of_two,
    rank_queries,
    select_adjustments,
)

INVERSE_TEMPERATURES = (0.05, 20.0)
MAX_BLOCK_SCORES = 2**25
QUERIES = 4096  # that a temperature is fitted on at most
POPULARITY_STRENGTHS = tuple(n / 10 for n in range(-8, 5))  # 0: as learned; -1: none is left


@dataclass(frozen=True)
class Correction:
    """What is added to the scores of a trained model.

    What is popular in training is not so for ever (logit adjustment; arXiv:2007.07314). And as
    training sees interests that it has fitted, it learns too little of what is familiar.
    """

    popularity: float = 0.0  # for every item, times log(1 + its training events)
    shift: float = 0.0  # for the item of every event
    decay: float = 0.0  # taken from that at every doubling of the event's age

    def prior(self, counts: Float[np.ndarray, " I"]) -> Float[np.ndarray, " I"]:
        """What is added to the scores of items with so many training events."""
        return (self.popularity * np.log1p(counts)).astype(np.float32)

    def repeat_bias(
        self,
        learned: Float[np.ndarray, "*wanted event_types A"],
        counted: Bool[np.ndarray, " event_types"],
    ) -> Float[np.ndarray, "*wanted event_types A"]:
        """What is added for events, by event_type and age; event_types that are not counted add nothing."""
        ages = np.arange(learned.shape[-1])
        corrected = learned + self.shift - self.decay * np.log2(1 + ages)
        return np.where(counted[:, None], corrected, 0).astype(np.float32)


@dataclass(frozen=True)
class Calibration:
    """The fitted scale of the scores; losses are mean negative log-likelihoods in nats."""

    inverse_temperature: float
    loss_before: float  # at 1
    loss_after: float  # at inverse_temperature
    queries: int  # that it was fitted on
    correction: Correction = Correction()

    def as_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Reliability:
    """Predicted probabilities beside observed frequencies, in bins of ascending probability."""

    predicted: Float[np.ndarray, " N"]  # mean of the bin
    observed: Float[np.ndarray, " N"]  # share of hits in the bin
    standard_error: Float[np.ndarray, " N"]  # of observed, binomial
    counts: Int[np.ndarray, " N"]
    expected_error: float  # mean |predicted - observed| over all pairs
    predicted_to_observed: float  # ratio of the totals; infinite without hits

    def as_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON; an infinite ratio is None."""
        ratio = self.predicted_to_observed
        return {
            "predicted": self.predicted.tolist(),
            "observed": self.observed.tolist(),
            "standard_error": self.standard_error.tolist(),
            "counts": self.counts.tolist(),
            "expected_error": self.expected_error,
            "predicted_to_observed": ratio if math.isfinite(ratio) else None,
        }


def fit_temperature(
    queries: Float[np.ndarray, "Q D"] | Float[Array, "Q D"],
    items: Float[np.ndarray, "I D"] | Float[Array, "I D"],
    targets: Int[np.ndarray, " Q"],
    valid: Bool[np.ndarray, " I"],
    pairs: AdjustmentBlocks = no_adjustments,
    *,
    most: int = QUERIES,
    block: int = 256,
) -> Calibration:
    """The inverse temperature under which the targets are most likely (arXiv:1706.04599).

    Minimises the mean of -log softmax(b <query, items>)[target], which is convex in b, over
    `INVERSE_TEMPERATURES`. Queries whose target is not valid (0 where it is unknown) are left
    out, and of more than `most` queries that many are taken, evenly spaced. Every one of 10
    to 30 steps scores the catalogue for all of them. Other arguments: `log_probabilities`.

    Raises `ValueError` when lengths differ, a target is no row of `items`, no target is valid,
    or a score is not finite.
    """
    _check_rows(queries, targets, valid)
    chosen = usable_queries(targets, valid, most)
    query_rows, item_rows = np.asarray(queries)[chosen], jnp.asarray(items)
    theirs = select_adjustments(pairs, chosen, len(targets))

    def loss(inverse_temperature: float) -> float:
        return _mean_loss(
            query_rows, item_rows, targets[chosen], valid, theirs, inverse_temperature, block
        )

    before = loss(1.0)
    found = minimize_scalar(
        lambda log_b: loss(math.exp(log_b)),
        bounds=tuple(math.log(limit) for limit in INVERSE_TEMPERATURES),
        method="bounded",
        options={"xatol": 1e-4},
    )
    # The search stops within its tolerance, which may be worse than 1 where 1 is the best.
    after, best = min((before, 1.0), (float(found.fun), math.exp(found.x)))
    return Calibration(best, before, after, len(chosen))


def fit_repeat_bias(
    queries: Float[np.ndarray, "Q D"] | Float[Array, "Q D"],
    items: Float[np.ndarray, "I D"] | Float[Array, "I D"],
    targets: Int[np.ndarray, " Q"],
    valid: Bool[np.ndarray, " I"],
    pairs: Callable[[Correction, Int[np.ndarray, " q"]], AdjustmentBlocks],
    *,
    most: int = 1024,
) -> Correction:
    """The shift and decay under which, with a temperature of its own, the targets are most likely.

    Args:
        pairs: what some of the queries change in the scores of items under a correction.
        others: as in `fit_temperature`, which says what it raises.
    """
    _check_rows(queries, targets, valid)
    chosen = usable_queries(targets, valid, most)
    query_rows, item_rows = np.asarray(queries)[chosen], jnp.asarray(items)

    def loss(point: Float[np.ndarray, "3"]) -> float:
        log_b, shift, decay = point.tolist()
        theirs = pairs(Correction(shift=shift, decay=decay), chosen)
        return _mean_loss(query_rows, item_rows, targets[chosen], valid, theirs, math.exp(log_b))

    corners = np.vstack([np.zeros(3), np.diag([-0.5, 1.0, 0.5])])
    options = {"initial_simplex": corners, "xatol": 0.05, "fatol": 1e-3}
    found = minimize(loss, np.zeros(3), method="Nelder-Mead", options=options)
    _, shift, decay = found.x.tolist()
    return Correction(shift=shift, decay=decay)


def fit_popularity(
    queries: Float[np.ndarray, "Q 1+ED"],
    items: Float[Array, "I 1+ED"],
    targets: Int[np.ndarray, " Q"],
    valid: Bool[np.ndarray, " I"],
    counts: Float[np.ndarray, " I"],
    pairs: AdjustmentBlocks,
    *,
    inverse_temperature: float,
) -> float:
    """The weight of popularity that is best for the ranking; see `Correction`.

    Of `POPULARITY_STRENGTHS` at the given temperature, the least whose NDCG@10 is within a standard
    error of the best (Breiman et al., "Classification and Regression Trees", 1984). Likelihood
    would often choose another: it looks at the whole catalogue, and lists at the head of it.

    Args:
        items: without priors.
        counts: how often the items were chosen in training.
        others: as in `rank_queries`, which says what it raises.
    """
    weights = np.array(POPULARITY_STRENGTHS, np.float32) / inverse_temperature
    popular = with_prior(items, Correction(1.0).prior(counts))

    def gains(weight: np.float32) -> Float[np.ndarray, " Q"]:
        # in place of the 1 of the queries, so that the items are not copied for every weight
        weighing = np.insert(queries[:, 1:], 0, weight, axis=1)
        return ndcg(rank_queries(weighing, popular, targets, pairs, valid, k=1).ranks, 10)

    found = np.stack([gains(weight) for weight in weights])
    behind = found[found.mean(1).argmax()] - found
    error = behind.std(1) / math.sqrt(len(targets))
    good = weights[behind.mean(1) <= error]
    return float(good[np.abs(good).argmin()])


def with_prior(
    vectors: Float[Array, "N 1+ED"], prior: Float[np.ndarray, " n"]
) -> Float[Array, "N 1+ED"]:
    """Vectors of nodes with the priors of the first n of them; see `Recommender`."""
    return vectors.at[: len(prior), 0].set(prior)


def log_probabilities(
    queries: Float[np.ndarray, "Q D"] | Float[Array, "Q D"],
    items: Float[np.ndarray, "I D"] | Float[Array, "I D"],
    columns: Int[np.ndarray, "Q K"],
    valid: Bool[np.ndarray, " I"],
    pairs: AdjustmentBlocks = no_adjustments,
    *,
    inverse_temperature: float,
    block: int = 256,
) -> Float[np.ndarray, "Q K"]:
    """log p(item | query) = b <query, item> - log Z of the items in `columns`, in nats.

    Z sums over all valid items that are not excluded; the others have -inf. At most [block, I]
    scores exist at a time, and fewer for the largest catalogues.

    Raises `ValueError` when lengths differ, a column is no row of `items`, no item is valid, or
    a score is not finite.
    """
    _check_rows(queries, columns, valid)
    if not valid.any():
        raise ValueError("no item is valid, so there is nothing to normalise over")
    if block < 1:
        raise ValueError(f"block must be at least 1, not {block}")
    size = min(block, max(MAX_BLOCK_SCORES // len(valid), 1))
    item_rows = jnp.asarray(items)
    query_rows = np.asarray(queries)

    def one(start: int) -> Float[np.ndarray, "block K"]:
        stop = min(start + size, len(columns))
        some = pairs(start, stop)
        log_p = _block_log_probabilities(
            padded(query_rows[start:stop], size),
            item_rows,
            padded(columns[start:stop], size),
            valid,
            padded_adjustments(some, power_of_two(len(some.rows)), size),
            inverse_temperature,
        )
        return np.asarray(log_p)[: stop - start]

    blocks = [one(start) for start in range(0, len(columns), size)]
    log_p = np.concatenate([np.zeros((0, columns.shape[1]), np.float32), *blocks])
    wrong = np.isnan(log_p)
    if wrong.any():
        raise ValueError(f"scores of query {np.nonzero(wrong)[0][0]} are not finite")
    return log_p


def reliability(
    probabilities: Float[np.ndarray, "Q K"], hits: Bool[np.ndarray, "Q K"], bins: int = 10
) -> Reliability:
    """Compare predicted probabilities with what happened, in bins of equal count.

    Equal counts suit probabilities over many orders of magnitude; equal probabilities share a
    bin, so there may be fewer than `bins`. The expected error is the ECE of arXiv:1706.04599;
    the ratio of the totals is the calibration of He et al., "Practical lessons from predicting
    clicks on ads at Facebook", 2014.

    Raises `ValueError` when shapes differ, a value is no probability, there is none, or `bins`
    is not positive.
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


def likely_items_reliability(
    queries: Float[np.ndarray, "Q D"],
    items: Float[Array, "I D"],
    targets: Int[np.ndarray, " Q"],
    valid: Bool[np.ndarray, " I"],
    k: int = 20,
    *,
    pairs: AdjustmentBlocks = no_adjustments,
) -> Reliability:
    """`reliability` of the k likeliest items of every query; a target among them is a hit.

    `queries` and `pairs` are times the inverse temperature.
    """
    best = best_items(queries, items, pairs, valid, min(k, int(valid.sum())))
    assert best.log_z is not None
    probabilities = np.exp(best.scores - best.log_z[:, None])
    return reliability(np.minimum(probabilities, 1), best.items == targets[:, None])


def _mean_loss(
    queries: Float[np.ndarray, "Q D"],
    items: Float[Array, "I D"],
    targets: Int[np.ndarray, " Q"],
    valid: Bool[np.ndarray, " I"],
    pairs: AdjustmentBlocks,
    inverse_temperature: float,
    block: int = 256,
) -> float:
    """The mean of -log p(target | query); see `log_probabilities`."""
    log_p = log_probabilities(
        queries,
        items,
        targets[:, None],
        valid,
        pairs,
        inverse_temperature=inverse_temperature,
        block=block,
    )
    return -float(log_p.mean(dtype=np.float64))


def usable_queries(
    targets: Int[np.ndarray, " Q"], valid: Bool[np.ndarray, " I"], most: int
) -> Int[np.ndarray, " q"]:
    """Queries with a valid target, evenly subsampled to `most`."""
    if most < 1:
        raise ValueError(f"most must be at least 1, not {most}")
    usable = np.flatnonzero(valid[targets])
    if not len(usable):
        raise ValueError(
            f"none of {len(targets)} queries has a valid item as its target, so there is nothing "
            "to calibrate on; give more validation data"
        )
    count = min(most, len(usable))
    return usable[np.arange(count) * len(usable) // count]


@jax.jit
def _block_log_probabilities(
    queries: Float[Array, "block D"],
    items: Float[Array, "I D"],
    columns: Int[Array, "block K"],
    valid: Bool[Array, " I"],
    pairs: ScoreAdjustments,
    inverse_temperature: Float[Array, ""],
) -> Float[Array, "block K"]:
    scores = jnp.einsum(
        "qd,id->qi",
        queries,
        items,
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    scores = scores.at[pairs.rows, pairs.items].add(pairs.amounts, mode="drop")
    left = valid[None, :] & ~(scores < NEG_INF / 2)
    scores = jnp.where(left, inverse_temperature * scores, -jnp.inf)
    log_z = jax.nn.logsumexp(scores, axis=1, keepdims=True)
    some_left = log_z > -jnp.inf
    # A fused multiply-add may round the probability of a certain item to above 1.
    log_p = jnp.minimum(
        jnp.take_along_axis(scores, columns, axis=1) - jnp.where(some_left, log_z, 0), 0
    )
    return jnp.where(log_z < jnp.inf, log_p, jnp.nan)


def _check_rows(
    queries: Float[np.ndarray, "Q D"] | Float[Array, "Q D"],
    columns: Int[np.ndarray, "Q ..."],
    valid: Bool[np.ndarray, " I"],
) -> None:
    if len(queries) != len(columns):
        raise ValueError(
            f"{len(queries)} queries and {len(columns)} rows of items: give every query one row"
        )
    if np.any((columns < 0) | (columns >= len(valid))):
        raise ValueError(f"items outside [0, {len(valid)}): use 0 for an unknown item")


def _check_probabilities(
    probabilities: Float[np.ndarray, "Q K"], hits: Bool[np.ndarray, "Q K"], bins: int
) -> None:
    if probabilities.shape != hits.shape:
        raise ValueError(
            f"probabilities of shape {probabilities.shape} and hits of shape {hits.shape}: give "
            "every probability its outcome"
        )
    if not probabilities.size:
        raise ValueError("no probabilities to compare with outcomes; give at least one")
    wrong = probabilities[~((probabilities >= 0) & (probabilities <= 1))]
    if len(wrong):
        raise ValueError(
            f"{len(wrong):,} of {probabilities.size:,} values are no probabilities "
            f"({', '.join(f'{value:g}' for value in wrong[:5])}); take the exponential of log p"
        )
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
