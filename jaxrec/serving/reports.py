"""Single results: an audience, similar nodes, a plot, an explanation, a replay, an export."""

import json
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import polars as pl

from jaxrec.artifacts.run_directory import COOCCURRENCE
from jaxrec.data.dataset import filtered
from jaxrec.data.graph import ITEM
from jaxrec.data.id_types import with_id_types
from jaxrec.errors import InputError
from jaxrec.inference.audiences import EMPTY_AUDIENCE, audience_table, likeliest
from jaxrec.inference.contributions import plot_contributions_of
from jaxrec.inference.edge.directory import write_directory
from jaxrec.inference.explain import explain_items
from jaxrec.inference.explanation import Explanation
from jaxrec.inference.profiles import plot_user
from jaxrec.inference.ranker import ListOptions
from jaxrec.inference.trained_model import TrainedModel
from jaxrec.ranking.steps import feedback_types
from jaxrec.ranking.strategy import read_strategy
from jaxrec.runtime import atomic_path
from jaxrec.serving import replay as replaying
from jaxrec.serving.console import console, note, show_table
from jaxrec.serving.inputs import load_model, open_user_events
from jaxrec.serving.options import (
    AudienceOptions,
    ExplainOptions,
    ExportOptions,
    PlotOptions,
    ReplayOptions,
    SimilarOptions,
)
from jaxrec.types import EventLog

SHOWN_ITEMS, SHOWN_LINES = 3, 8


def audience(options: AudienceOptions) -> None:
    """Find the audience of an entity among all users of the events, in the memory of one block.

    Raises:
        InputError: the run, the events or an option cannot be used.
    """
    model = load_model(options)
    model.index.find(options.entity)
    events = open_user_events(model, options.events, options.block, options.users)
    users = EMPTY_AUDIENCE
    for block in events.blocks():
        log = model.encoder.validated_log(block)
        vectors = model.encoder.vectors(model.encoder.states(log))
        log_p = model.choice_log_probability(log, vectors, options.entity, options.mask)
        users = likeliest(users, log.user_ids, log_p, options.k)
    table = with_id_types(audience_table(users, options.bid), {"user_id": events.user_id_type()})
    show_table(table, options.out)


def similar(options: SimilarOptions) -> None:
    """Show the nodes most similar to one; raises as `TrainedModel.similar`."""
    show_table(load_model(options).similar(options.entity, options.k), options.out)


def plot(options: PlotOptions) -> None:
    """Draw how a user's interest changed, or what the parts of the model add to the user's list.

    Raises:
        RunError, DataError: the run or the events cannot be used.
    """
    model = load_model(options)
    events = pl.concat(open_user_events(model, options.events, users=(options.user,)).blocks())
    options.out.parent.mkdir(parents=True, exist_ok=True)
    log = model.encoder.validated_log(events)
    if options.contributions:
        plot_contributions_of(model, log, options.out, model.ranker.check_request(None, ITEM))
    else:
        plot_user(model, log, options.out, last=options.last)
    console.print(f"drawn in {options.out}")


def explain(options: ExplainOptions) -> None:
    """Say why a user gets items; raises as `TrainedModel.explain`."""
    model = load_model(options)
    stream = open_user_events(model, options.events, users=(options.user,))
    steps = () if options.strategy is None else read_strategy(options.strategy)
    pipeline = model.ranker.pipeline(steps)
    histories = model.encoder.validated_log(pl.concat(stream.blocks()), feedback_types(steps))
    items: Sequence[str] | pl.Series = list(dict.fromkeys(options.item))
    if not items:
        lists = ListOptions(SHOWN_ITEMS)
        best = model.ranker.recommend(model.user_batch(histories), pipeline, lists).table
        items = best["item_id"]
    if not len(items):
        raise InputError("the mask leaves no item to explain; name one with --item")
    rows = [model.index.find(f"{ITEM}:{item}")[1] for item in items]
    made = explain_items(model, histories, np.array(rows, np.int64), pipeline)
    for reason in made:
        console.print("\n".join(explained(reason)))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(options.out) as draft:
            draft.write_text(json.dumps([asdict(reason) for reason in made], indent=1))
        console.print(f"written to {options.out}")


def explained(reason: Explanation) -> list[str]:
    """An explanation as lines of text."""
    strongest = sorted(reason.events, key=lambda event: -abs(event.share))[:SHOWN_LINES]
    return [
        f"{reason.title or reason.item_id}, score {reason.score:.3f}",
        f"  {reason.sentence}",
        *(
            f"  event {event.event_type} {event.title or event.item_id}: "
            f"{100 * event.share:.0f} %, {event.amount:+.3f}"
            for event in strongest
        ),
        *(
            f"  part {f'{part.group}: ' if part.group else ''}{part.part}: {part.amount:+.3f}"
            for part in reason.parts
        ),
        *(
            f"  path {path.title or path.item_id} - {path.relation} - {path.node_type} {path.node}"
            for path in reason.paths
        ),
        *(f"  word {word.word}: {word.amount:.3f}" for word in reason.words),
    ]


def replay(options: ReplayOptions) -> None:
    """Print what live updates gain; raises as `jaxrec.serving.replay.replay`."""
    model = load_model(options, selected=True)  # a refit has learned from the events
    result = replaying.replay(model, log_to_replay(model, options), options.since, options.until)
    console.print(result.table())


def log_to_replay(model: TrainedModel, options: ReplayOptions) -> EventLog:
    """The events of a file, or those that the run was trained on and held out."""
    if options.events is not None:
        events = pl.concat(open_user_events(model, options.events).blocks())
        return model.encoder.validated_log(events)
    return model.encoder.validated_log(filtered(model.config).events)


def export(options: ExportOptions) -> None:
    """Write the directory that `jaxrec export` names; raises as `write_directory`."""
    model = load_model(options)
    if history := model.config.evaluation.history:
        note(
            f"devices read all events of a user, and evaluation.history is {history}: lists of "
            "longer histories differ from those of batches"
        )
    write_directory(
        model,
        options.to,
        options.formats,
        options.item_precision,
        options.page_runtime,
    )
    size = sum(file.stat().st_size for file in options.to.rglob("*") if file.is_file())
    console.print(f"written to {options.to}: {size / 1e6:.1f} MB")
    if COOCCURRENCE in model.neighbours and model.config.model.cooccurrence_users < 2:
        note(
            f"{options.to} holds which items followed which in training, also those of one user "
            "alone. If others read it, train with --model.cooccurrence_users 3"
        )
