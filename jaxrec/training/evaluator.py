"""Validation, calibration and test of a trained state."""

from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import polars as pl
from flax import nnx
from jaxtyping import Bool, Float, Int

from jaxrec.config import Config
from jaxrec.data.dataset import Dataset
from jaxrec.data.splits import Split
from jaxrec.errors import Diverged
from jaxrec.evaluation.baselines import Scorer
from jaxrec.evaluation.blend import fit_blend
from jaxrec.evaluation.calibration import (
    MAX_QUERIES,
    MAX_SCORES,
    Calibration,
    Correction,
    fit_neighbours,
    fit_popularity,
    fit_repeat_bias,
    fit_temperature,
    usable_queries,
)
from jaxrec.evaluation.groups import column_groups, group_rows, popularity_groups
from jaxrec.evaluation.link_prediction import both_ways, link_metrics, link_ranks
from jaxrec.evaluation.metrics import ndcg_interval, segments, summarise
from jaxrec.evaluation.neighbours import NeighbourFit
from jaxrec.evaluation.protocol import QueryScorer, segment_masks, summary
from jaxrec.evaluation.reliability import Reliability, likely_items_reliability
from jaxrec.evaluation.tuned_baselines import fit_baselines
from jaxrec.inference.encoding import encode_queries, link_queries, repeat_bias
from jaxrec.models.graph.link_sampling import held_out_edges
from jaxrec.models.recommender import Model
from jaxrec.partitioning import cut_rows, on_mesh
from jaxrec.processes import any_of, gathered, is_first, share
from jaxrec.ranking.adjustments import AdjustmentBlocks, masked_event_types
from jaxrec.ranking.history_bias import HistoryBias, history_adjustments
from jaxrec.ranking.item_table import ItemTable
from jaxrec.ranking.top_k import EvalQueries, Ranking, rank_queries
from jaxrec.training.context import TrainContext
from jaxrec.training.masked_validation import masked_item_loss
from jaxrec.training.state import catalog_vectors, vectors_without_links
from jaxrec.training.step import TrainState
from jaxrec.training.stopping import Runner, uninterrupted
from jaxrec.types import Queries


def validate(
    context: TrainContext, state: TrainState, interruptible: Runner = uninterrupted
) -> dict[str, float]:
    """Metrics on the validation queries, before any correction; zeros if there are none.

    A run that learns to predict links has those of the held-out edges too, and one that learns to
    predict masked items their loss.

    Args:
        interruptible: see `Evaluator`.
    """
    evaluator = Evaluator(context, state, interruptible)
    metrics = _validation_metrics(evaluator, Correction())

    def others() -> dict[str, float]:
        masked_items = masked_item_loss(context, evaluator.model, evaluator.items.vectors)
        return validate_links(evaluator) | masked_items

    return metrics | interruptible(others)


def validate_links(evaluator: "Evaluator") -> dict[str, float]:
    """Filtered metrics of the held-out edges, which no node vector knows of here.

    Empty if the run does not predict links, or has too few edges to hold some out.
    """
    context, graph = evaluator.context, evaluator.context.dataset.catalog.graph
    encoded = vectors_without_links(context, evaluator.state)
    if encoded is None:
        return {}
    vectors = np.asarray(encoded)
    edges = both_ways(graph, held_out_edges(graph, context.config.train.seed))
    queries = link_queries(evaluator.model, vectors[edges.senders], edges.relations)
    return link_metrics(link_ranks(np.asarray(queries), vectors, edges, graph))


def _validation_metrics(evaluator: "Evaluator", correction: Correction) -> dict[str, float]:
    queries = evaluator.context.dataset.split.validation
    return evaluator.metrics(queries, correction)[0] if len(queries) else summarise(np.zeros(0))


def test(
    context: TrainContext, state: TrainState, correction: Correction
) -> tuple[dict[str, Any], pl.DataFrame]:
    """The contents of `metrics.json` and `ranks.parquet` for the selected state.

    Sets without queries, as a warm start may have, are left out. Processes but the first only help
    to rank, and get nothing of what needs all events.
    """
    split = context.dataset.split
    evaluator = Evaluator(context, state)
    names = test_sets(split)
    results: dict[str, Any] = {
        "protocol": {
            **protocol_facts(context.config),
            "candidates": int(context.valid.sum()),
            "queries": {name: len(queries) for name, queries in names.items()},
        },
        "validation": _validation_metrics(evaluator, correction),
    }
    systems: dict[str, QueryScorer] = {}
    if names and is_first():
        results["baselines"], systems = fit_systems(evaluator, correction)
    ranks = []
    groups: dict[str, Any] = {}
    results["groups"] = groups
    for name, queries in names.items():
        scores, ranking = evaluator.metrics(queries, correction)
        if not is_first():
            continue
        ranks.append(rank_table(name, context.dataset, queries, ranking))
        masks = segment_masks(split.log, queries, context.dataset.positives, context.counts)
        others = {
            system: context.protocol.evaluate(scorer(queries), queries, masks)
            for system, scorer in systems.items()
        }
        own = {**scores, **ndcg_interval(ranking.ranks, 10)}
        results[name] = {"model": own, **others, "segments": segments(ranking.ranks, masks)}
        groups[name] = context_groups(context, queries, ranking, masks)
    return results, pl.concat(ranks) if ranks else pl.DataFrame()


