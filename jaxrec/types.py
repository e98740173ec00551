"""Data types that the rooms exchange, and the letters of array shapes.

Each letter means one thing, in annotations, einsum strings and partition specs:

    B batch rows            T time steps         Q queries (rows to rank)
    D hidden size of one expert                  F width of the concatenated expert vectors
    I items, padded rows    N graph nodes        E edges                R relations
    U users                 M events             W packing windows
    L text tokens           V word pieces        H attention heads
    K candidates or top-k   P pool to choose from, longer than the list
    G sequence layers       C decay rates of the item memory            A ages of events
    S flattened state size  X entries of score adjustments

`text` is the width of a text vector, `types` the number of event types.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxrec.errors import InputError

if TYPE_CHECKING:
    import polars  # a machine that only computes need not have it

STATIC = {"static": True}  # metadata of a dataclass field that jit compares instead of tracing
PADDING_MULTIPLE = 256
NO_GAP = -1  # the time since the last event is unknown
MAX_GAP = 2**31 - 1  # seconds
ANY_EVENT_TYPE = -1  # as a target event type: the next event may be of any type
# The score of a masked item. It is finite because -inf - (-inf) is NaN: a softmax over masked items
# only, or the gradient of a masked score, would spread NaN.
NEG_INF = -1e30


def padded_size(count: int) -> int:
    """Round up a table's number of rows, so that every mesh divides it."""
    return -(-count // PADDING_MULTIPLE) * PADDING_MULTIPLE


@dataclass(frozen=True)
class EventLog:
    """All events, sorted by user and then by time (compressed sparse rows).

    The events of user u are `offsets[u] : offsets[u + 1]`. Item 0 is an item that is not in the
    catalogue.
    """

    user_ids: "polars.Series"  # U strings
    event_type_names: tuple[str, ...]
    offsets: Int[np.ndarray, " offsets"]  # U + 1
    items: Int[np.ndarray, " M"]
    event_types: Int[np.ndarray, " M"]  # positions in event_type_names
    times: Int[np.ndarray, " M"]  # seconds since 1970, or positions
    has_time: bool  # False: times are positions, so there are no gaps and no split by time

    @property
    def num_users(self) -> int:
        """Number of users, including those without events."""
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> Int[np.ndarray, " U"]:
        """Number of events of every user."""
        return np.diff(self.offsets)

    def users_at(self, numbers: Int[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
        """The user numbers of some events."""
        return np.searchsorted(self.offsets, numbers, side="right") - 1


@dataclass(frozen=True)
class NodeType:
    """The nodes of one type, such as brands, as a block of consecutive node ids.

    A node id is `offset` plus the local id. Local id 0 is the unknown node of the type. Rows from
    `count` to `padded_size` are unused.
    """

    name: str
    ids: "polars.Series"  # strings in the order of local ids; the first is null
    offset: int

    @property
    def count(self) -> int:
        """Number of nodes, including the unknown node, without padding."""
        return len(self.ids)

    @property
    def padded_size(self) -> int:
        """Number of rows of the block. The last row is always unused: padding refers to it."""
        return padded_size(self.count + 1)

    @property
    def valid(self) -> Bool[np.ndarray, " N"]:
        """True for rows of the block that hold a known node: neither row 0 nor padding."""
        rows = np.arange(self.padded_size)
        return (rows > 0) & (rows < self.count)


@dataclass(frozen=True)
class KnowledgeGraph:
    """A graph of typed nodes and typed, directed edges.

    Edge e goes from node `heads[e]` to node `tails[e]`; its relation is
    `relations[edge_relations[e]]`. The first node type is `item`, at offset 0. Reverse edges are
    not stored.
    """

    types: tuple[NodeType, ...]
    relations: tuple[str, ...]
    heads: Int[np.ndarray, " E"]  # node ids
    edge_relations: Int[np.ndarray, " E"]
    tails: Int[np.ndarray, " E"]

    @property
    def num_nodes(self) -> int:
        """Number of rows of the node table, including the padding of every type."""
        return self.types[-1].offset + self.types[-1].padded_size

    def type(self, name: str) -> NodeType:
        """The node type of a name; raises an InputError if the graph has no such type."""
        for node_type in self.types:
            if node_type.name == name:
                return node_type
        known = ", ".join(t.name for t in self.types)
        raise InputError(f"no node type {name!r} in the graph; it has {known}")


@dataclass(frozen=True)
class Catalog:
    """The items: their table, with all text columns, and their knowledge graph."""

    items: "polars.DataFrame"  # I rows in index order; row 0 is all null
    graph: KnowledgeGraph

    @property
    def item_ids(self) -> "polars.Series":
        """Item ids in index order; the first is null."""
        return self.items["item_id"]

    @property
    def num_items(self) -> int:
        """Number of items, including row 0, without padding."""
        return len(self.items)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Packed training sequences: a row holds several histories, one after another.

    Each time step reads one event and predicts the user's next event.
    """

    users: Int[Array | np.ndarray, "B T"]  # user numbers of the log
    items: Int[Array | np.ndarray, "B T"]  # item of the event; 0 at unused time steps
    event_types: Int[Array | np.ndarray, "B T"]
    gaps: Int[Array | np.ndarray, "B T"]  # seconds since the user's previous event, or NO_GAP
    starts: Bool[Array | np.ndarray, "B T"]  # the state is reset before this time step
    first_weights: Float[Array | np.ndarray, "B T"]  # target weight of a user's first event, else 0
    targets: Int[Array | np.ndarray, "B T"]  # item of the next event
    target_event_types: Int[Array | np.ndarray, "B T"]
    target_gaps: Int[Array | np.ndarray, "B T"]  # seconds to the next event, or NO_GAP
    weights: Float[Array | np.ndarray, "B T"]  # target weights; 0: the time step predicts nothing


@dataclass(frozen=True)
class Queries:
    """Moments of users to rank at: user `users[q]` after the events before `positions[q]`.

    In evaluation the event at that position is the target. The end of a history is a position too.
    """

    users: Int[np.ndarray, " Q"]  # user numbers of the log
    positions: Int[np.ndarray, " Q"]  # event numbers of the log

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, selected: Int[np.ndarray, " selected"] | slice) -> "Queries":
        return Queries(self.users[selected], self.positions[selected])

    def subsampled(self, limit: int) -> "Queries":
        """At most `limit` queries, evenly spaced."""
        if len(self) <= limit:
            return self
        return self[np.linspace(0, len(self) - 1, limit).astype(int)]
