"""Corrections that validation fits after training, so that probabilities compare across users.

They are the weight of popularity, the repeat bias, item neighbours, and the temperature of scores.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize, minimize_scalar

from jaxrec.artifacts.run_directory import NEIGHBOURS
from jaxrec.evaluation.metrics import ndcg
from jaxrec.evaluation.neighbours import NeighbourFit
from jaxrec.evaluation.tuning import ascend
from jaxrec.ranking.adjustments import AdjustmentBlocks, select_queries
from jaxrec.ranking.item_table import ItemTable, PreparedItems, prepare
from jaxrec.ranking.top_k import EvalQueries, check_targets, log_probabilities, rank_queries

INVERSE_TEMPERATURES = (0.05, 20.0)
REPEAT_BIASES = (-100.0, 100.0)  # of shift and decay: without repeats, likelihood has no maximum
MAX_QUERIES = 4096  # to fit a temperature on
MAX_SCORES = 2**28  # of queries by items, to choose by NDCG; there are `MAX_QUERIES` at least
POPULARITY_STRENGTHS = tuple(n / 10 for n in range(-8, 5))  # 0: as learned; -1: none is left
HALF_LIVES = (1.0, 3.0, 5.0)
STRENGTHS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)  # of item neighbours
START = {"half_life": 1.0, "popularity_exponent": 0.0, "strength": 1.0}


@dataclass(frozen=True)
class Correction:
    """Additions to the scores of a trained model.

    Items that are popular in the training period do not stay so (logit adjustment;
    arXiv:2007.07314). Training learns too small a repeat bias, because it sees interests that it
    has fitted.

    Attributes:
        popularity: weight of log(1 + training events) in the score of every item.
        repeat_shift: added to the repeat bias of every event.
        repeat_decay: subtracted from it at every doubling of the event's age.
        cooccurrence: what is added for items that came after the user's items in training; None
            where it was not fitted.
        similar_text: likewise for items whose texts are like those of the user's items.
    """

    popularity: float = 0.0
    repeat_shift: float = 0.0
    repeat_decay: float = 0.0
    cooccurrence: NeighbourFit | None = None
    similar_text: NeighbourFit | None = None

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "Correction":
        """The correction of its fields in JSON."""
        values: dict[str, Any] = {}
        for name, value in fields.items():
            if name in NEIGHBOURS:
                values[name] = NeighbourFit(**value) if value else None
            else:
                values[name] = float(value)
        return cls(**values)

    @property
    def neighbours(self) -> dict[str, NeighbourFit]:
        """The fits of item neighbours that have an effect, by name."""
        fits = {name: getattr(self, name) for name in NEIGHBOURS}
        return {name: fit for name, fit in fits.items() if fit and fit.strength}

    def with_neighbours(self, fits: Mapping[str, NeighbourFit]) -> "Correction":
        """The correction with other fits of item neighbours."""
        return replace(self, **cast(dict[str, Any], fits))

    def popularity_bias(self, counts: Float[np.ndarray, " I"]) -> Float[np.ndarray, " I"]:
        """The bias of items from their numbers of training events."""
        return (self.popularity * np.log1p(counts)).astype(np.float32)

    def repeat_bias(
        self, learned: Float[np.ndarray, "*targets types A"], counted: Bool[np.ndarray, " types"]
    ) -> Float[np.ndarray, "*targets types A"]:
        """The corrected repeat bias by event type and age; 0 for types that are not counted."""
        ages = np.arange(learned.shape[-1])
        corrected = learned + self.repeat_shift - self.repeat_decay * np.log2(1 + ages)
        return np.where(counted[:, None], corrected, 0).astype(np.float32)


@dataclass(frozen=True)
class Calibration:
    """The fitted scale of the scores; losses are mean negative log-likelihoods in nats."""

    inverse_temperature: float
    loss_before: float  # at 1
    loss_after: float  # at inverse_temperature
    queries: int  # number of queries of the fit
    correction: Correction = Correction()


UNCALIBRATED = Calibration(inverse_temperature=1.0, loss_before=0.0, loss_after=0.0, queries=0)


def fit_temperature(
    queries: EvalQueries, items: ItemTable, *, limit: int = MAX_QUERIES, block: int | None = None
) -> Calibration:
    """The inverse temperature under which the targets are most likely (arXiv:1706.04599).

    Minimises the mean of -log softmax(b score)[target], which is convex in b, over
    `INVERSE_TEMPERATURES`. `usable_queries` selects the queries. Each of 10 to 30 steps scores the
    catalogue for all of them.

    Raises:
        ValueError: lengths differ, a target is no row of the table, no target is valid, or a score
            is not finite.
    """
    selected, vectors, targets = _usable(queries, items.valid, limit)
    adjustments = select_queries(queries.adjustments, selected, len(queries.targets))
    usable, prepared = EvalQueries(vectors, targets, adjustments), prepare(items, block=block)

    def loss(inverse_temperature: float) -> float:
        return _mean_loss(usable, prepared, inverse_temperature)

    before = loss(1.0)
    best = minimize_scalar(
        lambda log_b: loss(math.exp(log_b)),
        bounds=tuple(math.log(limit) for limit in INVERSE_TEMPERATURES),
        method="bounded",
        options={"xatol": 1e-4},
    )
    # the search stops within its tolerance, which may be worse than 1 where 1 is the best
    after, fitted = min((before, 1.0), (float(best.fun), math.exp(best.x)))
    return Calibration(fitted, before, after, len(targets))


def fit_repeat_bias(
    queries: EvalQueries,
    items: ItemTable,
    adjustments: Callable[[Correction, Int[np.ndarray, " q"]], AdjustmentBlocks],
    *,
    limit: int = 1024,
) -> Correction:
    """The repeat shift and decay under which, with a fitted temperature, targets are most likely.

    Args:
        queries: without their adjustments.
        adjustments: the score adjustments of selected queries under a correction.

    Raises:
        ValueError: as `fit_temperature`.
    """
    selected, vectors, targets = _usable(queries, items.valid, limit)
    prepared = prepare(items)

    def loss(point: Float[np.ndarray, " 3"]) -> float:
        log_b, shift, decay = point.tolist()
        correction = Correction(repeat_shift=shift, repeat_decay=decay)
        adjusted = EvalQueries(vectors, targets, adjustments(correction, selected))
        return _mean_loss(adjusted, prepared, math.exp(log_b))

    corners = np.vstack([np.zeros(3), np.diag([-0.5, 1.0, 0.5])])
    options = {"initial_simplex": corners, "xatol": 0.05, "fatol": 1e-3}
    limits = [tuple(map(math.log, INVERSE_TEMPERATURES)), REPEAT_BIASES, REPEAT_BIASES]
    best = minimize(loss, np.zeros(3), method="Nelder-Mead", bounds=limits, options=options)
    _, shift, decay = best.x.tolist()
    return Correction(repeat_shift=shift, repeat_decay=decay)


def fit_neighbours(
    queries: EvalQueries,
    items: ItemTable,
    adjustments: Callable[[dict[str, NeighbourFit]], AdjustmentBlocks],
    exponents: Mapping[str, tuple[float, ...]],
) -> dict[str, NeighbourFit]:
    """The fits of several item neighbours that together rank best, found by `ascend`.

    The best NDCG@10 of a few queries says little: many other fits are as good. So of the fits whose
    NDCG@10 is within two standard errors of the best, the one with the smallest mean log rank is
    taken, which all queries decide and not only those with a target in the first ten. A strength
    is 0 unless NDCG@10 rises by more than a standard error with it.

    Args:
        queries: without their adjustments.
        adjustments: the score adjustments of the queries under fits.
        exponents: of popularity, to choose from, by the name of the neighbours.

    Raises:
        ValueError: as `rank_queries`.
    """

    @cache
    def ranks(fits: tuple[NeighbourFit, ...]) -> Float[np.ndarray, " Q"]:
        named = dict(zip(exponents, fits, strict=True))
        adjusted = EvalQueries(queries.vectors, queries.targets, adjustments(named))
        return rank_queries(adjusted, items, k=1).ranks

    def gains(point: Mapping[tuple[str, str], float]) -> Float[np.ndarray, " Q"]:
        return ndcg(ranks(of_point(point)), 10)

    def of_point(point: Mapping[tuple[str, str], float]) -> tuple[NeighbourFit, ...]:
        return tuple(
            NeighbourFit(**{option: point[name, option] for option in START}) for name in exponents
        )

    grid: dict[tuple[str, str], tuple] = {}
    for name, values in exponents.items():
        grid |= {
            (name, "half_life"): HALF_LIVES,
            (name, "popularity_exponent"): values,
            (name, "strength"): STRENGTHS,
        }
    start = {(name, option): START[option] for name, option in grid}
    best = ascend(grid, start, lambda point: gains(point).mean())

    def closeness(point: Mapping[tuple[str, str], float]) -> float:
        if _clearly_below(gains(point), gains(best), errors=2):
            return -math.inf
        return -float(np.log1p(ranks(of_point(point))).mean())

    point = ascend(grid, best, closeness)
    for name in exponents:
        without = point | {(name, "strength"): 0.0}
        if not _clearly_below(gains(without), gains(point)):
            point = without
    return dict(zip(exponents, of_point(point), strict=True))


def fit_popularity(
    queries: EvalQueries,
    items: ItemTable,
    counts: Float[np.ndarray, " I"],
    *,
    inverse_temperature: float,
) -> float:
    """The weight of popularity that ranks best; see `Correction`.

    It is the smallest of `POPULARITY_STRENGTHS`, at the given temperature, whose NDCG@10 is within
    a standard error of the best (Breiman et al., "Classification and Regression Trees", 1984).
    Likelihood often prefers another weight, because it rates the whole catalogue and not its head.

    Args:
        items: without a popularity bias.
        counts: how often each item was chosen in training.

    Raises:
        ValueError: as `rank_queries`.
    """
    weights = np.array(POPULARITY_STRENGTHS, np.float32) / inverse_temperature

    def gains(weight: float) -> Float[np.ndarray, " Q"]:
        table = items.add_bias(Correction(weight).popularity_bias(counts))
        return ndcg(rank_queries(queries, table, k=1).ranks, 10)

    by_weight = {weight: gains(weight) for weight in weights.tolist()}
    best = max(by_weight.values(), key=np.mean)
    return min((w for w, gain in by_weight.items() if not _clearly_below(gain, best)), key=abs)


def usable_queries(
    targets: Int[np.ndarray, " Q"], valid: Bool[np.ndarray, " I"], limit: int
) -> Int[np.ndarray, " q"]:
    """Queries with a valid target, evenly subsampled to `limit`.

    Raises:
        ValueError: the limit is not positive, or there is no such query.
    """
    if limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}")
    usable = np.flatnonzero(valid[targets])
    if not len(usable):
        raise ValueError(
            f"none of {len(targets)} queries has a valid target; give more validation data"
        )
    count = min(limit, len(usable))
    return usable[np.arange(count) * len(usable) // count]


def _usable(
    queries: EvalQueries, valid: Bool[np.ndarray, " I"], limit: int
) -> tuple[Int[np.ndarray, " q"], Float[np.ndarray, "q F"], Int[np.ndarray, " q"]]:
    """The `usable_queries`, their vectors and their targets."""
    check_targets(len(queries.vectors), queries.targets, valid)
    selected = usable_queries(queries.targets, valid, limit)
    return selected, np.asarray(queries.vectors)[selected], queries.targets[selected]


def _clearly_below(
    gains: Float[np.ndarray, " Q"], best: Float[np.ndarray, " Q"], errors: float = 1
) -> bool:
    """Whether gains lie below others by more than some standard errors of the mean difference."""
    behind = best - gains
    return bool(behind.mean() > errors * behind.std() / math.sqrt(len(behind)))


def _mean_loss(
    queries: EvalQueries,
    items: PreparedItems,
    inverse_temperature: float,
) -> float:
    """The mean of -log p(target | query)."""
    log_p = log_probabilities(
        queries.vectors,
        items,
        queries.targets[:, None],
        queries.adjustments,
        inverse_temperature=inverse_temperature,
    )
    return -float(log_p.mean(dtype=np.float64))