def test_sets(split: Split) -> dict[str, Queries]:
    """The test queries under their names in `metrics.json`, without empty sets."""
    sets = {"test" if name == "last" else f"test_{name}": q for name, q in split.test.items()}
    return {name: queries for name, queries in sets.items() if len(queries)}


def test_metrics(
    context: TrainContext, state: TrainState, correction: Correction
) -> dict[str, dict[str, float]]:
    """The metrics of the model alone on every set of test queries."""
    evaluator = Evaluator(context, state)
    sets = test_sets(context.dataset.split)
    return {name: evaluator.metrics(queries, correction)[0] for name, queries in sets.items()}


def protocol_facts(config: Config) -> dict[str, Any]:
    """What `metrics.json` says of how events are held out and ranked."""
    return {
        "split": config.split.scheme,
        "mask": list(config.evaluation.mask),
        "history": config.evaluation.history or "all",
    }


def context_groups(
    context: TrainContext,
    queries: Queries,
    ranking: Ranking,
    masks: dict[str, Bool[np.ndarray, " Q"]],
) -> dict[str, dict[str, float]]:
    """Quality and exposure by segment, popularity and the columns of `report.group_by`."""
    counts, valid = context.counts, context.valid
    groups = popularity_groups(counts, valid)
    for column in context.config.report.group_by:
        groups |= column_groups(context.dataset.catalog.items, column, counts, valid)
    targets = context.dataset.split.log.items[queries.positions]
    return group_rows(ranking, targets, masks, groups, valid)


def fit_systems(
    evaluator: "Evaluator", correction: Correction
) -> tuple[dict[str, Any], dict[str, QueryScorer]]:
    """All baselines, and the blend of the model with the one that is best on validation.

    Returns what `metrics.json` says of each beside the test figures, and their scores.
    """
    protocol = evaluator.context.protocol
    baselines = fit_baselines(protocol)
    report: dict[str, Any] = baselines.report()
    scorers = {name: protocol.scorer(fitted) for name, fitted in baselines.fitted.items()}
    if baselines.best:
        model = partial(evaluator.scorer, correction)
        scorers["blend"], fitted = fit_blend(protocol, model, scorers[baselines.best])
        report["blend"] = {"baseline": baselines.best, **fitted}
    return report, scorers


