"""What commands read: the model of a run, and the events of users."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from jaxrec.data.columns import as_text
from jaxrec.data.forgotten import Forgotten, read_forgotten
from jaxrec.data.opener import open_source
from jaxrec.data.stream import EventStream, open_events
from jaxrec.data.user_filter import UserFilter
from jaxrec.errors import DataError
from jaxrec.inference import loading
from jaxrec.inference.trained_model import TrainedModel
from jaxrec.ranking.filters import listed_ids, shown
from jaxrec.runtime import enable_compilation_cache, personal
from jaxrec.serving.console import note
from jaxrec.serving.options import ModelOptions


def load_model(
    options: ModelOptions, *, shared: bool = False, selected: bool = False
) -> TrainedModel:
    """The model of a run, with today's items if they are given.

    Args:
        shared, selected: see `loading.load`.

    Raises:
        RunError: the run cannot be used.
        DataError: today's items cannot be used.
    """
    enable_compilation_cache()
    model = loading.load(
        options.run, options.item_shards, shared=shared, id_key=options.id_key, selected=selected
    )
    moved = {"forgotten": options.forgotten, "id_key": options.id_key}
    if given := {name: str(path) for name, path in moved.items() if path is not None}:
        data = replace(model.config.data, **given)  # type: ignore[arg-type]
        model = replace(model, config=replace(model.config, data=data))
    if options.items is None:
        return model
    layout, triples = model.config.data.layout, None
    if options.triples is not None:
        triples = open_source(options.triples, "triples", layout).read()
    model = model.with_items(open_source(options.items, "items", layout).read(), triples)
    for message in model.notes:
        note(message)
    return model


def open_user_events(
    model: TrainedModel,
    events: Path,
    block: int = 4096,
    users: Path | Sequence[str] | None = None,
) -> EventStream:
    """The events of a file as blocks of whole users. Prints how they fit, before any work.

    Args:
        block: users in a block.
        users: a file with a column user_id, or ids (None: all users).

    Raises:
        DataError: the file cannot be used, holds no event of these users, or holds no event of an
            item of the catalogue.
    """
    keep: pl.Series | None = None if users is None else listed_ids(users, "user_id")
    forgotten = read_forgotten(model.config.data.forgotten)
    stream = open_events(
        events,
        block,
        layout=model.config.data.layout,
        time=model.config.data.time,
        event_types=model.artifacts.event_type_names,
        users=UserFilter(keep, forgotten, model.id_key),
    )
    if not stream.num_rows:
        raise DataError(_no_events(events, keep, forgotten))
    for message in (*stream.notes, *unknown_items(stream, model.catalog.item_ids)):
        note(message)
    return stream


def _no_events(events: Path, keep: pl.Series | None, forgotten: Forgotten) -> str:
    """Why no event is left to read."""
    if keep is None:
        return f"{events}: all users are in {forgotten.name}; name other events or another list"
    return (
        f"{events} holds no event of the listed users: none of the {len(keep):,} ids "
        f"(such as {personal(keep[0])}) is a user_id there"
        + (f", or all are in {forgotten.name}" if forgotten.until else "")
    )


def unknown_items(stream: EventStream, item_ids: pl.Series) -> list[str]:
    """A note on the events of items that the catalogue lacks, if there are any.

    It takes a pass over one column, which is short beside scoring.

    Raises:
        DataError: all events are of such items.
    """
    known, place = item_ids.drop_nulls().implode(), stream.name
    total, unknown = 0, []
    for batch in stream.read(("item_id",), stream.rows_per_batch):
        ids = as_text(batch["item_id"], place).drop_nulls()
        total += len(ids)
        unknown.append(ids.filter(~ids.is_in(known)))
    count = sum(map(len, unknown))
    if not count:
        return []
    first = personal(next(ids[0] for ids in unknown if len(ids)))
    if count == total:
        raise DataError(
            f"{place}: none of the {total:,} events is of an item of the catalogue. Items are "
            f"{first} there and {shown(item_ids.drop_nulls())} in the catalogue. Name the run of "
            "this shop, write the ids as in training, or add the items with --items"
        )
    return [
        f"{count:,} of {total:,} events are of items that the catalogue lacks, such as {first}; "
        "they are read as an unknown item. --items adds them"
    ]
