"""How a batch job scores a block of users, in whichever process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from jaxrec.artifacts.directories import Directory
from jaxrec.artifacts.partitions import PartFile, part_name
from jaxrec.data.columns import index_in
from jaxrec.data.graph import ITEM
from jaxrec.data.id_types import IdType, with_id_types
from jaxrec.errors import ConfigError, DataError
from jaxrec.inference.explain import explain_items, user_of
from jaxrec.inference.forecast import checked_options, forecast_users
from jaxrec.inference.profiles import profile_users
from jaxrec.inference.ranker import ListOptions, UserBatch
from jaxrec.inference.trained_model import TrainedModel
from jaxrec.ranking.adjustments import masked_event_types
from jaxrec.ranking.context import Step
from jaxrec.ranking.pipeline import RerankPipeline
from jaxrec.ranking.steps import feedback_types
from jaxrec.ranking.strategy import Rules, read_strategy
from jaxrec.serving.console import note, preview
from jaxrec.serving.inputs import load_model
from jaxrec.serving.options import BatchOptions, ProfileOptions, RecommendOptions
from jaxrec.serving.states import state_layout, state_table

SHORT_LISTS = 10  # users with too few recommendations who are named

JobOptions = RecommendOptions | ProfileOptions
Score = Callable[[UserBatch], tuple[pl.DataFrame, dict[str, Any]]]
"""The table of a block of users, and counts for the manifest."""


@dataclass(frozen=True)
class Scorer:
    """What a job does with a block of users.

    Attributes:
        options: those of the job, with the length of a list.
        steps: of the strategy.
        removed: rule -> items that it removes for all users.
    """

    model: TrainedModel
    options: JobOptions
    score: Score
    steps: Sequence[Step] = ()
    removed: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Outputs:
    """Where the parts of a job go, and what is the same in all of them.

    Attributes:
        lists: directory of what is asked for.
        states: directory of the users' states, if they are asked for.
        id_types: column -> the type in which ids leave.
        model: name of the model and its checkpoint.
        started: when the job began.
    """

    lists: Directory
    states: Directory | None
    id_types: dict[str, IdType]
    model: str
    started: datetime


class ScoredPart(NamedTuple):
    """A block of users, scored and not yet written."""

    files: list[PartFile]
    facts: dict[str, Any]  # for the manifest
    preview: list[str]  # lines, of the first part if they are asked for


def load_scorer(options: JobOptions, *, shared: bool = False) -> Scorer:
    """The scorer of a job. Prints notes on the rules.

    Args:
        shared: see `loading.load`.

    Raises:
        RunError: the run cannot be used.
        InputError: the items or an option cannot be used, or the rules leave no item.
    """
    model = load_model(options, shared=shared)
    if isinstance(options, ProfileOptions):
        return _profile_scorer(model, options)
    masked_event_types(options.rules.mask, model.encoder.event_type_names)  # refuses other names
    make = _list_scorer if options.forecast is None else _forecast_scorer
    return make(model, options)


def _list_scorer(model: TrainedModel, options: RecommendOptions) -> Scorer:
    steps = () if options.strategy is None else read_strategy(options.strategy)
    pipeline = model.ranker.pipeline(steps, options.rules)
    reranks = bool(pipeline.steps or options.rules.mask)
    k = model.ranker.check_request(options.k, options.target, reranks=reranks)
    options = replace(options, k=k)
    list_options = ListOptions(k, options.target, options.rules.mask, options.approximate)
    for message in pipeline.notes:
        note(message)
    if options.target == ITEM:
        _refuse_empty_lists(pipeline)

    def score(users: UserBatch) -> tuple[pl.DataFrame, dict[str, Any]]:
        lists = model.ranker.recommend(users, pipeline, list_options)
        counts: dict[str, Any] = {"removed": lists.removed, "users_with_fewer": len(lists.short)}
        if lists.short:
            counts["fewer"] = dict(list(lists.short.items())[:SHORT_LISTS])
        if options.explain:
            return lists.table.with_columns(_sentences(model, users, lists.table, pipeline)), counts
        return lists.table, counts

    return Scorer(model, options, score, steps, pipeline.removed)


def _refuse_empty_lists(pipeline: RerankPipeline) -> None:
    """Raise a DataError if the rules leave no item: empty lists would replace those in use."""
    if not np.isfinite(pipeline.bias).any():
        removed = ", ".join(f"{rule} removes {count:,}" for rule, count in pipeline.removed.items())
        total = int(pipeline.context.valid.sum())
        raise DataError(f"the rules leave none of the {total:,} items ({removed}); loosen them")


def _sentences(
    model: TrainedModel, users: UserBatch, lists: pl.DataFrame, pipeline: RerankPipeline
) -> pl.Series:
    """Why each list of a block holds its items, as a column `explanation`."""
    log, made = users.histories or users.log, list[str]()
    places = {user: number for number, user in enumerate(log.user_ids)}
    for (user,), own in lists.group_by("user_id", maintain_order=True):
        history = user_of(log, places[user])
        rows = index_in(own["item_id"], model.catalog.item_ids).to_numpy()
        reasons = explain_items(model, history, rows.astype(np.int64), pipeline, words=False)
        made += [reason.sentence for reason in reasons]
    return pl.Series("explanation", made, dtype=pl.String)


def _forecast_scorer(model: TrainedModel, options: RecommendOptions) -> Scorer:
    """A list for each of the next events."""
    rules = replace(options.rules, mask=())
    if options.strategy is not None or options.approximate or rules != Rules():
        raise ConfigError(
            "--forecast tells of interest, so neither a strategy nor a rule but --mask acts on it; "
            "leave the others out"
        )
    if options.target != ITEM and options.rules.mask:
        raise ConfigError(f"--mask acts on items only; leave it out to forecast {options.target}s")
    settings = checked_options(model, options.forecast or 1, options.target, options.k)

    def score(users: UserBatch) -> tuple[pl.DataFrame, dict[str, Any]]:
        return forecast_users(model, users, settings, options.rules.mask), {}

    return Scorer(model, replace(options, k=settings.k), score)


def _profile_scorer(model: TrainedModel, options: ProfileOptions) -> Scorer:
    def score(users: UserBatch) -> tuple[pl.DataFrame, dict[str, Any]]:
        return profile_users(model, users, options.last, options.k), {}

    return Scorer(model, options, score)


def score_part(scorer: Scorer, number: int, events: pl.DataFrame, outputs: Outputs) -> ScoredPart:
    """Score a block of users, as `EventStream.blocks` gives it.

    Args:
        number: of the block.
    """
    model, options = scorer.model, scorer.options
    histories = model.encoder.validated_log(events, feedback_types(scorer.steps))
    log = model.encoder.known_events(histories)
    states = model.encoder.states(log)
    scores, counts = scorer.score(UserBatch(log, model.encoder.vectors(states), histories))
    shown = preview(model, log, scores) if number == 0 and options.preview else []
    name = part_name(number)
    scores = _with_columns(scores, options, outputs)
    files = [PartFile(outputs.lists, f"{name}.{options.format}", scores)]
    if outputs.states is not None:
        user_states = with_id_types(state_table(log, states), outputs.id_types)
        layout = state_layout(model)
        files.append(PartFile(outputs.states, f"{name}.parquet", user_states, layout))
    sizes = {
        "name": name,
        "users": log.num_users,
        "events": len(log.items),
        "events_of_unknown_items": int(np.count_nonzero(log.items == 0)),
        "rows": len(scores),
    }
    return ScoredPart(files, {**sizes, **counts}, shown)


def _with_columns(table: pl.DataFrame, options: BatchOptions, outputs: Outputs) -> pl.DataFrame:
    """A table of results with the columns that were asked for, and ids in their types."""
    more = {
        "model": pl.lit(outputs.model),
        "time": pl.lit(outputs.started).cast(pl.Datetime("us", "UTC")),
    }
    added = [more[name].alias(name) for name in options.columns]
    return with_id_types(table, outputs.id_types).with_columns(added)
