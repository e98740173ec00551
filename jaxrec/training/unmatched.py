"""What of two catalogues has no match when one's parameters go to the other: notes by kind."""

from collections.abc import Collection, Iterator
from pathlib import Path

import polars as pl

from jaxrec.artifacts.run_directory import RunArtifacts
from jaxrec.data.dataset import Dataset

MOST_NAMES = 5  # that a note lists


def unmatched_notes(
    directory: Path, earlier: RunArtifacts, dataset: Dataset, kinds: Collection[str]
) -> list[str]:
    """A sentence for each kind with names that only one side has.

    Args:
        directory: of the earlier run.
        kinds: what the rows of the parameters that are taken stand for, as in `growth.AXES`.
    """
    notes = []
    for kind, own, old in _names(earlier, dataset, kinds):
        new, gone = _only(own, old), _only(old, own)
        sides = [_counted(new, "new here")] * (len(new) > 0)
        sides += [_counted(gone, f"only in {directory}")] * (len(gone) > 0)
        if sides:
            notes.append(f"{kind} without a match: {', '.join(sides)}")
    return notes


def _names(
    earlier: RunArtifacts, dataset: Dataset, kinds: Collection[str]
) -> Iterator[tuple[str, pl.Series, pl.Series]]:
    """Each kind with its names in the data and in the earlier run."""
    graph, old_graph = dataset.catalog.graph, earlier.catalog.graph
    if "ids" in kinds:
        yield "item", dataset.catalog.item_ids, earlier.catalog.item_ids
    if "entities" in kinds:
        own, old = ({t.name: t.ids for t in g.types[1:]} for g in (graph, old_graph))
        for name in dict.fromkeys([*own, *old]):
            yield name, own.get(name, _series()), old.get(name, _series())
    if "relations" in kinds:
        yield "relation", _series(graph.relations), _series(old_graph.relations)
    if "event_types" in kinds:
        names = dataset.split.log.event_type_names
        yield "event type", _series(names), _series(earlier.event_type_names)


def _series(names: Collection[str] = ()) -> pl.Series:
    return pl.Series(list(names), dtype=pl.String)


def _only(names: pl.Series, others: pl.Series) -> pl.Series:
    """Names that the others lack, in their order."""
    return names.filter(~names.is_in(others.implode())).drop_nulls().unique(maintain_order=True)


def _counted(names: pl.Series, where: str) -> str:
    listed = f" ({', '.join(names)})" if len(names) <= MOST_NAMES else ""
    return f"{len(names):,} {where}{listed}"
