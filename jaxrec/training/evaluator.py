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
    fit_popularity,
    fit_repeat_bias,
    fit_temperature,
    likely_items_reliability,
    usable_queries,
    with_prior,
)
from jaxrec.evaluation.metrics import segments
from jaxrec.evaluation.protocol import (
    evaluate,
    evaluate_baselines,
    history_adjustments,
    masked_event_types,
    segment_masks,
)
from jaxrec.inference.encoding import repeat_bias, user_vectors
from jaxrec.ranking.top_k import AdjustmentBlocks, Ranking, scaled
from jaxrec.training.state import TrainContext, TrainState, catalog_vectors
from jaxrec.types import Queries


def validate(context: TrainContext, state: TrainState) -> dict[str, float]:
    """Metrics on the validation queries."""
    items, queries = item_vectors(context, state), context.dataset.split.validation
    return _evaluate(context, state, items, queries, Correction())[0]


def _evaluate(
    context: TrainContext,
    state: TrainState,
    items: Float[Array, "I 1+ED"],
    queries: Queries,
    correction: Correction,
) -> tuple[dict[str, float], Ranking]:
    users = query_vectors(context, state, items, queries)
    items = with_prior(items, correction.prior(context.counts))
    targets = context.dataset.split.log.items[queries.positions]
    pairs = corrected_adjustments(context, state, queries, correction, targets)
    k = context.config.evaluation.k
    return evaluate(targets, pairs, context.valid, context.counts, users, items, k, context.mesh)


def corrected_adjustments(
    context: TrainContext,
    state: TrainState,
    queries: Queries,
    correction: Correction,
    targets: Int[np.ndarray, " q"] | None,
) -> AdjustmentBlocks:
    """The `history_adjustments` of queries under a correction; given targets are not left out."""
    log, mask = context.dataset.split.log, context.config.evaluation.mask
    learned = repeat_bias(context.definition, state.params, context.dataset.target_event_type)
    counted = ~masked_event_types(mask, log.event_type_names)
    return history_adjustments(
        log, queries, mask, correction.repeat_bias(learned, counted), targets
    )


def item_vectors(context: TrainContext, state: TrainState) -> Float[Array, "I 1+ED"]:
    """Vectors of the items under a state."""
    return catalog_vectors(context, state)[: len(context.valid)]


def query_vectors(
    context: TrainContext, state: TrainState, items: Float[Array, "I 1+ED"], queries: Queries
) -> Float[np.ndarray, "Q 1+ED"]:
    """Vectors of the users at the moments of queries."""
    evaluation = context.config.evaluation
    return user_vectors(
        context.definition,
        nnx.to_pure_dict(state.params),
        items,
        context.dataset.split.log,
        queries,
        history=evaluation.history,
        users=evaluation.users,
        target_event_type=context.dataset.target_event_type,
    )


def test(
    context: TrainContext, state: TrainState, correction: Correction
) -> tuple[dict[str, Any], pl.DataFrame]:
    """Everything that `metrics.json` and `ranks.parquet` hold, for the selected state."""
    config, split, chosen = context.config, context.dataset.split, context.dataset.positives
    items = item_vectors(context, state)
    names = {"test" if name == "last" else f"test_{name}": q for name, q in split.test.items()}
    results: dict[str, Any] = {
        "protocol": {
            "split": config.split.scheme,
            "mask": list(config.evaluation.mask),
            "history": config.evaluation.history or "all",
            "candidates": int(context.valid.sum()),
            "queries": {name: len(q) for name, q in names.items()},
        },
        "validation": _evaluate(context, state, items, split.validation, correction)[0],
    }
    ranks = []
    for name, queries in names.items():
        scores, ranking = _evaluate(context, state, items, queries, correction)
        ranks.append(rank_table(name, context.dataset, queries, ranking))
        masks = segment_masks(split.log, queries, chosen, context.counts)
        baselines = evaluate_baselines(
            split, queries, config.evaluation, context.valid, chosen, context.counts, masks
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


def calibrate(context: TrainContext, state: TrainState) -> tuple[Calibration, Reliability]:
    """What validation corrects, and how true the probabilities of test are then."""
    split, valid = context.dataset.split, context.valid
    targets, last = split.log.items[split.validation.positions], split.test["last"]
    some = usable_queries(targets, valid, QUERIES)
    queries, targets = split.validation[some], targets[some]
    items = item_vectors(context, state)
    users = query_vectors(context, state, items, queries)
    of_last = query_vectors(context, state, items, last)

    def adjustments_under(
        correction: Correction, chosen: Int[np.ndarray, " q"]
    ) -> AdjustmentBlocks:
        return corrected_adjustments(context, state, queries[chosen], correction, targets[chosen])

    familiar = Correction()
    if context.arrays.repeats:
        familiar = fit_repeat_bias(users, items, targets, valid, adjustments_under)
    pairs = corrected_adjustments(context, state, queries, familiar, targets)
    fitted = fit_temperature(users, items, targets, valid, pairs)
    popularity = fit_popularity(
        users,
        items,
        targets,
        valid,
        context.counts,
        pairs,
        inverse_temperature=fitted.inverse_temperature,
    )
    correction = replace(familiar, popularity=popularity)
    items = with_prior(items, correction.prior(context.counts))
    fitted = fit_temperature(users, items, targets, valid, pairs)
    scale = fitted.inverse_temperature
    # as lists are made: a target that the mask leaves out is none of the likely items
    likely = scaled(corrected_adjustments(context, state, last, correction, None), scale)
    targets = split.log.items[last.positions]
    shown = likely_items_reliability(scale * of_last, items, targets, valid, pairs=likely)
    return replace(fitted, correction=correction), shown
