"""Message passing over a typed graph: one general step, of which the layers are update rules."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import jraph
from flax import nnx
from jaxtyping import Array, Float, Int

Aggregate = Literal["sum", "mean"]


def message_passing(
    nodes: Float[Array, "N D"],
    graph: jraph.GraphsTuple,
    *,
    message: Callable[[Int[Array, " E"], Float[Array, "E D"]], Float[Array, "E D"]],
    update: Callable[[Float[Array, "N D"], Float[Array, "N D"]], Float[Array, "N D"]],
    aggregate: Aggregate,
) -> Float[Array, "N D"]:
    """Send `message(relation, sender)` along every edge; `update(node, gathered)` every node.

    Messages are there for one block of edges at a time, and are formed again for the gradient, so
    that memory is [N, D] however many the edges are.

    Args:
        graph: edges hold relation ids and are sorted by receiver.
    """

    @partial(jax.checkpoint, prevent_cse=False)  # a scan needs no such prevention
    def send_block(gathered, edges):
        network = jraph.GraphNetwork(
            update_edge_fn=lambda relations, senders, receivers, _: message(relations, senders),
            update_node_fn=lambda nodes, sent, received, _: received,
            aggregate_edges_for_nodes_fn=lambda messages, ends, _: gathered.at[ends].add(
                messages, indices_are_sorted=True
            ),
        )
        return network(edges._replace(nodes=nodes)).nodes, None

    gathered, _ = jax.lax.scan(send_block, jnp.zeros_like(nodes), edge_blocks(graph, len(nodes)))
    if aggregate == "mean":
        sent = jnp.ones_like(nodes, shape=graph.receivers.shape)
        degrees = jraph.segment_sum(sent, graph.receivers, len(nodes), indices_are_sorted=True)
        gathered /= jnp.maximum(degrees, 1)[:, None]
    return update(nodes, gathered)


def edges_at_a_time(backend: str = "") -> int:
    """As many as have their messages in a processor's cache, or are work for an accelerator."""
    return 2**10 if (backend or jax.default_backend()) == "cpu" else 2**18


def edge_blocks(graph: jraph.GraphsTuple, num_nodes: int) -> jraph.GraphsTuple:
    """The edges as blocks [n, B]; those that fill the last one are received by no node."""
    num_edges = len(graph.receivers)
    size = min(edges_at_a_time(), num_edges)
    blocks = -(-num_edges // size)

    def cut(ids: Int[Array, " E"], fill: int) -> Int[Array, "n B"]:
        padded = jnp.pad(ids, (0, blocks * size - num_edges), constant_values=fill)
        return padded.reshape(blocks, size)

    return graph._replace(
        edges=cut(graph.edges, 0),
        senders=cut(graph.senders, 0),
        receivers=cut(graph.receivers, num_nodes),  # beyond the last one: dropped
        n_node=jnp.full((blocks, 1), num_nodes),
        n_edge=jnp.full((blocks, 1), size),
    )


class RelationMessage(nnx.Module):
    """m = s_r * h + b_r: the composition of CompGCN (arXiv:1911.03082), begun as the identity."""

    def __init__(self, num_relations: int, width: int):
        self.scale = nnx.Param(jnp.ones((num_relations, width)))
        self.shift = nnx.Param(jnp.zeros((num_relations, width)))

    def __call__(
        self, relations: Int[Array, " E"], senders: Float[Array, "E D"]
    ) -> Float[Array, "E D"]:
        """Messages along E edges from the vectors of their senders."""
        return self.scale[...][relations] * senders + self.shift[...][relations]


class GINLayer(nnx.Module):
    """h' = MLP((1 + eps) h + sum of messages) (arXiv:1810.00826).

    The MLP normalises over features in place of the batch, which would be mutable state.
    """

    def __init__(self, width: int, num_relations: int, aggregate: Aggregate, rngs: nnx.Rngs):
        self.message = RelationMessage(num_relations, width)
        self.epsilon = nnx.Param(jnp.zeros(()))
        self.hidden = nnx.Linear(width, width, rngs=rngs)
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.output = nnx.Linear(width, width, rngs=rngs)
        self.aggregate: Aggregate = aggregate

    def __call__(self, nodes: Float[Array, "N D"], graph: jraph.GraphsTuple) -> Float[Array, "N D"]:
        """New vectors of all nodes."""

        def update(
            nodes: Float[Array, "N D"], gathered: Float[Array, "N D"]
        ) -> Float[Array, "N D"]:
            mixed = (1 + self.epsilon[...]) * nodes + gathered
            hidden = self.hidden(mixed.astype(self.hidden.kernel[...].dtype))
            return self.output(nnx.relu(self.norm(hidden))).astype(nodes.dtype)

        return message_passing(
            nodes, graph, message=self.message, update=update, aggregate=self.aggregate
        )


class ResidualLayer(nnx.Module):
    """H' = H + alpha A D^-1 A H: what the neighbours' neighbourhoods are on average."""

    def __init__(self, width: int, num_relations: int, aggregate: Aggregate, rngs: nnx.Rngs):
        del rngs
        self.message = RelationMessage(num_relations, width)
        self.alpha = nnx.Param(jnp.full((), 0.1, jnp.float32))
        self.aggregate: Aggregate = aggregate

    def __call__(self, nodes: Float[Array, "N D"], graph: jraph.GraphsTuple) -> Float[Array, "N D"]:
        """New vectors of all nodes."""
        send = partial(message_passing, graph=graph, message=self.message)
        averages = send(nodes, update=lambda _, gathered: gathered, aggregate="mean")
        gathered = send(averages, update=lambda _, gathered: gathered, aggregate=self.aggregate)
        return nodes + self.alpha[...] * gathered


class GraphEncoder(nnx.Module):
    """Layers of one event_type; a node's vector is the sum over the layers' outputs.

    The sum is the jumping-knowledge read-out of GIN (section 4.2), so that one layer more never
    hides what a layer before has found.
    """

    def __init__(
        self,
        layer: Literal["gin", "residual"],
        num_layers: int,
        width: int,
        num_relations: int,
        aggregate: Aggregate,
        rngs: nnx.Rngs,
    ):
        build = GINLayer if layer == "gin" else ResidualLayer
        self.layers = nnx.List(
            [build(width, num_relations, aggregate, rngs) for _ in range(num_layers)]
        )

    def __call__(self, nodes: Float[Array, "N D"], graph: jraph.GraphsTuple) -> Float[Array, "N D"]:
        """Vectors of all nodes from their features."""
        total = jnp.zeros_like(nodes)
        for layer in self.layers:
            nodes = layer(nodes, graph)
            total = total + nodes
        return total
