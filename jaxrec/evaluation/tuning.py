"""Choice of hyperparameters on a grid, by validation."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxrec.evaluation.baselines import Scorer
from jaxrec.evaluation.metrics import ndcg
from jaxrec.evaluation.protocol import Protocol
from jaxrec.types import Queries

MAX_SCORES = 2**26  # of validation queries by items, for one point of a grid
MIN_QUERIES = 4096  # however many items there are


def tuning_queries(protocol: Protocol) -> Queries:
    """The validation queries, or an evenly spaced subset if they have more than `MAX_SCORES`."""
    limit = max(MAX_SCORES // len(protocol.valid), MIN_QUERIES)
    return protocol.split.validation.subsampled(limit)


def tuning_ndcg(protocol: Protocol, scorer: Scorer) -> float:
    """NDCG@10 of scores for the `tuning_queries`, of which there is at least one."""
    return float(ndcg(protocol.rank(scorer, tuning_queries(protocol)).ranks, 10).mean())


def climb(
    grid: Mapping[str, tuple],
    start: Mapping[str, Any],
    rate: Callable[[dict[str, Any]], float],
) -> dict[str, Any]:
    """A point of the grid that no neighbour beats; coordinate ascent.

    It goes to the next value of one hyperparameter after another while the rating rises, and stops
    when a round over all of them changes nothing. No point is rated twice.

    Args:
        grid: the values of every hyperparameter, in order.
        start: a point of the grid.
    """
    ratings: dict[tuple, float] = {}

    def rated(point: dict[str, Any]) -> float:
        key = tuple(point.values())
        if key not in ratings:
            ratings[key] = rate(point)
        return ratings[key]

    best, improved = dict(start), True
    rated(best)
    while improved:
        improved = False
        for name, values in grid.items():
            for direction in (1, -1):
                place = values.index(best[name]) + direction
                while 0 <= place < len(values) and rated({**best, name: values[place]}) > rated(
                    best
                ):
                    best, improved = {**best, name: values[place]}, True
                    place += direction
    return best


def ascend(
    grid: Mapping[Any, tuple],
    start: Mapping[Any, Any],
    rate: Callable[[dict[Any, Any]], float],
) -> dict[Any, Any]:
    """A point of the grid that is the best on each of its lines; coordinate ascent.

    It takes the best of all values of one hyperparameter after another, among equals the first, and
    stops when a round changes nothing. `climb` needs fewer ratings, but noise can stop it early.

    Args:
        grid, start, rate: as in `climb`. Points are rated again.
    """
    best, before = dict(start), None
    while best != before:
        before = best
        for name, values in grid.items():
            best = max(({**best, name: value} for value in values), key=rate)
    return best
