"""`serve.py`: a checkpoint and a file of events to tables, in blocks of users."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import polars as pl
from rich.console import Console

from jaxrec.artifacts import run_directory as checkpoint
from jaxrec.artifacts.files import write_table
from jaxrec.artifacts.partitions import (
    SUCCESS,
    Partitions,
    begun_job,
    open_partitions,
    refuse_files,
    remove_drafts,
)
from jaxrec.config import to_yaml
from jaxrec.data.dataset import filtered
from jaxrec.data.files import read_table
from jaxrec.data.stream import EventStream, open_events
from jaxrec.errors import DataError, RunError
from jaxrec.inference import loading
from jaxrec.inference.audiences import audience_table, empty_audience, merge_audience
from jaxrec.inference.encoding import flat_states, initial_states
from jaxrec.inference.profiles import plot_user, profile_users
from jaxrec.inference.ranker import ListOptions, UserBatch
from jaxrec.inference.trained_model import TrainedModel
from jaxrec.models.sequence.lstm import InterestState
from jaxrec.ranking.context import Step
from jaxrec.ranking.filters import listed_ids
from jaxrec.ranking.pipeline import build_pipeline
from jaxrec.ranking.steps import Feedback, Only, Without, feedback_types
from jaxrec.ranking.strategy import read_strategy
from jaxrec.serving.live.engine import LiveEngine, check_live_run
from jaxrec.serving.options import ServeOptions, check, check_live
from jaxrec.serving.replay import replay
from jaxrec.serving.stores.base import NEVER
from jaxrec.serving.stores.opening import open_store
from jaxrec.types import EventLog

PREVIEW_USERS, PREVIEW_ITEMS, PREVIEW_ROWS = 3, 5, 6
LAYOUT = "layout.json"
TOLD_USERS = 10  # of those with too few recommendations

# names and paths of users may look like markup
console = Console(soft_wrap=True, markup=False)


def serve(options: ServeOptions) -> None:
    """Do what the options say.

    Raises:
        RunError: the run or the output directory cannot be used.
        DataError, ValueError: the events, the items or an option cannot be used.
    """
    if options.live.http:
        serve_live(options)
        return
    check(options)
    model = loading.load(options.run, options.item_shards)
    if options.items is not None:
        triples = None if options.triples is None else read_table(options.triples)
        model = model.with_items(read_table(options.items), triples)
        for note in model.notes:
            console.print(f"note: {note}")
    if options.similar:
        _show(model.similar(options.similar, options.k), options.out)
    elif options.audience:
        _show(stream_audience(model, options), options.out)
    elif options.plot:
        draw(model, options)
    elif options.replay:
        console.print(replay(model, log_to_replay(model, options), options.since).table())
    else:
        stream(model, options)


def log_to_replay(model: TrainedModel, options: ServeOptions) -> EventLog:
    """The events of a file, or those that the run was trained on and held out."""
    if options.events is not None:
        return model.encoder.event_log(read_table(options.events))
    return model.encoder.validated_log(filtered(model.config).events)


def serve_live(options: ServeOptions) -> None:
    """Serve live over HTTP, until stopped; documents of an events file enter first."""
    try:
        from jaxrec.serving.http.app import serve_http
    except ImportError as error:
        raise ValueError(
            f"--http needs more packages: pip install jaxrec[serve] ({error})"
        ) from error

    check_live(options)
    check_live_run(checkpoint.read_config(options.run))
    strategy = (Feedback(),) if options.strategy is None else read_strategy(options.strategy)
    trained = checkpoint.read_artifacts(options.run)
    items = trained.catalog.graph.types[0]
    build_pipeline(
        strategy, trained.catalog, trained.counts, items.valid
    )  # or nobody would get an answer
    if options.events is not None or options.live.load_states is not None:
        prepare_store(options, strategy)
    serve_http(options.run, options.live, strategy)


def prepare_store(options: ServeOptions, strategy: Sequence[Step]) -> None:
    """Let the documents of an events file enter, and load the states of a batch job."""
    model = loading.load(options.run)
    store = open_store(options.live.store_of(options.run))
    online = LiveEngine(model, store, window=options.live.window, strategy=strategy)
    if options.live.load_states is not None:
        loaded = online.recorder.load_states(read_states_of(model, options.live.load_states))
        console.print(f"{loaded:,} documents have the states of {options.live.load_states}")
    if options.events is not None:
        blocks = event_stream(model, options).blocks()
        entered = sum(online.recorder.import_users(block) for block in blocks)
        console.print(f"{entered:,} documents entered with their events")
    store.close()


def stream(model: TrainedModel, options: ServeOptions) -> None:
    """Recommendations or profiles of all users, a part file a block; continues a stopped job."""
    assert options.out is not None
    steps = () if options.strategy is None else read_strategy(options.strategy)
    score, removed = make_scorer(model, options, steps)
    events = event_stream(model, options)
    job = describe_job(model, options, steps)
    states = options.states
    is_ours = begun_job(options.out).get("states") == job["states"]
    if states is not None and states.exists() and not is_ours:
        refuse_files(states)
    parts = open_partitions(options.out, job)
    if states is not None:
        write_state_layout(model, states)
        remove_drafts(states)
    if parts.done:
        console.print(f"continuing after {len(parts.done):,} finished parts")
    for number, block in enumerate(events.blocks()):
        if number < len(parts.done):
            continue
        histories = model.encoder.validated_log(block, feedback_types(steps))
        log = model.encoder.known_events(histories)
        user_states = model.encoder.states(log)
        users = UserBatch(log, model.encoder.vectors(user_states), histories)
        table, facts = score(users)
        if number == 0:
            preview(model, log, table, options)
        name = f"part-{number:05}"
        tables = {options.out / f"{name}.{options.format}": table}
        if states is not None:
            tables[states / f"{name}.parquet"] = state_table(log, user_states)
        counts = {
            "name": name,
            "users": log.num_users,
            "events": len(log.items),
            "events_of_unknown_items": int(np.count_nonzero(log.items == 0)),
            "rows": len(table),
        }
        parts = parts.write(tables, {**counts, **facts})
    finish(parts, options, removed, events.notes)


Score = Callable[[UserBatch], tuple[pl.DataFrame, dict[str, Any]]]


def make_scorer(
    model: TrainedModel, options: ServeOptions, steps: Sequence[Step]
) -> tuple[Score, dict[str, int]]:
    """What makes a block's table and the facts to tell of it; and the items that rules remove."""
    if options.profile:
        return lambda users: (profile_users(model, users, options.last, options.k), {}), {}
    ready = model.ranker.pipeline(steps, options.rules)
    reranks = bool(ready.steps or options.rules.mask)
    model.ranker.check_request(options.k, options.target, reranks=reranks)
    list_options = ListOptions(options.k, options.target, options.rules.mask, options.approximate)

    def recommend(users: UserBatch) -> tuple[pl.DataFrame, dict[str, Any]]:
        made = model.ranker.recommend(users, ready, list_options)
        facts = {"removed": made.removed, "users_with_fewer": len(made.short)}
        if made.short:
            facts["fewer"] = dict(list(made.short.items())[:TOLD_USERS])
        return made.table, facts

    return recommend, ready.removed


