"""Preparation of a data set: read, filter, index and split."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int

from jaxrec.config import Config, DataConfig
from jaxrec.config.train import RefitEvents
from jaxrec.data.carry_over import Carried, true_before, with_carried_items
from jaxrec.data.events import build_event_log
from jaxrec.data.features import FeatureColumns, compact, feature_arrays, feature_columns
from jaxrec.data.forgotten import Forgotten, LeftOut, read_forgotten
from jaxrec.data.graph import ITEM, UNKNOWN_ITEM, build_graph
from jaxrec.data.graph_arrays import count_of
from jaxrec.data.pseudonyms import pseudonyms, read_key
from jaxrec.data.shared_files import SharedFiles
from jaxrec.data.shops import joined_catalog, joined_split
from jaxrec.data.slices import counts, look_up
from jaxrec.data.sources import load_source
from jaxrec.data.splits import Split, split_log
from jaxrec.data.tables import Tables, filter_tables
from jaxrec.errors import ConfigError, DataError
from jaxrec.runtime import personal
from jaxrec.types import ANY_EVENT_TYPE, Catalog, EventLog

LONG_HISTORY = 10_000  # events of a user that are worth a note


class EventCounts(NamedTuple):
    """Numbers of training events of every item.

    Attributes:
        every: of any event type; 0 for the unknown item. A private run must not reveal them, so
            every item has one there.
        positive: without events of no interest, such as returns.
    """

    every: Int[np.ndarray, " n"]
    positive: Int[np.ndarray, " n"]


@dataclass(frozen=True)
class Dataset:
    """A catalogue, and a split log of events of its items.

    Attributes:
        catalog: the items and their graph.
        split: the event log and its parts.
        target_weights: weight of every event as a target.
        counts: training events of the items.
        target_event_type: the only event type that evaluation predicts, or ANY_EVENT_TYPE.
        notes: sentences about repaired, dropped and sampled data.
        item_id_type: see `RunArtifacts`.
        carried: what a warm start carries over; None for a run from scratch.
        features: the columns of vectors and numbers that the model reads.
        shops: the data sets that this one joins, by name; empty for those of one shop. Their rows
            follow each other in this order.
        is_private: whether the list of items is public and the events are not, so that all items
            count as trained.
        files: where the processes of a job share what they derive from the events.
    """

    catalog: Catalog
    split: Split
    target_weights: Float[np.ndarray, " M"]
    counts: EventCounts
    target_event_type: int
    notes: tuple[str, ...]
    item_id_type: str = "String"
    carried: Carried | None = None
    features: FeatureColumns = field(default_factory=FeatureColumns)
    shops: dict[str, "Dataset"] = field(default_factory=dict)
    is_private: bool = False
    files: SharedFiles = field(default_factory=SharedFiles)

    @cached_property
    def trained(self) -> Bool[np.ndarray, " n"]:
        """Items with a training event, here or in the run that a warm start goes on from."""
        trained = self.counts.every > 0
        if self.carried is not None:
            trained |= true_before(self.carried.trained, self.catalog.item_ids, self.carried)
        return trained

    def with_own_id(self, least: int) -> Bool[np.ndarray, " n"]:
        """Items with so many training events, or with an id of their own in the earlier run."""
        has_id = self.counts.every >= max(least, 1)
        if self.carried is not None:
            has_id |= true_before(self.carried.has_id, self.catalog.item_ids, self.carried)
        return has_id

    @cached_property
    def new(self) -> Bool[np.ndarray, " M"]:
        """True for the events that a warm start has not seen before."""
        times = self.split.log.times
        return times > self.carried.since if self.carried else np.ones(len(times), bool)

    def refitted(self, events: RefitEvents) -> "Dataset":
        """The data set whose training also has the validation events, or all events."""
        shops = {name: shop.refitted(events) for name, shop in self.shops.items()}
        split = self.split.refitted(events)
        numbers = event_counts(split, self.target_weights, self.catalog.num_items)
        return replace(self, split=split, shops=shops, counts=numbers)

    @cached_property
    def positives(self) -> Bool[np.ndarray, " M"]:
        """True for events of interest; false for returns, impressions and the like."""
        return self.target_weights > 0


@dataclass(frozen=True)
class Shared:
    """What the data sets of several shops have in common."""

    event_types: tuple[str, ...]
    features: FeatureColumns


def prepare(
    config: Config,
    tables: Tables | Mapping[str, Tables] | None = None,
    carried: Carried | None = None,
    shared: Shared | None = None,
) -> Dataset:
    """Read, filter, index and split the data of a configuration, or the given tables.

    Args:
        tables: of one shop, or of all shops of `data.shops` by name.
        carried: the data side of the run that a warm start goes on from.
        shared: of one shop among several; None: its own event types and columns.

    Raises:
        DataError: the data are invalid, or a warm start cannot tell which events are new.
        ConfigError: an expert names a source that the items lack.
    """
    data = config.data
    if data.shops:
        if isinstance(tables, Tables):
            raise ConfigError("data.shops names several shops; give the tables of each by its name")
        return _prepare_shops(config, tables or {})
    assert not isinstance(tables, Mapping)
    tables = filtered(config, tables, shared.features if shared else None)
    if is_private := config.train.privacy.epsilon > 0:
        _refuse_items_of_events(tables)
    event_types = shared.event_types if shared else None
    if carried is not None:
        tables = with_carried_items(tables, carried)
        event_types = tuple(sorted({*carried.event_type_names, *tables.events["event"].unique()}))
    features = shared.features if shared else feature_columns(tables.items, config)
    items = pl.concat([UNKNOWN_ITEM, compact(tables.items, features)], how="diagonal")
    catalog = Catalog(items, build_graph(items, tables.triples, data.relations))
    log = build_event_log(
        tables.events,
        catalog.item_ids,
        item_ties=data.ties == "item_id",
        has_time=data.time == "timestamp",
        event_type_names=event_types,
    )
    notes, item_id_type = tables.notes, str(tables.item_id_type)
    del tables  # which need as much memory as the log
    since = None if carried is None else carried.since
    split, weights, ranked = _split(config, log, since)
    return Dataset(
        catalog=catalog,
        split=split,
        target_weights=weights,
        counts=event_counts(split, weights, catalog.num_items, is_private=is_private),
        target_event_type=target_event_type(config, log.event_type_names),
        notes=(*notes, *ranked, *history_notes(log)),
        item_id_type=item_id_type,
        carried=carried,
        features=features,
        is_private=is_private,
    )


def event_counts(
    split: Split, weights: Float[np.ndarray, " M"], num_items: int, *, is_private: bool = False
) -> EventCounts:
    """The training events of the items of a split log."""
    items, in_training = split.log.items, split.in_training
    numbers = counts(items[in_training], num_items)
    if is_private:
        numbers = np.ones_like(numbers)
    numbers[0] = 0
    positive = counts(items[in_training & (weights > 0)], num_items)
    return EventCounts(numbers, positive)


def _refuse_items_of_events(tables: Tables) -> None:
    """Raise a DataError if the events add items to the list, which is public in a private run."""
    if tables.num_unknown or not tables.lists_items:
        lacking = f"{tables.num_unknown:,} events are of items that the items table lacks"
        raise DataError(
            "train.privacy takes the list of items as public, so it must not come from the events, "
            f"but {lacking if tables.lists_items else 'there is no items table'}; give a table of "
            "all items that the shop has"
        )


def _split(
    config: Config, log: EventLog, since: int | None
) -> tuple[Split, Float[np.ndarray, " M"], list[str]]:
    """A split log, the weight of every event as a target, and notes on sampled queries."""
    names = log.event_type_names
    predicted = predicted_event_types(config, names)
    _check_event_types("split.target_event_types", predicted, names)
    _check_event_types("data.event_weights", config.data.event_weights, names)
    is_predicted = np.array([name in predicted for name in names])
    targets = look_up(is_predicted, log.event_types)
    split, limit = split_log(log, config.split, targets, since), config.evaluation.queries
    notes = [
        f"{name}: {limit:,} of {len(queries):,} events, evenly spaced, are ranked."
        for name, queries in {"validation": split.validation, **split.test}.items()
        if len(queries) > limit
    ]
    weights = np.array([event_weight(config, event_type) for event_type in names], np.float32)
    return split.subsampled(limit), look_up(weights, log.event_types), notes


def _prepare_shops(config: Config, tables: Mapping[str, Tables]) -> Dataset:
    """The data of all shops side by side. Each is filtered and split by itself."""
    configs = {
        name: replace(config, data=shop_data(config.data, name)) for name in config.data.shops
    }
    read = {name: tables.get(name) or _read(own) for name, own in configs.items()}
    event_types = {name for part in read.values() for name in part.events["event"].unique()}
    items = [part.items for part in read.values()]
    shared = Shared(tuple(sorted(event_types)), feature_columns(items[0], config, *items[1:]))
    del items
    shops = {}
    for name, own in configs.items():
        try:
            shops[name] = prepare(own, read.pop(name), shared=shared)
        except DataError as error:
            raise DataError(f"shop {name}: {error}") from None
    parts = list(shops.values())
    num_items = [count_of(shop.catalog.graph, ITEM) for shop in parts]
    columns = dict.fromkeys((*config.data.text_columns, *shared.features.names))
    catalog = joined_catalog({name: shop.catalog for name, shop in shops.items()}, tuple(columns))
    split = joined_split({name: shop.split for name, shop in shops.items()}, num_items)
    weights = np.concatenate([shop.target_weights for shop in parts])
    return Dataset(
        catalog=catalog,
        split=split,
        target_weights=weights,
        counts=event_counts(split, weights, catalog.num_items),
        target_event_type=parts[0].target_event_type,
        notes=tuple(f"{name}: {note}" for name, shop in shops.items() for note in shop.notes),
        features=shared.features,
        shops=shops,
    )


def shop_data(data: DataConfig, name: str) -> DataConfig:
    """The options of the data of one shop among several."""
    return replace(data, source=data.shops[name], shops={})


def history_notes(log: EventLog) -> list[str]:
    """A note that names the user with the most events, if they are very many."""
    longest = int(log.lengths.argmax())
    return long_history_notes(log.user_ids[longest], int(log.lengths[longest]), len(log.items))


def long_history_notes(user: str, count: int, total: int) -> list[str]:
    """A note on the user with the most events, where they are no person's."""
    if count < LONG_HISTORY:
        return []
    return [
        f"user {personal(user)} has {count:,} of the {total:,} events. Leave a robot or a till "
        "out, or bound the events that are read by --evaluation.history."
    ]


