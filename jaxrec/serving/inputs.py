"""What commands read: the model of a run, and the events of users."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from jaxrec.data.opener import read_table
from jaxrec.data.stream import EventStream, open_events
from jaxrec.errors import DataError
from jaxrec.inference import loading
from jaxrec.inference.trained_model import TrainedModel
from jaxrec.ranking.filters import listed_ids
from jaxrec.runtime import enable_compilation_cache
from jaxrec.serving.console import note
from jaxrec.serving.options import ModelOptions


def load_model(options: ModelOptions) -> TrainedModel:
    """The best checkpoint of a run, with the new items if there are any.

    Raises:
        RunError: the run cannot be used.
        DataError: the new items cannot be used.
    """
    enable_compilation_cache()
    model = loading.load(options.run, options.item_shards)
    if options.items is None:
        return model
    triples = None if options.triples is None else read_table(options.triples)
    model = model.with_items(read_table(options.items), triples)
    for message in model.notes:
        note(message)
    return model


def open_user_events(
    model: TrainedModel,
    events: Path,
    block: int = 4096,
    users: Path | Sequence[str] | None = None,
) -> EventStream:
    """The events of a file as blocks of whole users.

    Args:
        block: users in a block.
        users: a file with a column user_id, or ids (None: all users).

    Raises:
        DataError: the file cannot be used, or holds no event of these users.
    """
    keep: pl.Series | None = None if users is None else listed_ids(users, "user_id")
    stream = open_events(
        events,
        block,
        layout=model.config.data.layout,
        time=model.config.data.time,
        event_types=model.artifacts.event_type_names,
        keep=keep,
    )
    if not stream.num_rows:
        raise DataError(f"{events} holds no event of the listed users")
    return stream