def rank_table(name: str, dataset: Dataset, queries: Queries, ranking: Ranking) -> pl.DataFrame:
    """One row per query: the user, the item, and its rank (from 0) among all items."""
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
    """Fit the corrections on validation, and measure the reliability of test probabilities."""
    evaluator, split = Evaluator(context, state), context.dataset.split
    items = evaluator.items
    all_targets = split.log.items[split.validation.positions]
    limit = max(MAX_SCORES // len(items.valid), MAX_QUERIES)
    selected = usable_queries(all_targets, items.valid, limit)
    queries, targets = split.validation[selected], all_targets[selected]
    vectors, every = evaluator.vectors(queries), np.arange(len(queries))

    def adjustments(correction: Correction, rows: Int[np.ndarray, " q"]) -> AdjustmentBlocks:
        return evaluator.adjustments(queries[rows], correction, targets[rows])

    correction = Correction()
    if context.arrays.repeats:
        correction = fit_repeat_bias(EvalQueries(vectors, targets), items, adjustments)
    base = correction

    def with_neighbours(fits: dict[str, NeighbourFit]) -> AdjustmentBlocks:
        return adjustments(base.with_neighbours(fits), every)

    raw, exponents = EvalQueries(vectors, targets), context.neighbour_exponents
    correction = base.with_neighbours(fit_neighbours(raw, items, with_neighbours, exponents))
    eval_queries = EvalQueries(vectors, targets, adjustments(correction, every))
    fitted = fit_temperature(eval_queries, items)
    popularity = fit_popularity(
        eval_queries, items, context.counts, inverse_temperature=fitted.inverse_temperature
    )
    correction = replace(correction, popularity=popularity)
    items = items.add_bias(correction.popularity_bias(context.counts))
    fitted = fit_temperature(eval_queries, items)
    reliability = evaluator.reliability(items, correction, fitted.inverse_temperature)
    return replace(fitted, correction=correction), reliability


@dataclass(frozen=True)
class Evaluator:
    """Ranks held-out events with a trained state; the catalogue is encoded once.

    Attributes:
        interruptible: runs the parts of the work between the exchanges of the processes.
    """

    context: TrainContext
    state: TrainState
    interruptible: Runner = uninterrupted

    @cached_property
    def model(self) -> Model:
        """The model with the parameters of the state."""
        return Model(self.context.definition, nnx.to_pure_dict(self.state.params))

    @cached_property
    def items(self) -> ItemTable:
        """The items, without a popularity bias."""
        valid = self.context.valid
        vectors = catalog_vectors(self.context, self.state)
        if len(vectors) > len(valid):
            with on_mesh(self.context.mesh):
                vectors = cut_rows(vectors, 0, len(valid))
        return ItemTable(vectors, valid)

    def vectors(self, queries: Queries) -> Float[np.ndarray, "Q F"]:
        """User vectors at the moments of queries."""
        evaluation = self.context.config.evaluation
        return encode_queries(
            self.model,
            jnp.asarray(self.items.vectors),
            self.context.dataset.split.log,
            queries,
            history=evaluation.history,
            users=evaluation.users,
            target_event_type=self.context.dataset.target_event_type,
        )

    def adjustments(
        self, queries: Queries, correction: Correction, targets: Int[np.ndarray, " Q"] | None
    ) -> AdjustmentBlocks:
        """Score adjustments by the queries' histories; `targets` are never masked."""
        log, mask = self.context.dataset.split.log, self.context.config.evaluation.mask
        return history_adjustments(log, queries, mask, self.history_bias(correction), targets)

    def scorer(self, correction: Correction, queries: Queries) -> Scorer:
        """The scores of all items on the host, under a correction and without a mask."""
        items = self.items.add_bias(correction.popularity_bias(self.context.counts))
        table, vectors = np.asarray(items.vectors).T, self.vectors(queries)
        log = self.context.dataset.split.log
        added = self.history_bias(correction).adjustments(log, queries)

        def scores(start: int, stop: int) -> Float[np.ndarray, "Q I"]:
            block = vectors[start:stop] @ table + items.biases
            rows, columns, amounts = added(start, stop)
            np.add.at(block, (rows, columns), amounts)
            return block

        return scores

    def metrics(self, queries: Queries, correction: Correction) -> tuple[dict[str, float], Ranking]:
        """Metrics of queries under a correction, and the ranking behind them.

        All processes must call it: each ranks its share of the queries.

        Raises Diverged if a user vector or an item vector is not finite.
        """
        context, num_queries = self.context, len(queries)
        queries = queries[share(num_queries)]
        vectors = self.interruptible(lambda: self.vectors(queries))
        if any_of(not (np.isfinite(vectors).all() and np.isfinite(self.items.vectors).all())):
            raise Diverged(
                f"the model's vectors are not finite after step {int(self.state.step)}; earlier "
                "checkpoints are kept. Lower train.learning_rate"
            )
        targets = context.dataset.split.log.items[queries.positions]
        adjustments = self.adjustments(queries, correction, targets)
        items = self.items.add_bias(correction.popularity_bias(context.counts))
        eval_queries = EvalQueries(vectors, targets, adjustments)
        k = context.config.evaluation.k
        own = self.interruptible(lambda: rank_queries(eval_queries, items, k, mesh=context.mesh))
        ranking = Ranking(*(gathered(ranks, num_queries) for ranks in vars(own).values()))
        return summary(ranking, items.valid, context.counts), ranking

    def reliability(
        self, items: ItemTable, correction: Correction, inverse_temperature: float
    ) -> Reliability:
        """Reliability of the probabilities of the likeliest items on the last test events."""
        split = self.context.dataset.split
        queries = split.test["last"]
        # as in recommendation lists, the mask may leave a target out
        adjustments = self.adjustments(queries, correction, None)
        targets = split.log.items[queries.positions]
        eval_queries = EvalQueries(self.vectors(queries), targets, adjustments)
        return likely_items_reliability(
            eval_queries, items, inverse_temperature=inverse_temperature
        )

    def history_bias(self, correction: Correction) -> HistoryBias:
        """What events add to scores under a correction."""
        log, mask = self.context.dataset.split.log, self.context.config.evaluation.mask
        counted = ~masked_event_types(mask, log.event_type_names)
        repeats = correction.repeat_bias(self._learned_repeat_bias, counted)
        return HistoryBias(repeats, self.context.neighbours(correction))

    @cached_property
    def _learned_repeat_bias(self) -> Float[np.ndarray, "types A"]:
        return repeat_bias(self.model, self.context.dataset.target_event_type)
