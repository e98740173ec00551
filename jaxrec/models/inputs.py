"""The inputs of a model: its sizes, the nodes of a graph, and events."""

from dataclasses import dataclass, field

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Shaped


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


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Events:
    """B sequences of T events."""

    items: Int[Array | np.ndarray, "B T"]
    event_types: Int[Array | np.ndarray, "B T"]
    gaps: Int[Array | np.ndarray, "B T"]  # seconds since the previous event; negative if unknown
