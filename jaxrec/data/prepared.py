"""A prepared data set in files, which the first process of a job writes and all of them map."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import polars as pl

from jaxrec.data.catalog_tables import read_catalog_tables, write_catalog_tables
from jaxrec.data.dataset import Dataset, EventCounts
from jaxrec.data.features import FeatureColumns
from jaxrec.data.shared_files import SharedFiles, read_arrays, write_arrays
from jaxrec.data.splits import Split
from jaxrec.processes import from_first
from jaxrec.types import EventLog, Queries

SPLIT = ("train_lengths", "before_test")
LOG = ("offsets", "items", "event_types", "times")


def prepared_by_first(build: Callable[[], Dataset], files: SharedFiles) -> Dataset:
    """The data set that `build` makes in the first process; the others map its arrays."""
    if files.directory is None:
        return build()
    place = files.directory / "dataset"
    from_first(lambda: write_dataset(place, build()))
    return replace(read_dataset(place), files=files)


def write_dataset(directory: Path, dataset: Dataset) -> None:
    """Write a data set of one shop, without a warm start, into a new directory."""
    split, log, graph = dataset.split, dataset.split.log, dataset.catalog.graph
    queries = {"validation": split.validation, **split.test}
    arrays = {
        **{name: getattr(log, name) for name in LOG},
        **{name: getattr(split, name) for name in SPLIT},
        "target_weights": dataset.target_weights,
        **{f"{name} counts": values for name, values in dataset.counts._asdict().items()},
        **{f"{name} users": q.users for name, q in queries.items()},
        **{f"{name} positions": q.positions for name, q in queries.items()},
    }
    write_arrays(directory / "arrays", arrays)
    log.user_ids.to_frame("user_id").write_ipc(directory / "users.arrow")
    write_catalog_tables(directory, dataset.catalog)
    facts = {
        "event_types": log.event_type_names,
        "has_time": log.has_time,
        "tests": list(split.test),
        "node_types": {node_type.name: node_type.offset for node_type in graph.types},
        "relations": graph.relations,
        "vectors": dataset.features.vectors,
        "numbers": dataset.features.numbers,
        "target_event_type": dataset.target_event_type,
        "notes": dataset.notes,
        "item_id_type": dataset.item_id_type,
    }
    (directory / "facts.json").write_text(json.dumps(facts))


def read_dataset(directory: Path) -> Dataset:
    """The data set in a directory, with mapped arrays."""
    facts = json.loads((directory / "facts.json").read_text())
    arrays = read_arrays(directory / "arrays")

    def queries(name: str) -> Queries:
        return Queries(arrays[f"{name} users"], arrays[f"{name} positions"])

    log = EventLog(
        user_ids=pl.read_ipc(directory / "users.arrow")["user_id"],
        event_type_names=tuple(facts["event_types"]),
        has_time=facts["has_time"],
        **{name: arrays[name] for name in LOG},
    )
    test = {name: queries(name) for name in facts["tests"]}
    lengths = {name: arrays[name] for name in SPLIT}
    return Dataset(
        catalog=read_catalog_tables(directory, facts["node_types"], facts["relations"]),
        split=Split(log, validation=queries("validation"), test=test, **lengths),
        target_weights=arrays["target_weights"],
        counts=EventCounts(*(arrays[f"{name} counts"] for name in EventCounts._fields)),
        target_event_type=facts["target_event_type"],
        notes=tuple(facts["notes"]),
        item_id_type=facts["item_id_type"],
        features=FeatureColumns(tuple(facts["vectors"]), tuple(facts["numbers"])),
    )
