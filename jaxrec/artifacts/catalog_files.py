"""The files of a run's catalogue: what a trained model needs beside its parameters."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxrec.data.catalog_tables import read_catalog_tables, write_catalog_tables
from jaxrec.models.inputs import Sizes
from jaxrec.models.items.features import FeatureMaps
from jaxrec.models.items.id import id_rows, rows_of_ids
from jaxrec.models.text.whitening import Whitening
from jaxrec.types import Catalog

FEATURES = "features.npz"
NEVER = -1  # `trained_until` and `seen_until` of a run that saw no event of its shop
# older runs lack some
ADDED = ("text_encoder", "item_id_type", "trained_until", "seen_until", "id_key_hash")


@dataclass(frozen=True)
class RunArtifacts:
    """What a trained model needs beside its parameters: the `catalog` directory of a run."""

    catalog: Catalog
    counts: Float[np.ndarray, " I"]  # positive training events of every item
    has_trained_id: Bool[np.ndarray, " I"]  # items with an id of their own
    event_type_names: tuple[str, ...]
    sizes: Sizes
    whitening: Whitening | None  # None if the model reads no text
    text_encoder: str = ""  # SHA-256 of its files; empty if no text is read, or in an older run
    item_id_type: str = "String"  # Int64 or UInt64 where the items table had integers
    # seconds of the newest event that trained, and that trained or selected; NEVER; None: unknown
    trained_until: int | None = None
    seen_until: int | None = None
    features: FeatureMaps = field(default_factory=FeatureMaps)
    id_key_hash: str = ""  # of the key of user ids; empty: ids are those of the events
    shops: tuple[str, ...] = ()  # the names of several shops whose items lie side by side

    @property
    def id_rows(self) -> Int[np.ndarray, " I"]:
        """The row of every item in the id tables."""
        return id_rows(self.has_trained_id, self.sizes.num_ids)


def read_catalog(directory: Path, layout: dict[str, Any]) -> RunArtifacts:
    """The artifacts in a directory; raises what the readers of damaged files raise.

    Args:
        layout: the content of its `layout.json`.
    """
    whitening = directory / "whitening.npz"
    artifacts = RunArtifacts(
        catalog=read_catalog_tables(directory, layout["node_types"], layout["relations"]),
        counts=np.load(directory / "counts.npy", allow_pickle=False),
        has_trained_id=np.load(directory / "has_trained_id.npy", allow_pickle=False),
        event_type_names=tuple(layout["event_types"]),
        sizes=(sizes := _sizes(layout["sizes"])),
        whitening=Whitening(**np.load(whitening)) if whitening.exists() else None,
        features=_read_features(directory, sizes),
        shops=tuple(layout.get("shops", ())),
        **{name: layout[name] for name in ADDED if name in layout},
    )
    return _checked(artifacts)


def _sizes(entries: dict[str, Any]) -> Sizes:
    """Sizes from JSON, which has lists for tuples; older runs have no vectors and numbers."""
    vectors = tuple((str(name), int(width)) for name, width in entries.get("vectors", ()))
    return Sizes(**{**entries, "vectors": vectors, "numbers": tuple(entries.get("numbers", ()))})


def _read_features(directory: Path, sizes: Sizes) -> FeatureMaps:
    if not (sizes.vectors or sizes.numbers):
        return FeatureMaps()
    arrays = np.load(directory / FEATURES, allow_pickle=False)
    vectors = {
        name: Whitening(arrays[f"mean_{number}"], arrays[f"projection_{number}"])
        for number, (name, _) in enumerate(sizes.vectors)
    }
    edges = {name: arrays[f"edges_{number}"] for number, name in enumerate(sizes.numbers)}
    return FeatureMaps(vectors, edges)


def _write_features(directory: Path, features: FeatureMaps) -> None:
    arrays: dict[str, Any] = {}
    for number, whitening in enumerate(features.vectors.values()):
        arrays[f"mean_{number}"] = whitening.mean
        arrays[f"projection_{number}"] = whitening.projection
    arrays |= {f"edges_{number}": edges for number, edges in enumerate(features.numbers.values())}
    if arrays:
        np.savez(directory / FEATURES, **arrays)


def _checked(artifacts: RunArtifacts) -> RunArtifacts:
    """The artifacts; raises a ValueError if their files are not of one run."""
    catalog, graph, sizes = artifacts.catalog, artifacts.catalog.graph, artifacts.sizes
    item_type = graph.types[0]
    ends = np.cumsum([node_type.padded_size for node_type in graph.types])
    expected = Sizes(
        num_items=item_type.padded_size,
        num_nodes=int(ends[-1]),
        num_relations=len(graph.relations),
        num_event_types=len(artifacts.event_type_names),
        text_width=int(sizes.text_width),
        vectors=artifacts.features.widths,
        numbers=tuple(artifacts.features.numbers),
        num_ids=sizes.num_ids and rows_of_ids(artifacts.has_trained_id),
    )
    ids = [(graph.heads, ends[-1]), (graph.tails, ends[-1])]
    ids += [(graph.edge_relations, len(graph.relations))]
    if not (
        sizes == expected
        and [node_type.offset for node_type in graph.types] == [0, *ends[:-1]]
        and catalog.item_ids.equals(item_type.ids)
        and artifacts.counts.shape == artifacts.has_trained_id.shape == (catalog.num_items,)
        and artifacts.counts.dtype.kind in "iuf"
        and artifacts.has_trained_id.dtype == bool
        and all(((values >= 0) & (values < limit)).all() for values, limit in ids)
    ):
        raise ValueError("the files in catalog do not belong together")
    return artifacts


def write_catalog(directory: Path, artifacts: RunArtifacts, number: int) -> None:
    """Write the files; `number` is that of their format."""
    graph = artifacts.catalog.graph
    layout = {
        "format": number,
        "node_types": {node_type.name: node_type.offset for node_type in graph.types},
        "relations": graph.relations,
        "event_types": artifacts.event_type_names,
        "sizes": asdict(artifacts.sizes),
        "shops": artifacts.shops,
        **{name: getattr(artifacts, name) for name in ADDED},
    }
    (directory / "layout.json").write_text(json.dumps(layout, indent=2))
    write_catalog_tables(directory, artifacts.catalog)
    np.save(directory / "counts.npy", artifacts.counts)
    np.save(directory / "has_trained_id.npy", artifacts.has_trained_id)
    if artifacts.whitening is not None:
        np.savez(directory / "whitening.npz", **vars(artifacts.whitening))
    _write_features(directory, artifacts.features)