def stream_audience(model: TrainedModel, options: ServeOptions) -> pl.DataFrame:
    """The audience of an entity among all users of the events, in the memory of one block."""
    model.index.find(options.audience)
    events = event_stream(model, options)
    for note in events.notes:
        console.print(f"note: {note}")
    audience = empty_audience()
    for block in events.blocks():
        log = model.encoder.validated_log(block)
        vectors = model.encoder.vectors(model.encoder.states(log))
        log_p = model.choice_log_probability(log, vectors, options.audience, options.rules.mask)
        audience = merge_audience(audience, log.user_ids, log_p, options.k)
    return audience_table(audience, options.bid)


def draw(model: TrainedModel, options: ServeOptions) -> None:
    """The plot of one user's interest."""
    assert options.out is not None
    events = pl.concat(event_stream(model, replace(options, users=(options.plot,))).blocks())
    plot_user(model, model.encoder.validated_log(events), options.out, last=options.last)
    console.print(f"drawn in {options.out}")


def event_stream(model: TrainedModel, options: ServeOptions) -> EventStream:
    """The events as blocks of whole users."""
    assert options.events is not None
    keep = None
    if options.users is not None:
        keep = listed_ids(options.users, "user_id")
    stream = open_events(
        options.events,
        options.block,
        time=model.config.data.time,
        event_types=model.artifacts.event_type_names,
        keep=keep,
    )
    if not stream.num_rows:
        raise DataError(f"{options.events} holds no event of the listed users")
    return stream


def describe_job(
    model: TrainedModel, options: ServeOptions, steps: Sequence[Step]
) -> dict[str, Any]:
    """What decides the bytes of the output: checkpoint, options, and the files as they are."""
    assert options.events is not None
    irrelevant = ("run", "out", "states", "item_shards", "live")
    chosen = {k: v for k, v in asdict(options).items() if k not in irrelevant}
    paths = [options.events, options.items, options.triples, options.users, options.strategy]
    paths += [options.rules.only, options.rules.without]
    listed = [step.items for step in steps if isinstance(step, Only | Without)]
    paths += [Path(source) for source in listed if isinstance(source, str | Path)]
    files = [path for path in paths if isinstance(path, Path) and path.exists()]
    return {
        "checkpoint": {
            "step": model.step,
            "vectors": model.version,
        },
        "config": hashlib.sha256(to_yaml(model.config).encode()).hexdigest(),
        "options": json.loads(json.dumps(chosen, default=str)),
        "states": None if options.states is None else str(options.states.resolve()),
        "inverse_temperature": model.inverse_temperature,
        "files": {str(p): [p.stat().st_size, p.stat().st_mtime_ns] for p in files},
    }


