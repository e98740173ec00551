"""The values that modules hand to each other, and the dimension key.

Letters in annotations, einsum strings and partition specs:

    B rows    T time slots   D width       U users    M events
    I items   N nodes        E edges       R relations
    L text tokens            V word pieces H heads    K candidates
"""

from dataclasses import dataclass
from functools import cached_property

import jax
import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int

PADDING_MULTIPLE = 256
NO_GAP = -1
MAX_GAP = 2**31 - 1  # seconds
ANY_EVENT_TYPE = -1
# The score of a masked item. It is finite because -inf - (-inf) is NaN: a softmax over masked items
# only, or the gradient of a masked score, would spread NaN.
NEG_INF = -1e30


def padded_size(count: int) -> int:
    """Rows to allocate for `count` rows, so that any mesh divides every table."""
    return -(-count // PADDING_MULTIPLE) * PADDING_MULTIPLE


@dataclass(frozen=True)
class EventLog:
    """Every user's events in time order, users one after another (CSR).

    Item 0 stands for an item that the catalogue does not know.
    """

    user_ids: pl.Series  # U strings
    event_type_names: tuple[str, ...]
    offsets: Int[np.ndarray, "U+1"]
    items: Int[np.ndarray, " M"]
    event_types: Int[np.ndarray, " M"]  # positions in event_type_names
    times: Int[np.ndarray, " M"]  # seconds since the epoch, or positions
    has_time: bool  # False: times are positions; no gaps, no time split

    @property
    def num_users(self) -> int:
        """Users, with or without events."""
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> Int[np.ndarray, " U"]:
        """Events of every user."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class NodeType:
    """A block of graph nodes: node id = offset + local id; local id 0 is `unknown`."""

    name: str
    ids: pl.Series  # strings; the first is null
    offset: int

    @property
    def count(self) -> int:
        """Nodes including `unknown`, without the unused capacity."""
        return len(self.ids)

    @property
    def padded_size(self) -> int:
        """Rows of the block; the last one is never a real node, so that padding can use it."""
        return padded_size(self.count + 1)

    @property
    def valid(self) -> Bool[np.ndarray, " n"]:
        """Rows of the block that are nodes: neither `unknown` nor unused capacity."""
        rows = np.arange(self.padded_size)
        return (rows > 0) & (rows < self.count)


@dataclass(frozen=True)
class KnowledgeGraph:
    """Typed nodes and forward edges. The first type is `item`, at offset 0."""

    types: tuple[NodeType, ...]
    relations: tuple[str, ...]
    heads: Int[np.ndarray, " E"]  # node ids
    edge_relations: Int[np.ndarray, " E"]
    tails: Int[np.ndarray, " E"]

    @property
    def num_nodes(self) -> int:
        """Nodes including the unused capacity of every type."""
        return self.types[-1].offset + self.types[-1].padded_size

    def type(self, name: str) -> NodeType:
        """The block of nodes of that name; raises a ValueError that lists the types."""
        for node_type in self.types:
            if node_type.name == name:
                return node_type
        known = ", ".join(t.name for t in self.types)
        raise ValueError(f"no node type {name!r} in the graph; it has {known}")


@dataclass(frozen=True)
class Catalog:
    """What is known of the items: their table, their graph and their text."""

    items: pl.DataFrame  # I rows in index order; row 0 is all null
    graph: KnowledgeGraph

    @property
    def item_ids(self) -> pl.Series:
        """Ids in index order; the first is null."""
        return self.items["item_id"]

    @property
    def num_items(self) -> int:
        """Items including row 0, without the unused capacity."""
        return len(self.items)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Packed sequences: every row holds several, one after another."""

    users: Int[np.ndarray, "B T"]  # user numbers of the log
    items: Int[np.ndarray, "B T"]  # the event that is read; 0 in unused slots
    event_types: Int[np.ndarray, "B T"]
    gaps: Int[np.ndarray, "B T"]  # seconds since the event before; NO_GAP if none is known
    starts: Bool[np.ndarray, "B T"]  # the state is reset before this slot
    firsts: Float[np.ndarray, "B T"]  # weight of a user's first event as a target, else 0
    targets: Int[np.ndarray, "B T"]  # the item of the event after
    target_event_types: Int[np.ndarray, "B T"]
    target_gaps: Int[np.ndarray, "B T"]  # seconds from the event that is read to its target
    weights: Float[np.ndarray, "B T"]  # 0: the slot has no target


@dataclass(frozen=True)
class Queries:
    """Positions of a log to predict: the target is event `positions[q]`,
    the history all events of the same user before it."""

    users: Int[np.ndarray, " Q"]
    positions: Int[np.ndarray, " Q"]

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, chosen: Int[np.ndarray, " q"]) -> "Queries":
        return Queries(self.users[chosen], self.positions[chosen])
