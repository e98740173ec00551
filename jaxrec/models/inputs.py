"""The inputs of a model: its sizes, the nodes of a graph, and events."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from jaxrec.partitioning import by_column, to_columns, to_rows
from jaxrec.types import STATIC


@dataclass(frozen=True)
class Sizes:
    """Sizes that the data set decides."""

    num_items: int  # padded rows of the item block
    num_nodes: int  # padded rows of all node types
    num_relations: int  # without their reverses
    num_event_types: int
    text_width: int
    vectors: tuple[tuple[str, int], ...] = ()  # columns of vectors, and the widths of the inputs
    numbers: tuple[str, ...] = ()  # numeric columns
    num_ids: int = 0  # padded rows of the id tables; 0: one for every row of the item block


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Nodes:
    """The nodes of a graph, items first; it may be larger than the graph of training.

    An id is a row of a learned table: the node's own row, or the row of its type's `unknown`.
    """

    items: Int[Array, " I"]  # ids of the items
    entities: Int[Array, " entities"]  # ids of all other nodes
    text: Float[Array, "I text"]  # whitened text vectors of the items; zero where unknown
    # by column: vectors [I, D] and bins of numbers [I], as `FeatureMaps.apply` gives them
    features: dict[str, Shaped[Array, "I ..."]] = field(default_factory=dict)
    # whether the id of item i is i or 0, as in the catalogue of training; else it may be any
    own_ids: bool = field(default=False, metadata=STATIC)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NodeVectors:
    """Vectors of all nodes, items first.

    Along `items` those of items and of the other nodes are two arrays that lie by row: one array
    could not be cut without moving its rows to other devices.
    """

    arrays: tuple[Float[Array, "_ D"], ...]
    num_items: int = field(metadata=STATIC)

    @property
    def items(self) -> Float[Array, "I D"]:
        """Vectors of the items, by row."""
        return self.arrays[0][: self.num_items]

    def of_items(self, nodes: Int[Array, " K"]) -> Float[Array, "K D"]:
        """Vectors of some items, by row."""
        return self._rows(0, nodes)

    def of_entities(self, nodes: Int[Array, " K"]) -> Float[Array, "K D"]:
        """Vectors of some nodes that are not items, by row."""
        return self._rows(-1, nodes)

    def of_nodes(self, nodes: Int[Array, " K"]) -> Float[Array, "K D"]:
        """Vectors of any nodes, by column."""
        if len(self.arrays) == 1:
            return self.arrays[0][nodes]
        return by_column(jnp.concatenate([to_columns(part) for part in self.arrays])[nodes])

    def _rows(self, place: int, nodes: Int[Array, " K"]) -> Float[Array, "K D"]:
        if len(self.arrays) == 1:
            return self.arrays[0][nodes]
        rows = nodes if place == 0 else nodes - self.num_items
        return to_rows(by_column(to_columns(self.arrays[place])[rows]))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Events:
    """B sequences of T events."""

    items: Int[Array | np.ndarray, "B T"]
    event_types: Int[Array | np.ndarray, "B T"]
    gaps: Int[Array | np.ndarray, "B T"]  # seconds since the previous event; negative if unknown