def _check_event_types(option: str, event_types: Collection[str], names: tuple[str, ...]) -> None:
    absent = sorted(set(event_types) - set(names))
    if absent:
        raise DataError(f"{option} names {absent}; the data have the types {', '.join(names)}")


def filtered(
    config: Config, tables: Tables | None = None, features: FeatureColumns | None = None
) -> Tables:
    """Tables, by default those of the configuration, after its filters; raises as `prepare`.

    Args:
        features: the columns that the experts read; None: as the configuration names them.
    """
    data = config.data
    if tables is None:
        tables = _read(config)
    # before rows are left out, so that messages name the rows of the file
    feature_arrays(tables.items, features or feature_columns(tables.items, config))
    forgotten = read_forgotten(data.forgotten)
    tables = without_forgotten(with_pseudonyms(tables, data, forgotten), data, forgotten)
    return filter_tables(
        tables,
        min_user_events=data.min_user_events,
        min_item_events=data.min_item_events,
        drop_repeats=data.drop_repeats,
    )


def _read(config: Config) -> Tables:
    data = config.data
    return load_source(
        data.source,
        data.layout,
        time=data.time,
        strict=data.strict,
        memory_limit=data.memory_limit,
        as_codes=True,
    )


def with_pseudonyms(tables: Tables, data: DataConfig, forgotten: Forgotten) -> Tables:
    """Tables whose user ids are keyed hashes, if there is a key, which `forgotten` then lists."""
    if not data.id_key:
        return tables
    key = read_key(Path(data.id_key))
    forgotten.add_pseudonyms(key, tables.events["user_id"])
    users = pseudonyms(key, tables.events["user_id"])
    return replace(tables, events=tables.events.with_columns(users))


