"""What validation and test say of a trained state: metrics, corrections, ranks."""

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxrec.data.dataset import Dataset
from jaxrec.evaluation.calibration import (
    QUERIES,
    Calibration,
    Correction,
    Reliability,
    fit_familiar,
    fit_popularity,
    fit_temperature,
    likely_items_reliability,
    usable_queries,
    with_prior,
)
from jaxrec.evaluation.metrics import segments
from jaxrec.evaluation.protocol import (
    evaluate,
    evaluate_baselines,
    masked_kinds,
    own_pairs,
    segment_masks,
)
from jaxrec.inference.encoding import familiarity, user_vectors
from jaxrec.ranking.top_k import PairBlocks, Ranking, scaled
from jaxrec.training.state import Setup, TrainState, catalog_vectors
from jaxrec.types import Queries


def validate(setup: Setup, state: TrainState) -> dict[str, float]:
    """Metrics on the validation queries."""
    items, queries = item_vectors(setup, state), setup.dataset.split.validation
    return _evaluate(setup, state, items, queries, Correction())[0]


def _evaluate(
    setup: Setup,
    state: TrainState,
    items: Float[Array, "I 1+ED"],
    queries: Queries,
    correction: Correction,
) -> tuple[dict[str, float], Ranking]:
    users = query_vectors(setup, state, items, queries)
    items = with_prior(items, correction.prior(setup.counts))
    targets = setup.dataset.split.log.items[queries.positions]
    pairs = corrected_pairs(setup, state, queries, correction, targets)
    k = setup.config.evaluation.k
    return evaluate(targets, pairs, setup.valid, setup.counts, users, items, k, setup.mesh)


def corrected_pairs(
    setup: Setup,
    state: TrainState,
    queries: Queries,
    correction: Correction,
    targets: Int[np.ndarray, " q"] | None,
) -> PairBlocks:
    """The `own_pairs` of queries under a correction; given targets are not left out."""
    log, mask = setup.dataset.split.log, setup.config.evaluation.mask
    learned = familiarity(setup.definition, state.params, setup.dataset.wanted_kind)
    counted = ~masked_kinds(mask, log.kind_names)
    return own_pairs(log, queries, mask, correction.familiarity(learned, counted), targets)


def item_vectors(setup: Setup, state: TrainState) -> Float[Array, "I 1+ED"]:
    """Vectors of the items under a state."""
    return catalog_vectors(setup, state)[: len(setup.valid)]


def query_vectors(
    setup: Setup, state: TrainState, items: Float[Array, "I 1+ED"], queries: Queries
) -> Float[np.ndarray, "Q 1+ED"]:
    """Vectors of the users at the moments of queries."""
    evaluation = setup.config.evaluation
    return user_vectors(
        setup.definition,
        nnx.to_pure_dict(state.params),
        items,
        setup.dataset.split.log,
        queries,
        history=evaluation.history,
        users=evaluation.users,
        wanted_kind=setup.dataset.wanted_kind,
    )


def test(
    setup: Setup, state: TrainState, correction: Correction
) -> tuple[dict[str, Any], pl.DataFrame]:
    """Everything that `metrics.json` and `ranks.parquet` hold, for the selected state."""
    config, split, chosen = setup.config, setup.dataset.split, setup.dataset.chosen
    items = item_vectors(setup, state)
    names = {"test" if name == "last" else f"test_{name}": q for name, q in split.test.items()}
    results: dict[str, Any] = {
        "protocol": {
            "split": config.split.scheme,
            "mask": list(config.evaluation.mask),
            "history": config.evaluation.history or "all",
            "candidates": int(setup.valid.sum()),
            "queries": {name: len(q) for name, q in names.items()},
        },
        "validation": _evaluate(setup, state, items, split.validation, correction)[0],
    }
    ranks = []
    for name, queries in names.items():
        scores, ranking = _evaluate(setup, state, items, queries, correction)
        ranks.append(rank_table(name, setup.dataset, queries, ranking))
        masks = segment_masks(split.log, queries, chosen, setup.counts)
        baselines = evaluate_baselines(
            split, queries, config.evaluation, setup.valid, chosen, setup.counts, masks
        )
        results[name] = {"model": scores, **baselines, "segments": segments(ranking.ranks, masks)}
    return results, pl.concat(ranks)


def rank_table(name: str, dataset: Dataset, queries: Queries, ranking: Ranking) -> pl.DataFrame:
    """A row a query: who chose what, and its rank (from 0) among all items."""
    log = dataset.split.log
    return pl.DataFrame(
        {
            "queries": pl.repeat(name, len(queries), eager=True),
            "user_id": log.user_ids[queries.users],
            "item_id": dataset.catalog.item_ids[log.items[queries.positions]],
            "rank": ranking.ranks,
        }
    )


def calibrate(setup: Setup, state: TrainState) -> tuple[Calibration, Reliability]:
    """What validation corrects, and how true the probabilities of test are then."""
    split, valid = setup.dataset.split, setup.valid
    targets, last = split.log.items[split.validation.positions], split.test["last"]
    some = usable_queries(targets, valid, QUERIES)
    queries, targets = split.validation[some], targets[some]
    items = item_vectors(setup, state)
    users = query_vectors(setup, state, items, queries)
    of_last = query_vectors(setup, state, items, last)

    def pairs_under(correction: Correction, chosen: Int[np.ndarray, " q"]) -> PairBlocks:
        return corrected_pairs(setup, state, queries[chosen], correction, targets[chosen])

    familiar = Correction()
    if setup.arrays.repeats:
        familiar = fit_familiar(users, items, targets, valid, pairs_under)
    pairs = corrected_pairs(setup, state, queries, familiar, targets)
    fitted = fit_temperature(users, items, targets, valid, pairs)
    popularity = fit_popularity(
        users,
        items,
        targets,
        valid,
        setup.counts,
        pairs,
        inverse_temperature=fitted.inverse_temperature,
    )
    correction = replace(familiar, popularity=popularity)
    items = with_prior(items, correction.prior(setup.counts))
    fitted = fit_temperature(users, items, targets, valid, pairs)
    scale = fitted.inverse_temperature
    # as lists are made: a target that the mask leaves out is none of the likely items
    likely = scaled(corrected_pairs(setup, state, last, correction, None), scale)
    targets = split.log.items[last.positions]
    shown = likely_items_reliability(scale * of_last, items, targets, valid, pairs=likely)
    return replace(fitted, correction=correction), shown
