"""Two models on the same held-out events: the gate before a new run is served."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Float

from jaxrec.artifacts import run_directory
from jaxrec.data.columns import index_in
from jaxrec.data.events import position_in_history, user_of_event
from jaxrec.errors import InputError
from jaxrec.evaluation import metrics
from jaxrec.inference.loading import load_directory
from jaxrec.inference.trained_model import TrainedModel
from jaxrec.ranking.history_bias import history_adjustments
from jaxrec.ranking.top_k import EvalQueries, rank_queries
from jaxrec.types import EventLog, Queries

SAMPLES = 1000  # of the bootstrap


@dataclass(frozen=True)
class Comparison:
    """Ranks (from 0) of the same targets by a new and by the last model; inf: not ranked at all."""

    new: Float[np.ndarray, " Q"]
    last: Float[np.ndarray, " Q"]

    @property
    def ndcg(self) -> tuple[float, float]:
        """NDCG@10 of the new and of the last model."""
        return float(metrics.ndcg(self.new, 10).mean()), float(metrics.ndcg(self.last, 10).mean())

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the gain in NDCG@10, by a paired bootstrap."""
        new, last = metrics.ndcg(self.new, 10), metrics.ndcg(self.last, 10)
        return metrics.bootstrap_interval(new, last, samples=SAMPLES, seed=0)


def seconds_seen(runs: Sequence[Path]) -> int:
    """The time after which no event selected one of the models of runs, or trained it.

    Raises:
        RunError: a run cannot be read.
        InputError: a run does not know.
    """
    return max(_seen_until(run) for run in runs)


def load_unseen(run: Path, since: int) -> TrainedModel:
    """The model that a run serves, or if its refit has seen events after `since`, the selected one.

    Raises:
        RunError: the run cannot be read.
        InputError: the selected model has seen such events too.
    """
    for directory in dict.fromkeys((run_directory.served(run), run)):
        if (seen := _seen_until(directory)) <= since:
            return load_directory(directory)
    raise InputError(
        f"{run} has learned from events up to {seen} (seconds since 1970), so events after {since} "
        "do not test it; give a later --since, or leave it out"
    )


def compare_models(
    new: TrainedModel, last: TrainedModel, events: pl.DataFrame, since: int
) -> Comparison:
    """Rank the items of events after `since`, each before its user's state takes it in.

    Both models read the same histories, under the mask and the predicted event types of the new
    one. An item that is not in the catalogue of a model counts as not found.

    Args:
        events: validated events of whole histories.

    Raises:
        InputError: no event is left to rank.
    """
    known = set(new.encoder.event_type_names) & set(last.encoder.event_type_names)
    # of both, because an event of an item that one model lacks is an event for the other
    ids = pl.concat([new.catalog.item_ids, last.catalog.item_ids]).unique(maintain_order=True)
    reader = replace(new.encoder, item_ids=ids)
    log = reader.validated_log(events.filter(pl.col("event").is_in(list(known))))
    queries = queries_after(new, log, since)
    mask = new.config.evaluation.mask
    own, other = (
        held_out_ranks(model, _renumbered(log, ids, model), queries, mask) for model in (new, last)
    )
    return Comparison(own, other)


def queries_after(model: TrainedModel, log: EventLog, since: int) -> Queries:
    """The events after a time (s) that evaluation predicts, of users with a history.

    Raises:
        InputError: there is none.
    """
    names = enumerate(log.event_type_names)
    predicted = [n for n, name in names if model.encoder.is_predicted(name)]
    chosen = (log.times > since) & np.isin(log.event_types, predicted)
    positions = np.flatnonzero(chosen & (position_in_history(log) > 0))
    if not len(positions):
        raise InputError(
            f"no event after {since} (seconds since 1970) can be ranked; give newer data"
        )
    return Queries(user_of_event(log)[positions], positions).subsampled(
        model.config.evaluation.queries
    )


def held_out_ranks(
    model: TrainedModel, log: EventLog, queries: Queries, mask: tuple[str, ...]
) -> Float[np.ndarray, " Q"]:
    """The rank of every query's item; infinite where the model does not know the item."""
    targets = log.items[queries.positions]
    bias = model.ranker.history_bias[model.encoder.target_event_type]
    adjustments = history_adjustments(log, queries, mask, bias, targets)
    vectors = model.encoder.vectors_at(log, queries)
    eval_queries = EvalQueries(vectors, targets, adjustments)
    ranks = rank_queries(eval_queries, model.index.items, k=1, mesh=model.mesh).ranks
    return np.where(targets > 0, ranks, np.inf)


def _renumbered(log: EventLog, item_ids: pl.Series, model: TrainedModel) -> EventLog:
    """A log of these items in the item and event type numbers of a model."""
    items = index_in(item_ids, model.catalog.item_ids).fill_null(0).to_numpy()
    names = model.encoder.event_type_names
    types = np.array([names.index(n) if n in names else 0 for n in log.event_type_names], np.int8)
    return replace(
        log, items=items[log.items], event_types=types[log.event_types], event_type_names=names
    )


def _seen_until(run: Path) -> int:
    seen = run_directory.read_artifacts(run).seen_until
    if seen is None:
        raise InputError(
            f"{run} does not say which events it has seen: an older version wrote it, its training "
            "was private, or its times are only positions; train another one"
        )
    return seen
