"""Single results: an audience, similar nodes, a plot of one user, a replay."""

import polars as pl

from jaxrec.data.dataset import filtered
from jaxrec.data.graph import ITEM
from jaxrec.data.id_types import with_id_types
from jaxrec.data.opener import open_source
from jaxrec.inference.audiences import EMPTY_AUDIENCE, audience_table, likeliest
from jaxrec.inference.contributions import plot_contributions_of
from jaxrec.inference.profiles import plot_user
from jaxrec.inference.trained_model import TrainedModel
from jaxrec.serving import replay as replaying
from jaxrec.serving.console import console, show_table
from jaxrec.serving.inputs import load_model, open_user_events, user_id_type
from jaxrec.serving.options import AudienceOptions, PlotOptions, ReplayOptions, SimilarOptions
from jaxrec.types import EventLog


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
    table = with_id_types(audience_table(users, options.bid), {"user_id": user_id_type(events)})
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


def replay(options: ReplayOptions) -> None:
    """Print what live updates gain; raises as `jaxrec.serving.replay.replay`."""
    model = load_model(options)
    result = replaying.replay(model, log_to_replay(model, options), options.since)
    console.print(result.table())


def log_to_replay(model: TrainedModel, options: ReplayOptions) -> EventLog:
    """The events of a file, or those that the run was trained on and held out."""
    if options.events is not None:
        table = open_source(options.events, "events", model.config.data.layout)
        return model.encoder.event_log(table.read())
    return model.encoder.validated_log(filtered(model.config).events)
