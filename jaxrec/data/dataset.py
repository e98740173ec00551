"""From a configuration to everything that training and evaluation read."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from jaxtyping import Bool, Float

from jaxrec.config import Config
from jaxrec.data.events import Split, build_event_log, split_log, thinned
from jaxrec.data.graph import build_graph
from jaxrec.data.sources import load_source
from jaxrec.data.tables import DataError, Tables, filter_tables
from jaxrec.types import ANY_KIND, Catalog


@dataclass(frozen=True)
class Dataset:
    """A catalogue and a split log over it."""

    catalog: Catalog
    split: Split
    target_weights: Float[np.ndarray, " M"]  # of every event of the log
    wanted_kind: int  # what evaluation asks for: the one kind to predict, or ANY_KIND
    notes: tuple[str, ...]  # what was repaired or left out

    @cached_property
    def chosen(self) -> Bool[np.ndarray, " M"]:
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
    kind_weights = np.array([kind_weight(config, kind) for kind in log.kind_names], np.float32)
    wanted = kinds_to_predict(config, log.kind_names)
    for option, kinds in (("split.target_kinds", wanted), ("data.kind_weights", data.kind_weights)):
        absent = set(kinds) - set(log.kind_names)
        if absent:
            raise DataError(
                f"{option} names {sorted(absent)}, which no event is; "
                f"the kinds of event are {', '.join(log.kind_names)}"
            )
    targets = np.isin(log.kinds, [log.kind_names.index(kind) for kind in wanted])
    whole, limit = split_log(log, config.split, targets), config.evaluation.queries
    sets = {"validation": whole.validation, **whole.test}
    notes = [
        f"{name}: of {len(queries):,} events {limit:,}, evenly spaced, are ranked."
        for name, queries in sets.items()
        if len(queries) > limit
    ]
    return Dataset(
        catalog=catalog,
        split=thinned(whole, limit),
        target_weights=kind_weights[log.kinds],
        wanted_kind=wanted_kind(config, log.kind_names),
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


def kind_weight(config: Config, kind: str) -> float:
    """Weight of a kind of event as a target; 0 for what is never predicted."""
    data = config.data
    return 0.0 if kind in data.negative_kinds else data.kind_weights.get(kind, 1.0)


def kinds_to_predict(config: Config, kind_names: tuple[str, ...]) -> tuple[str, ...]:
    """The kinds of event that evaluation predicts."""
    predicted = tuple(kind for kind in kind_names if kind_weight(config, kind))
    return config.split.target_kinds or predicted


def wanted_kind(config: Config, kind_names: tuple[str, ...]) -> int:
    """What user vectors are read for: the one kind of event to predict, or ANY_KIND."""
    wanted = kinds_to_predict(config, kind_names)
    return kind_names.index(wanted[0]) if len(wanted) == 1 else ANY_KIND