def state_table(log: EventLog, states: tuple[InterestState, ...]) -> pl.DataFrame:
    """A row a user: `user_id`, `events`, `last_time` (s; `NEVER` without events), and `state`, flat
    as in layout.json."""
    flat = flat_states(states).astype(np.float32)
    last_times = np.full(log.num_users, NEVER)
    last_times[log.lengths > 0] = log.times[log.offsets[1:][log.lengths > 0] - 1]
    return pl.DataFrame(
        {
            "user_id": log.user_ids,
            "events": log.lengths,
            "last_time": last_times,
            "state": pl.Series(flat, dtype=pl.Array(pl.Float32, flat.shape[1])),
        }
    )


def write_state_layout(model: TrainedModel, directory: Path) -> None:
    """Say in `layout.json` how `state` unfolds: its parts in order, with their shapes."""
    directory.mkdir(parents=True, exist_ok=True)
    newcomer = initial_states(model.model, 1)
    paths, _ = jax.tree_util.tree_flatten_with_path(newcomer)
    layout = {
        "step": model.step,
        "model": model.version,
        "parts": [
            {"name": jax.tree_util.keystr(path), "shape": leaf.shape[1:]} for path, leaf in paths
        ],
    }
    (directory / LAYOUT).write_text(json.dumps(layout, indent=2))


def read_states_of(model: TrainedModel, directory: Path) -> pl.DataFrame:
    """The states that a job has written with --states.

    Raises:
        RunError: the job has not finished, or another model wrote them.
    """
    if not (directory / SUCCESS).exists():
        raise RunError(f"{directory} holds no states of a finished job (--states)")
    if json.loads((directory / LAYOUT).read_text())["model"] != model.version:
        raise RunError(f"the states in {directory} are those of another checkpoint")
    return pl.read_parquet(directory / "*.parquet")


def preview(model: TrainedModel, log: EventLog, table: pl.DataFrame, options: ServeOptions) -> None:
    """Print a few users with what they chose last and what is recommended to them."""
    title, named = pl.lit(None, pl.String), table.columns[2]
    if "title" in table.columns:
        title = pl.col("title")
    label = pl.coalesce(title, "id" if options.profile else named)
    if options.profile:
        label = pl.format("{} {} %", label, (100 * pl.col("weight")).round(1))
    for user in range(min(PREVIEW_USERS, log.num_users)):
        recent = log.items[log.offsets[user] : log.offsets[user + 1]][-PREVIEW_ITEMS:]
        history = model.index.labels(recent)
        rows = table.filter(pl.col("user_id") == log.user_ids[user]).head(PREVIEW_ROWS)
        console.print(f"user {log.user_ids[user]}: after {_listed(history)}")
        console.print(f"    -> {_listed(rows.select(label).to_series())}")


def finish(
    parts: Partitions, options: ServeOptions, removed: dict[str, int], notes: tuple[str, ...]
) -> None:
    """Write the totals and the markers, and say what came out."""
    totals: Counter[str] = Counter()
    lists: Counter[str] = Counter()
    fewer: dict[str, int] = {}
    for part in parts.done:
        totals.update({k: v for k, v in part.items() if isinstance(v, int)})
        lists.update(part.get("removed", {}))
        fewer |= part.get("fewer", {})
    summary = {**totals, "items_removed": removed, "entries_removed": dict(lists), "notes": notes}
    if options.states is not None:  # first, as nobody comes back to it once the lists are done
        (options.states / SUCCESS).touch()
    parts.finish(summary)
    for note in notes:
        console.print(f"note: {note}")
    if totals["events_of_unknown_items"]:
        console.print(
            f"note: {totals['events_of_unknown_items']:,} of {totals['events']:,} events are of "
            "items that the catalogue lacks; they are read as an unknown item. --items adds them"
        )
    for what, counts in (("items kept out", removed), ("entries passed over", dict(lists))):
        if counts:
            told = ", ".join(f"{name} {count:,}" for name, count in counts.items())
            console.print(f"{what} by rule: {told}")
    if totals["users_with_fewer"]:
        told = ", ".join(f"{user} ({count})" for user, count in list(fewer.items())[:TOLD_USERS])
        console.print(
            f"{totals['users_with_fewer']:,} users have fewer than {options.k} items left: {told}"
            + (" ..." if totals["users_with_fewer"] > TOLD_USERS else "")
        )
    console.print(
        f"{totals['users']:,} users, {totals['rows']:,} rows in {len(parts.done):,} part files "
        f"in {options.out}"
    )


def _show(table: pl.DataFrame, out: Path | None) -> None:
    """Print the head of a table, and write all of it if there is a file to write."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_table(table, out)
    with pl.Config(tbl_rows=20, tbl_hide_dataframe_shape=True, fmt_str_lengths=60):
        console.print(str(table.head(20)))
    if out is not None:
        console.print(f"{len(table):,} rows in {out}")


def _listed(names: pl.Series) -> str:
    return "; ".join(map(str, names)) or "nothing is left"
