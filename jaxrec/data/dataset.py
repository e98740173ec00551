"""From a configuration to everything that training and evaluation read."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from jaxtyping import Bool, Float

from jaxrec.config import Config
from jaxrec.data.events import build_event_log
from jaxrec.data.graph import build_graph
from jaxrec.data.sources import load_source
from jaxrec.data.splits import Split, split_log, subsampled
from jaxrec.data.tables import Tables, filter_tables
from jaxrec.errors import DataError
from jaxrec.types import ANY_EVENT_TYPE, Catalog


@dataclass(frozen=True)
class Dataset:
    """A catalogue and a split log over it."""

    catalog: Catalog
    split: Split
    target_weights: Float[np.ndarray, " M"]  # of every event of the log
    target_event_type: (
        int  # what evaluation asks for: the one event_type to predict, or ANY_EVENT_TYPE
    )
    notes: tuple[str, ...]  # what was repaired or left out

    @cached_property
    def positives(self) -> Bool[np.ndarray, " M"]:
        """Which events are choices, to be predicted and counted: no returns or impressions."""
        return self.target_weights > 0


def prepare(config: Config, tables: Tables | None = None) -> Dataset:
    """Read, filter, index and split the data that `config` names, or the given tables.

    Raises:
        DataError: the data are not usable; the message says which rows and how to mend them.
    """
    data, tables = config.data, filtered(config, tables)
    unknown_item = pl.DataFrame({"item_id": [None]}, schema={"item_id": pl.String})
    items = pl.concat([unknown_item, tables.items], how="diagonal")
    catalog = Catalog(items, build_graph(items, tables.triples, data.relations))
    log = build_event_log(
        tables.events,
        catalog.item_ids,
        item_ties=data.ties == "item_id",
        has_time=data.time == "timestamp",
    )
    event_weights = np.array(
        [event_weight(config, event_type) for event_type in log.event_type_names], np.float32
    )
    wanted = predicted_event_types(config, log.event_type_names)
    for option, event_types in (
        ("split.target_event_types", wanted),
        ("data.event_weights", data.event_weights),
    ):
        absent = set(event_types) - set(log.event_type_names)
        if absent:
            raise DataError(
                f"{option} names {sorted(absent)}, which no event is; "
                f"the event types are {', '.join(log.event_type_names)}"
            )
    targets = np.isin(
        log.event_types, [log.event_type_names.index(event_type) for event_type in wanted]
    )
    whole, limit = split_log(log, config.split, targets), config.evaluation.queries
    sets = {"validation": whole.validation, **whole.test}
    notes = [
        f"{name}: of {len(queries):,} events {limit:,}, evenly spaced, are ranked."
        for name, queries in sets.items()
        if len(queries) > limit
    ]
    return Dataset(
        catalog=catalog,
        split=subsampled(whole, limit),
        target_weights=event_weights[log.event_types],
        target_event_type=target_event_type(config, log.event_type_names),
        notes=(*tables.notes, *notes),
    )


def filtered(config: Config, tables: Tables | None = None) -> Tables:
    """The data that `config` names, or the given tables, without what it leaves out.

    Raises:
        DataError: as `prepare`.
    """
    data = config.data
    if tables is None:
        tables = load_source(data.source, time=data.time, strict=data.strict)
    return filter_tables(
        tables,
        min_user_events=data.min_user_events,
        min_item_events=data.min_item_events,
        drop_repeats=data.drop_repeats,
    )


def event_weight(config: Config, event_type: str) -> float:
    """Weight of an event type as a target; 0 for what is never predicted."""
    data = config.data
    return (
        0.0 if event_type in data.negative_event_types else data.event_weights.get(event_type, 1.0)
    )


def predicted_event_types(config: Config, event_type_names: tuple[str, ...]) -> tuple[str, ...]:
    """The event types that evaluation predicts."""
    predicted = tuple(
        event_type for event_type in event_type_names if event_weight(config, event_type)
    )
    return config.split.target_event_types or predicted


def target_event_type(config: Config, event_type_names: tuple[str, ...]) -> int:
    """What user vectors are read for: the one event type to predict, or ANY_EVENT_TYPE."""
    wanted = predicted_event_types(config, event_type_names)
    return event_type_names.index(wanted[0]) if len(wanted) == 1 else ANY_EVENT_TYPE
