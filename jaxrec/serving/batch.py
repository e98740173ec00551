"""Recommendations or profiles of all users of an events file, in blocks of users to part files."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxrec.artifacts import checksums
from jaxrec.artifacts.directories import Directory, open_directory
from jaxrec.artifacts.files import explained_disk_full
from jaxrec.artifacts.partitions import (
    Partitions,
    begun_job,
    mark_complete,
    open_partitions,
    refuse_files,
    remove_drafts,
)
from jaxrec.config import to_yaml
from jaxrec.data.pseudonyms import keyed_hash
from jaxrec.data.stream import EventStream
from jaxrec.errors import Interrupted
from jaxrec.ranking.steps import Only, Without
from jaxrec.serving import ray_engine
from jaxrec.serving.console import console, note, notes
from jaxrec.serving.inputs import open_user_events
from jaxrec.serving.scoring import (
    JobOptions,
    Outputs,
    ScoredPart,
    Scorer,
    load_scorer,
    score_part,
)

# options that do not change the part files
NOT_IN_THE_JOB = (
    *("run", "out", "states", "item_shards", "id_key", "quiet", "preview"),
    *("engine", "workers"),
)


def run(options: JobOptions) -> None:
    """Score the users block by block, one part file for each; continues a stopped job.

    Raises:
        RunError: the run or an output directory cannot be used.
        InputError: the events, the items or an option cannot be used, or the rules leave no item.
    """
    with ExitStack() as stack:
        if options.engine == "ray":
            stack.enter_context(ray_engine.cluster())
        scorer = load_scorer(options)
        events = open_user_events(scorer.model, options.events, options.block, options.users)
        out = open_directory(options.out)
        states = None if options.states is None else open_directory(options.states)
        for directory in (out, states):
            if directory is not None:
                stack.enter_context(directory.locked())
        parts = open_outputs(out, states, describe_job(scorer))
        outputs = outputs_of(scorer, events, parts, states)
        with resumable(out):
            write = write_parts_on_ray if options.engine == "ray" else write_parts
            parts = write(scorer, events, parts, outputs)
            if states is not None:  # first: a job whose lists are complete is never continued
                mark_complete(states)
            totals = sum_parts(parts, scorer.removed, events.notes)
            parts.finish(totals)
    report({**totals, "parts": parts.done}, scorer.options)


def outputs_of(
    scorer: Scorer, events: EventStream, parts: Partitions, states: Directory | None
) -> Outputs:
    """Where the parts of a job go."""
    model = scorer.model
    types = {"item_id": model.item_id_type, "user_id": events.user_id_type()}
    name = f"{model.step}-{model.version[:12]}"
    return Outputs(parts.directory, states, types, name, parts.started)


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


def write_parts(
    scorer: Scorer, events: EventStream, parts: Partitions, outputs: Outputs
) -> Partitions:
    """Score and write the blocks that are missing, one after another."""
    finished, rows_read = parts.numbers, 0
    for number, table in enumerate(events.blocks()):
        rows_read += len(table)
        if number in finished:
            continue
        part = score_part(scorer, number, table, outputs)
        parts = parts.write(part.files, part.facts)
        print_part(part, parts, f"{rows_read:,} of {events.num_rows:,} events")
    return parts


def write_parts_on_ray(
    scorer: Scorer, events: EventStream, parts: Partitions, outputs: Outputs
) -> Partitions:
    """The same by workers of Ray, in any order."""
    scored = ray_engine.write_parts(scorer.options, events, parts.numbers, outputs)
    with closing(scored):  # also if the process is interrupted meanwhile
        for part in scored:
            parts = parts.record(part.facts)
            print_part(part, parts, f"{len(parts.done):,} of {part.total:,} parts")
    for directory in (outputs.lists, outputs.states):
        if directory is not None:
            remove_drafts(directory)  # of workers that were killed
    return parts


def print_part(part: ScoredPart | ray_engine.FinishedPart, parts: Partitions, done: str) -> None:
    """Print the preview of a part and how far the job is."""
    for line in part.preview:
        console.print(line)
    users = sum(facts["users"] for facts in parts.done)
    notes.print(f"{part.facts['name']}: {users:,} users, {done}")


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


def describe_job(scorer: Scorer) -> dict[str, Any]:
    """What decides the bytes of the output: checkpoint, options, and the input files."""
    model, options = scorer.model, scorer.options
    given = {name: value for name, value in asdict(options).items() if name not in NOT_IN_THE_JOB}
    users = options.users
    if model.id_key and users is not None and not (isinstance(users, Path) and users.exists()):
        named = users if isinstance(users, tuple) else (str(users),)  # one id looks like a path
        given["users"] = [keyed_hash(model.id_key, user_id) for user_id in named]
    values = [*given.values(), *given.get("rules", {}).values()]
    listed = [step.items for step in scorer.steps if isinstance(step, Only | Without)]
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


def report(totals: dict[str, Any], options: JobOptions) -> None:
    """Print what rules removed, the users with short lists, and the size of the output."""
    for what in ("items_removed", "entries_removed"):
        if totals[what]:
            counts = ", ".join(f"{rule} {count:,}" for rule, count in totals[what].items())
            console.print(f"{what.replace('_', ' ')} by rule: {counts}")
    if totals.get("users_with_fewer"):
        short = f"{totals['users_with_fewer']:,} users have fewer than {options.k} items left"
        note(f"{short}; the manifest names some of them")
    console.print(
        f"{totals['users']:,} users, {totals['rows']:,} rows in {len(totals['parts']):,} part "
        f"files in {options.out}"
    )


def _files_in(path: Path) -> list[Path]:
    """A file, or all files in a directory."""
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
