"""Recommendations or profiles of all users of an events file, in blocks of users to part files."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from jaxrec.artifacts import checksums
from jaxrec.artifacts.directories import Directory, open_directory
from jaxrec.artifacts.files import explained_disk_full
from jaxrec.artifacts.partitions import (
    PartFile,
    Partitions,
    begun_job,
    mark_complete,
    open_partitions,
    refuse_files,
    remove_drafts,
)
from jaxrec.config import to_yaml
from jaxrec.data.columns import index_in
from jaxrec.data.graph import ITEM
from jaxrec.data.id_types import IdType, with_id_types
from jaxrec.data.pseudonyms import keyed_hash
from jaxrec.data.stream import EventStream
from jaxrec.errors import ConfigError, DataError, Interrupted
from jaxrec.inference.explain import explain_items, user_of
from jaxrec.inference.forecast import checked_options, forecast_users
from jaxrec.inference.profiles import profile_users
from jaxrec.inference.ranker import ListOptions, UserBatch
from jaxrec.inference.trained_model import TrainedModel
from jaxrec.ranking.context import Step
from jaxrec.ranking.pipeline import RerankPipeline
from jaxrec.ranking.steps import Only, Without, feedback_types
from jaxrec.ranking.strategy import Rules, read_strategy
from jaxrec.serving.console import console, note, notes, preview
from jaxrec.serving.inputs import load_model, open_user_events, user_id_type
from jaxrec.serving.options import BatchOptions, ProfileOptions, RecommendOptions
from jaxrec.serving.states import state_layout, state_table

SHORT_LISTS = 10  # users with too few recommendations who are named
# options that do not change the part files
NOT_IN_THE_JOB = ("run", "out", "states", "item_shards", "id_key", "quiet", "preview")


Score = Callable[[UserBatch], tuple[pl.DataFrame, dict[str, Any]]]
"""The table of a block of users, and counts for the manifest."""


def recommend(options: RecommendOptions) -> None:
    """Write the recommendations of all users; continues a stopped job.

    Raises:
        RunError: the run or an output directory cannot be used.
        InputError: the events, the items or an option cannot be used, or the rules leave no item.
    """
    model = load_model(options)
    if options.forecast is not None:
        return forecast(model, options)
    steps = () if options.strategy is None else read_strategy(options.strategy)
    pipeline = model.ranker.pipeline(steps, options.rules)
    reranks = bool(pipeline.steps or options.rules.mask)
    k = model.ranker.check_request(options.k, options.target, reranks=reranks)
    options = replace(options, k=k)
    list_options = ListOptions(k, options.target, options.rules.mask, options.approximate)
    for message in pipeline.notes:
        note(message)
    if options.target == ITEM:
        refuse_empty_lists(pipeline)

    def score(users: UserBatch) -> tuple[pl.DataFrame, dict[str, Any]]:
        lists = model.ranker.recommend(users, pipeline, list_options)
        counts: dict[str, Any] = {"removed": lists.removed, "users_with_fewer": len(lists.short)}
        if lists.short:
            counts["fewer"] = dict(list(lists.short.items())[:SHORT_LISTS])
        if options.explain:
            return lists.table.with_columns(sentences(model, users, lists.table, pipeline)), counts
        return lists.table, counts

    totals = write_parts(model, options, score, steps, pipeline.removed)
    report_removed(totals, k)
    report_parts(totals, options.out)


def sentences(
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


def forecast(model: TrainedModel, options: RecommendOptions) -> None:
    """Write a list for each of the next events of all users; raises as `recommend`."""
    rules = replace(options.rules, mask=())
    if options.strategy is not None or options.approximate or rules != Rules():
        raise ConfigError(
            "--forecast tells of interest, so neither a strategy nor a rule but --mask acts on it; "
            "leave the others out"
        )
    if options.target != ITEM and options.rules.mask:
        raise ConfigError(f"--mask acts on items only; leave it out to forecast {options.target}s")
    settings = checked_options(model, options.forecast or 1, options.target, options.k)
    options = replace(options, k=settings.k)

    def score(users: UserBatch) -> tuple[pl.DataFrame, dict[str, Any]]:
        return forecast_users(model, users, settings, options.rules.mask), {}

    report_parts(write_parts(model, options, score), options.out)


def refuse_empty_lists(pipeline: RerankPipeline) -> None:
    """Raise a DataError if the rules leave no item: empty lists would replace those in use."""
    if not np.isfinite(pipeline.bias).any():
        removed = ", ".join(f"{rule} removes {count:,}" for rule, count in pipeline.removed.items())
        total = int(pipeline.context.valid.sum())
        raise DataError(f"the rules leave none of the {total:,} items ({removed}); loosen them")


def profile(options: ProfileOptions) -> None:
    """Write the profiles of all users; continues a stopped job. Raises as `recommend`."""
    model = load_model(options)

    def score(users: UserBatch) -> tuple[pl.DataFrame, dict[str, Any]]:
        return profile_users(model, users, options.last, options.k), {}

    report_parts(write_parts(model, options, score), options.out)


def write_parts(
    model: TrainedModel,
    options: BatchOptions,
    score: Score,
    steps: Sequence[Step] = (),
    items_removed: dict[str, int] | None = None,
) -> dict[str, Any]:
    """Score the users block by block, one part file for each; returns the totals of the manifest.

    Args:
        steps: of the strategy.
        items_removed: rule -> items that it removes for all users.
    """
    events = open_user_events(model, options.events, options.block, options.users)
    out = open_directory(options.out)
    states = None if options.states is None else open_directory(options.states)
    with ExitStack() as stack:
        for directory in (out, states):
            if directory is not None:
                stack.enter_context(directory.locked())
        job = describe_job(model, options, steps)
        parts = open_outputs(out, states, job)
        with resumable(out):
            parts = _write_parts(model, options, score, steps, events, parts, states)
            if states is not None:  # first: a job whose lists are complete is never continued
                mark_complete(states)
            totals = sum_parts(parts, items_removed or {}, events.notes)
            parts.finish(totals)
        return {**totals, "parts": parts.done}


@contextmanager
def resumable(out: Directory) -> Iterator[None]:
    """Say how to continue a job that a signal or a full disk stops."""
    how = "give the same command again to continue"
    try:
        with explained_disk_full(out.address, lambda: how):
            yield
    except (Interrupted, KeyboardInterrupt) as stop:
        stop.add_note(how)
        raise


def _write_parts(
    model: TrainedModel,
    options: BatchOptions,
    score: Score,
    steps: Sequence[Step],
    events: EventStream,
    parts: Partitions,
    states_directory: Directory | None,
) -> Partitions:
    types = {"item_id": model.item_id_type, "user_id": user_id_type(events)}
    rows_read = 0
    for number, table in enumerate(events.blocks()):
        rows_read += len(table)
        if number < len(parts.done):
            continue
        histories = model.encoder.validated_log(table, feedback_types(steps))
        log = model.encoder.known_events(histories)
        states = model.encoder.states(log)
        scores, counts = score(UserBatch(log, model.encoder.vectors(states), histories))
        if number == 0 and options.preview:
            preview(model, log, scores)
        name = f"part-{number:05}"
        scores = as_output(scores, model, options, parts, types)
        files = [PartFile(parts.directory, f"{name}.{options.format}", scores)]
        if states_directory is not None:
            user_states = with_id_types(state_table(log, states), types)
            layout = state_layout(model)
            files.append(PartFile(states_directory, f"{name}.parquet", user_states, layout))
        sizes = {
            "name": name,
            "users": log.num_users,
            "events": len(log.items),
            "events_of_unknown_items": int(np.count_nonzero(log.items == 0)),
            "rows": len(scores),
        }
        parts = parts.write(files, {**sizes, **counts})
        users = sum(part["users"] for part in parts.done)
        notes.print(f"{name}: {users:,} users, {rows_read:,} of {events.num_rows:,} events")
    return parts


def as_output(
    table: pl.DataFrame,
    model: TrainedModel,
    options: BatchOptions,
    parts: Partitions,
    types: dict[str, IdType],
) -> pl.DataFrame:
    """A table of results with the columns that were asked for, and ids in their types."""
    more = {
        "model": pl.lit(f"{model.step}-{model.version[:12]}"),
        "time": pl.lit(parts.started).cast(pl.Datetime("us", "UTC")),
    }
    added = [more[name].alias(name) for name in options.columns]
    return with_id_types(table, types).with_columns(added)


def open_outputs(out: Directory, states: Directory | None, job: dict[str, Any]) -> Partitions:
    """The output directories, new or of the same job when it was stopped.

    Raises:
        RunError: a directory holds something else.
    """
    same_states = begun_job(out).get("states") == job["states"]
    if states is not None and not same_states:
        refuse_files(states)
    parts = open_partitions(out, job)
    if states is not None:
        remove_drafts(states)
    if parts.done:
        note(f"continuing after {len(parts.done):,} finished parts")
    return parts


def describe_job(
    model: TrainedModel, options: BatchOptions, steps: Sequence[Step] = ()
) -> dict[str, Any]:
    """What decides the bytes of the output: checkpoint, options, and the input files."""
    given = {name: value for name, value in asdict(options).items() if name not in NOT_IN_THE_JOB}
    users = options.users
    if model.id_key and users is not None and not (isinstance(users, Path) and users.exists()):
        named = users if isinstance(users, tuple) else (str(users),)  # one id looks like a path
        given["users"] = [keyed_hash(model.id_key, user_id) for user_id in named]
    values = [*given.values(), *given.get("rules", {}).values()]
    listed = [step.items for step in steps if isinstance(step, Only | Without)]
    values += [Path(source) for source in listed if isinstance(source, str | Path)]
    # the list decides which users are in which part
    values += [Path(name) for name in (model.config.data.forgotten,) if name]
    files = [value for value in values if isinstance(value, Path) and value.exists()]
    forecasts = given.get("forecast") and model.decoder is not None
    return {
        "checkpoint": {"step": model.step, "vectors": model.version},
        "decoder": checksums.of_tree(model.decoder) if forecasts else None,
        "config": hashlib.sha256(to_yaml(model.config).encode()).hexdigest(),
        "options": json.loads(json.dumps(given, default=str)),
        "states": None if options.states is None else open_directory(options.states).address,
        "inverse_temperature": model.inverse_temperature,
        "files": {str(file): checksums.of_files(_files_in(file)) for file in files},
    }


def sum_parts(
    parts: Partitions, items_removed: dict[str, int], notes: tuple[str, ...]
) -> dict[str, Any]:
    """The totals of all parts, for the manifest."""
    totals: Counter[str] = Counter()
    entries_removed: Counter[str] = Counter()
    for part in parts.done:
        totals.update({name: value for name, value in part.items() if isinstance(value, int)})
        entries_removed.update(part.get("removed", {}))
    return {
        **totals,
        "items_removed": items_removed,
        "entries_removed": dict(entries_removed),
        "notes": notes,
    }


def report_removed(totals: dict[str, Any], k: int) -> None:
    """Print what the rules removed, and the users with fewer than k recommendations."""
    for what in ("items_removed", "entries_removed"):
        if totals[what]:
            counts = ", ".join(f"{rule} {count:,}" for rule, count in totals[what].items())
            console.print(f"{what.replace('_', ' ')} by rule: {counts}")
    if totals["users_with_fewer"]:
        short = f"{totals['users_with_fewer']:,} users have fewer than {k} items left"
        note(f"{short}; the manifest names some of them")


def report_parts(totals: dict[str, Any], out: str) -> None:
    """Print the size of the output of a finished job."""
    console.print(
        f"{totals['users']:,} users, {totals['rows']:,} rows in {len(totals['parts']):,} part "
        f"files in {out}"
    )


def _files_in(path: Path) -> list[Path]:
    """A file, or all files in a directory."""
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
