"""The step of message passing over a typed graph that all graph layers are built from.

Messages exist for one block of edges at a time and are computed again for the gradient. So memory
is that of the nodes, for any number of edges.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import jraph
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxrec.models.layers import Table
from jaxrec.partitioning import (
    BY_ITEM,
    WHOLE,
    by_column,
    divisible_rows,
    look_up,
    on_devices,
    shards,
    total,
    whole,
)
from jaxrec.runtime import target_platform
from jaxrec.sharding import ITEMS

Aggregate = Literal["sum", "mean", "max"]
Message = Callable[[Int[Array, " E"], Any], Any]
"""(relations, what the senders send) -> messages, for many edges at once."""


class WeightedEdges(NamedTuple):
    """Edges of a part of a graph, in place of the relation numbers in `GraphsTuple.edges`."""

    relations: Int[Array, "*blocks E"]
    weights: Float[Array, "*blocks E"]  # number of edges of the whole graph that each stands for;
    # 0 hides an edge


class DividedEdges(NamedTuple):
    """Edges that the devices along `items` divide, in place of `GraphsTuple.edges`.

    Message passing looks up one block of them at a time, so no device has room for all.
    """

    edges: WeightedEdges | Int[Array, " E"]


def divided(graph: jraph.GraphsTuple) -> jraph.GraphsTuple:
    """The graph with `DividedEdges`, if there are several devices along `items`.

    Devices then wait for one another at every block, so a training step gathers the edges.
    """
    return graph if shards(ITEMS) == 1 else graph._replace(edges=DividedEdges(graph.edges))


def gathered(graph: jraph.GraphsTuple) -> jraph.GraphsTuple:
    """The graph with all edges on each device."""
    if isinstance(graph.edges, DividedEdges):
        graph = graph._replace(edges=graph.edges.edges)
    return jax.tree.map(whole, graph)


def selected_edges(
    edges: WeightedEdges | Int[Array, " E"],
    numbers: Int[Array, " drawn"],
    weights: Float[Array, " drawn"],
) -> WeightedEdges:
    """Some edges with weights; an edge that has a weight already keeps it as a factor."""
    if isinstance(edges, WeightedEdges):
        relations, factors = (look_up(values, numbers, spec=WHOLE) for values in edges)
        return WeightedEdges(relations, weights * factors)
    return WeightedEdges(look_up(edges, numbers, spec=WHOLE), weights)


def message_passing(
    nodes: Float[Array, "N D"],
    graph: jraph.GraphsTuple,
    *,
    message: Message,
    update: Callable[[Float[Array, "N D"], Float[Array, "N D"]], Float[Array, "N D"]],
    aggregate: Aggregate,
) -> Float[Array, "N D"]:
    """h' = update(h, sum, mean or largest entries of the messages along the incoming edges).

    A node without incoming edges gathers zeros. Messages are computed entry by entry, so devices
    along `items` divide the columns: each reads all edges, and none waits for another.

    Args:
        graph: edges sorted by receiver; `graph.edges` holds relation numbers, `WeightedEdges` or
            `DividedEdges`.
        message: (relations, vectors of the senders) -> messages, for many edges at once.
        update: (vectors of the nodes, gathered messages) -> new vectors, for all nodes at once,
            by column.
    """
    nodes = by_column(nodes)
    match aggregate:
        case "sum":
            gathered = _sum(nodes, graph, message)
        case "mean":
            gathered = _sum(nodes, graph, message) / _degrees(nodes, graph)[:, None]
        case "max":
            gathered = _largest(nodes, graph, message)
    return update(nodes, gathered)


def attend(
    queries: Float[Array, "N H d"], sent: Any, graph: jraph.GraphsTuple, *, message: Message
) -> Float[Array, "N H d"]:
    """Multi-head attention of every node over its incoming edges; a head is d wide.

    Node i gathers sum_e a_e value_e over its incoming edges e, where a is the softmax of
    <query_i, key_e> / sqrt(d) over these edges. A node without incoming edges gathers zeros.

    Args:
        sent: arrays whose first axis is that of the nodes, such as their keys and values.
        graph: as in `message_passing`.
        message: (relations, `sent` of the senders) -> keys and values, both [E, H, d].
    """
    num_nodes, heads, width = queries.shape
    nodes = (queries, sent)

    def scored(edges: Any, senders: Any, receivers: Any) -> tuple[Array, Array]:
        keys, values = message(_relations(edges), senders[1])
        return jnp.sum(receivers[0] * keys, -1) * width**-0.5, values

    def raise_peaks(peaks: Array, messages: Any, block: jraph.GraphsTuple) -> Array:
        logits = jax.lax.stop_gradient(messages[0])
        return peaks.at[block.receivers].max(logits, indices_are_sorted=True)

    peaks = jnp.full((num_nodes, heads), -jnp.inf, queries.dtype)
    peaks = _over_blocks(nodes, graph, scored, raise_peaks, peaks)
    peaks = jnp.where(jnp.isfinite(peaks), peaks, 0)

    def add(total: Array, messages: Any, block: jraph.GraphsTuple) -> Array:
        logits, values = messages
        # an edge that fills up a block has no receiver, so no peak bounds its logit
        is_edge = (block.receivers < num_nodes)[:, None]
        shares = jnp.exp(jnp.where(is_edge, logits - peaks[block.receivers], 0))
        if isinstance(block.edges, WeightedEdges):
            shares *= block.edges.weights[:, None]
        shares = shares[..., None]
        summed = jnp.concatenate([shares * values, shares], -1)
        return total.at[block.receivers].add(summed, indices_are_sorted=True)

    # the last column sums the shares
    total = jnp.zeros((num_nodes, heads, width + 1), queries.dtype)
    total = _over_blocks(nodes, graph, scored, add, total)
    shares = total[..., -1:]  # at least 1 where there is an edge, from the peak itself
    return total[..., :-1] / jnp.where(shares > 0, shares, 1)


class RelationMessage(nnx.Module):
    """m = s_r * h + b_r for relation r, as in CompGCN (arXiv:1911.03082); the identity at first."""

    def __init__(self, num_relations: int, width: int):
        self.scale = Table(jnp.ones((num_relations, width)))
        self.shift = Table(jnp.zeros((num_relations, width)))

    def __call__(
        self, relations: Int[Array, "*edges"], senders: Float[Array, "*edges D"]
    ) -> Float[Array, "*edges D"]:
        """Messages along edges from the vectors of their senders."""
        return self.scale[...][relations] * senders + self.shift[...][relations]


def edges_at_a_time() -> int:
    """Edges of a block: on a CPU their messages fit its cache, an accelerator needs more work."""
    return 2**10 if target_platform() == "cpu" else 2**18


def edge_blocks(graph: jraph.GraphsTuple, num_nodes: int) -> jraph.GraphsTuple:
    """The edges as [blocks, block size]; no node receives the edges that fill up the last block."""
    num_edges = len(graph.receivers)
    size = min(edges_at_a_time(), num_edges)
    blocks = -(-num_edges // size)

    def cut(values: Array, fill: int = 0) -> Array:
        padded = jnp.pad(values, (0, blocks * size - num_edges), constant_values=fill)
        return padded.reshape(blocks, size)

    return graph._replace(
        edges=jax.tree.map(cut, graph.edges),
        senders=cut(graph.senders),
        receivers=cut(graph.receivers, num_nodes),  # out of bounds: JAX drops the update
        n_node=jnp.full((blocks, 1), num_nodes),
        n_edge=jnp.full((blocks, 1), size),
    )


def looked_up(
    graph: jraph.GraphsTuple, numbers: Int[Array, " block"], num_nodes: int
) -> jraph.GraphsTuple:
    """A block of `DividedEdges` by their numbers; no node receives an edge behind the last."""
    edges, senders, receivers = jax.tree.map(
        lambda values: look_up(values, numbers, spec=WHOLE),
        (graph.edges.edges, graph.senders, graph.receivers),
    )
    is_edge = numbers < len(graph.receivers)
    return graph._replace(
        edges=edges,
        senders=senders,
        receivers=jnp.where(is_edge, receivers, num_nodes),
        n_node=jnp.array([num_nodes]),
        n_edge=jnp.array([len(numbers)]),
    )


def _over_blocks(
    nodes: Any,
    graph: jraph.GraphsTuple,
    message: Callable[[Any, Any, Any], Any],
    combine: Callable[[Any, Any, jraph.GraphsTuple], Any],
    carry: Any,
) -> Any:
    """`carry = combine(carry, messages, block)` for one block of edges after another.

    Args:
        nodes: arrays whose first axis is that of the nodes.
        message: (edges, nodes of the senders, nodes of the receivers) -> messages.
        combine: must not need the old carry for its gradient, or all of them are kept.
    """
    network = jraph.GraphNetwork(
        update_edge_fn=lambda edges, senders, receivers, _: message(edges, senders, receivers),
        update_node_fn=None,
    )

    num_nodes, num_edges = len(jax.tree.leaves(nodes)[0]), len(graph.receivers)
    is_divided = isinstance(graph.edges, DividedEdges)

    @partial(jax.checkpoint, prevent_cse=False)  # inside a scan, XLA needs no such guard
    def step(carry: Any, block: Any) -> tuple[Any, None]:
        block = looked_up(graph, block, num_nodes) if is_divided else block
        messages = network(block._replace(nodes=nodes)).edges
        return combine(carry, messages, block), None

    if is_divided:
        size = min(edges_at_a_time(), num_edges)
        blocks: Any = jnp.arange(-(-num_edges // size) * size).reshape(-1, size)
    else:
        blocks = edge_blocks(graph, num_nodes)
    return jax.lax.scan(step, carry, blocks)[0]


def _sum(
    nodes: Float[Array, "N D"], graph: jraph.GraphsTuple, message: Message
) -> Float[Array, "N D"]:
    def add(total: Array, messages: Array, block: jraph.GraphsTuple) -> Array:
        if isinstance(block.edges, WeightedEdges):
            messages = messages * block.edges.weights[:, None]
        return total.at[block.receivers].add(messages, indices_are_sorted=True)

    return _over_blocks(nodes, graph, _sent(message), add, by_column(jnp.zeros_like(nodes)))


def _largest(
    nodes: Float[Array, "N D"], graph: jraph.GraphsTuple, message: Message
) -> Float[Array, "N D"]:
    """The largest entries of the messages to every node, column by column.

    The first pass finds the edge that each entry comes from; the second gathers the entries. So the
    gradient reaches those edges, and no pass keeps the running maxima of all blocks.
    """

    def numbers(first: Array, block: jraph.GraphsTuple) -> Int[Array, " E"]:
        return first + jnp.arange(len(block.receivers))

    def find(carry: Any, messages: Array, block: jraph.GraphsTuple) -> Any:
        peaks, origins, first = carry
        messages = jax.lax.stop_gradient(messages)
        if isinstance(block.edges, WeightedEdges):  # a hidden edge must not be the largest
            messages = jnp.where(block.edges.weights[:, None] > 0, messages, -jnp.inf)
        # the barrier makes both uses see the same rounding
        messages = jax.lax.optimization_barrier(messages)
        peaks = peaks.at[block.receivers].max(messages, indices_are_sorted=True)
        is_peak = (messages == peaks[block.receivers]) & (messages > -jnp.inf)
        # numbers increase, so an edge of a higher peak replaces those of a lower one
        candidates = jnp.where(is_peak, numbers(first, block)[:, None], -1)
        origins = origins.at[block.receivers].max(candidates, indices_are_sorted=True)
        return peaks, origins, first + len(block.receivers)

    def add(carry: Any, messages: Array, block: jraph.GraphsTuple) -> Any:
        total, first = carry
        chosen = origins[block.receivers] == numbers(first, block)[:, None]
        entries = jnp.where(chosen, messages, 0)
        total = total.at[block.receivers].add(entries, indices_are_sorted=True)
        return total, first + len(block.receivers)

    first = jnp.zeros((), jnp.int32)
    peaks, numbers_of, zeros = map(
        by_column,
        (jnp.full_like(nodes, -jnp.inf), jnp.full(nodes.shape, -1), jnp.zeros_like(nodes)),
    )
    origins = _over_blocks(nodes, graph, _sent(message), find, (peaks, numbers_of, first))[1]
    return _over_blocks(nodes, graph, _sent(message), add, (zeros, first))[0]


def _sent(message: Message) -> Callable[[Any, Any, Any], Any]:
    """A message that does not look at its receiver, as `_over_blocks` takes it."""
    return lambda edges, senders, receivers: message(_relations(edges), senders)


def _relations(edges: Any) -> Int[Array, "*blocks E"]:
    return edges.relations if isinstance(edges, WeightedEdges) else edges


def _degrees(nodes: Float[Array, "N D"], graph: jraph.GraphsTuple) -> Float[Array, " N"]:
    """The number of incoming edges of every node, at least 1."""
    receivers, is_divided = graph.receivers, isinstance(graph.edges, DividedEdges)
    edges = graph.edges.edges if is_divided else graph.edges
    ones = jnp.ones_like(nodes, shape=receivers.shape)
    weights = edges.weights if isinstance(edges, WeightedEdges) else ones

    def summed(weights: Array, receivers: Array) -> Array:
        sums = jraph.segment_sum(weights, receivers, len(nodes), indices_are_sorted=True)
        return total(sums, ITEMS) if is_divided else sums

    if is_divided:
        weights, receivers = divisible_rows(weights), divisible_rows(receivers, len(nodes))
        summed = on_devices(summed, BY_ITEM, WHOLE)
    return jnp.maximum(summed(weights, receivers), 1)
