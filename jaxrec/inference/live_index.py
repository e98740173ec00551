"""A catalogue whose items change while it is served.

Every table has room for more items, so that no program is compiled again for a new one. Rows change
in place: an update costs what it changes, whatever the size of the catalogue.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int, Shaped
from scipy.sparse import coo_array, csr_array

from jaxrec.data.graph import ITEM
from jaxrec.data.graph_arrays import first_neighbours, neighbourhoods, node_degrees
from jaxrec.errors import InputError
from jaxrec.inference.catalog_index import CatalogIndex
from jaxrec.models.items.features import Features
from jaxrec.ranking.context import ItemLinks
from jaxrec.ranking.item_table import ItemTable
from jaxrec.types import Catalog, NodeType, padded_size

FIRST_ROOM = 2048  # rows for new items of a catalogue that has none yet
SMALLEST_REST = 1024  # free rows below which a larger table is prepared


def room_for(new_items: int) -> int:
    """Rows for items that training has not seen: a power of two, so few sizes are compiled."""
    room = FIRST_ROOM
    while is_scarce(room, new_items):
        room *= 2
    return room


def is_scarce(room: int, new_items: int) -> bool:
    """Whether so few rows are left that a larger table should be prepared."""
    return room - new_items < max(SMALLEST_REST, room // 8)


@dataclass(frozen=True)
class ItemRows:
    """What is known of every row of the item block; rows change in place."""

    vectors: Float[np.ndarray, "I F"]
    text: Float[np.ndarray, "I text"]  # whitened
    valid: Bool[np.ndarray, " I"]  # items that may be listed
    bias: Float[np.ndarray, " I"]
    counts: Float[np.ndarray, " I"]
    groups: dict[str, Int[np.ndarray, " n"]]  # node type -> each item's first neighbour
    features: dict[str, Shaped[np.ndarray, "I ..."]] = field(default_factory=dict)  # by column


@dataclass(frozen=True)
class LiveItemType(NodeType):
    """The items: rows without one have a null id, and removed items keep their rows."""

    listed: Bool[np.ndarray, " I"]

    @property
    def valid(self) -> Bool[np.ndarray, " I"]:
        """True for items that may be listed."""
        return self.listed


@dataclass(frozen=True)
class LiveLinks:
    """The neighbours of items whose edges are not those of training, for steps of a strategy."""

    trained: Catalog
    own: dict[int, Int[np.ndarray, " m"]] = field(default_factory=dict)  # row -> its neighbours

    @cached_property
    def base(self) -> coo_array:
        """The neighbours in training."""
        return neighbourhoods(self.trained.graph).tocoo()

    @cached_property
    def degrees(self) -> Int[np.ndarray, " N"]:
        """The degree of every node in training, at least 1."""
        return np.maximum(node_degrees(self.trained.graph), 1)

    def matrix(self, rows: int) -> csr_array:
        """`neighbourhoods`, with the degrees of training; a new node has degree 1."""
        kept = ~np.isin(self.base.row, list(self.own))
        lengths = np.array([len(nodes) for nodes in self.own.values()], np.int64)
        owners = np.repeat(np.array(list(self.own), np.int64), lengths)
        nodes = np.concatenate([*self.own.values(), np.zeros(0, np.int64)])
        width = max(len(self.degrees), int(nodes.max(initial=-1)) + 1)
        degrees = np.pad(self.degrees, (0, width - len(self.degrees)), constant_values=1)
        weights = 1 / np.sqrt(np.log1p(degrees[nodes]))
        norms = np.sqrt(np.bincount(owners, weights**2, minlength=rows))
        values = np.concatenate([self.base.data[kept], weights / norms[owners]])
        places = (
            np.concatenate([self.base.row[kept], owners]),
            np.concatenate([self.base.col[kept], nodes]),
        )
        return csr_array((values, places), shape=(rows, width))


@dataclass(frozen=True)
class LiveIndex(CatalogIndex):
    """The nodes of a trained model, with items that change.

    `vectors` and the graph are those of training. A new item takes messages from its neighbours and
    sends none, so its vector depends on the model and the item alone: every worker computes the
    same one, and no other vector moves.
    """

    rows: ItemRows = field(kw_only=True)
    trained: CatalogIndex = field(kw_only=True)
    own_links: LiveLinks = field(kw_only=True)
    features: Features = field(default_factory=dict, kw_only=True)  # before any change
    matrices: list[csr_array] = field(default_factory=list, kw_only=True)  # at most the present one

    @property
    def capacity(self) -> int:
        """Rows of the item block; the last one is always unused, as in `NodeType`."""
        return len(self.rows.valid)

    @property
    def num_trained(self) -> int:
        """Items of the catalogue before any change, including row 0."""
        return self.trained.catalog.num_items

    @property
    def num_listed(self) -> int:
        """Items that may be listed."""
        return int(np.count_nonzero(self.rows.valid))

    @property
    def links(self) -> ItemLinks:
        """The neighbours of the items, for the steps of a strategy."""
        return ItemLinks(self._first_neighbours, self._neighbourhoods)

    def _first_neighbours(self, name: str) -> Int[np.ndarray, " n"]:
        return self.rows.groups[self.node_type(name).name]

    def _neighbourhoods(self) -> csr_array:
        if not self.matrices:
            self.matrices.append(self.own_links.matrix(self.capacity - 1))
        return self.matrices[0]

    def node_type(self, name: str) -> NodeType:
        """A node type; raises an InputError that lists the types."""
        node_type = super().node_type(name)
        if name != ITEM:
            return node_type
        return LiveItemType(ITEM, self.catalog.item_ids, 0, self.rows.valid)

    def table(self, type_name: str) -> ItemTable:
        """The nodes of a type for a ranking; only items have a bias."""
        if type_name != ITEM:
            return super().table(type_name)
        return ItemTable(self.rows.vectors, self.rows.valid, self.rows.bias)

    def host_vectors(self, type_name: str) -> Float[np.ndarray, "n F"]:
        """Vectors of all nodes of a type in the memory of the host."""
        return self.rows.vectors if type_name == ITEM else super().host_vectors(type_name)

    def find(self, entity: str) -> tuple[str, int]:
        """Type and local id of a node; raises an InputError also for a removed item."""
        name, row = super().find(entity)
        if name == ITEM and not self.rows.valid[row]:
            raise InputError(f"the item {entity.partition(':')[2]!r} was removed")
        return name, row

    def derived(self, name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """An array that follows from the rows before any change; its rows may be changed."""
        return _room(self.trained, f"{name}_{self.capacity}", compute)

    def replace_catalog(self, items: pl.DataFrame) -> None:
        """Serve another table of the same rows; the neighbours may have changed too."""
        # this one field changes, as the rows do
        object.__setattr__(self, "catalog", replace(self.catalog, items=items))
        self.matrices.clear()


def live_index(
    trained: CatalogIndex, new_items: int = 0, features: Features | None = None
) -> LiveIndex:
    """A trained catalogue with room for new items.

    Columns of vectors that the model reads are left out of its table: every update copies the
    table, and no condition needs them.

    Args:
        new_items: how many the store holds at most.
        features: see `TrainedModel.features`.
    """
    features = features or {}
    block = trained.node_type(ITEM)
    capacity = padded_size(block.count + room_for(new_items))
    graph, items = trained.catalog.graph, trained.catalog.items
    items = items.drop(name for name, values in features.items() if values.ndim == 2)
    empty = pl.DataFrame({name: [None] for name in items.columns}, schema=items.schema)
    table = pl.concat(
        [items, empty.select(pl.all().repeat_by(capacity - 1 - len(items)).explode())]
    )

    def padded(values: np.ndarray) -> np.ndarray:
        result = np.zeros((capacity, *values.shape[1:]), values.dtype)
        result[: len(values)] = values
        return result

    rows = ItemRows(
        vectors=_room(
            trained, f"items_{capacity}", lambda: padded(np.asarray(trained.items.vectors))
        ),
        text=_room(trained, f"text_{capacity}", lambda: padded(np.asarray(trained.text))),
        valid=padded(block.valid),
        bias=padded(trained.bias),
        counts=padded(trained.counts),
        groups={
            node_type.name: padded(first_neighbours(graph, node_type.name))[: capacity - 1]
            for node_type in graph.types
        },
        features={
            name: _room(trained, f"feature_{number}_{capacity}", partial(padded, values))
            for number, (name, values) in enumerate(features.items())
        },
    )
    return LiveIndex(
        catalog=Catalog(table, graph),
        vectors=trained.vectors,
        bias=rows.bias,
        text=rows.text,
        counts=rows.counts,
        mapped=trained.mapped,
        rows=rows,
        trained=trained,
        own_links=LiveLinks(trained.catalog),
        features=features,
    )


def _room(index: CatalogIndex, name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """A writable array; processes share the pages that none of them has changed."""
    if index.mapped is None:
        return compute()
    return index.mapped.array(name, compute, writable=True)