def without_forgotten(tables: Tables, data: DataConfig, forgotten: Forgotten) -> Tables:
    """Tables without the events of forgotten users; raises a DataError if no other is left."""
    left_out = LeftOut(forgotten)
    events = left_out.without(tables.events, has_time=data.time == "timestamp")
    if events.is_empty():
        raise DataError(f"all users are in {data.forgotten}; name other events or another list")
    return replace(tables, events=events, notes=(*tables.notes, *left_out.notes))


def event_weight(config: Config, event_type: str) -> float:
    """Weight of an event type as a target; 0 for types that are never predicted."""
    if event_type in config.data.negative_event_types:
        return 0.0
    return config.data.event_weights.get(event_type, 1.0)


def predicted_event_types(config: Config, event_type_names: tuple[str, ...]) -> tuple[str, ...]:
    """The event types that evaluation predicts."""
    weighted = tuple(name for name in event_type_names if event_weight(config, name))
    return config.split.target_event_types or weighted


def target_event_type(config: Config, event_type_names: tuple[str, ...]) -> int:
    """The number of the only event type that evaluation predicts, or ANY_EVENT_TYPE."""
    predicted = predicted_event_types(config, event_type_names)
    return event_type_names.index(predicted[0]) if len(predicted) == 1 else ANY_EVENT_TYPE
