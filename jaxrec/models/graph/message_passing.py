"""One step of message passing over a typed graph; the graph layers are built from it."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import jraph
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxrec.models.layers import Table

Aggregate = Literal["sum", "mean"]


def message_passing(
    nodes: Float[Array, "N D"],
    graph: jraph.GraphsTuple,
    *,
    message: Callable[[Int[Array, " E"], Float[Array, "E D"]], Float[Array, "E D"]],
    update: Callable[[Float[Array, "N D"], Float[Array, "N D"]], Float[Array, "N D"]],
    aggregate: Aggregate,
) -> Float[Array, "N D"]:
    """h' = update(h, sum or mean of the messages along the incoming edges).

    Messages exist for one block of edges at a time and are computed again for the gradient, so
    that memory is [N, D] for any number of edges.

    Args:
        graph: edges sorted by receiver; `graph.edges` holds relation numbers.
        message: (relation, vector of the sender) -> message, for many edges at once.
        update: (vector of the node, gathered messages) -> new vector, for all nodes at once.
    """

    @partial(jax.checkpoint, prevent_cse=False)  # inside a scan, XLA needs no such guard
    def gather_block(gathered, edges):
        network = jraph.GraphNetwork(
            update_edge_fn=lambda relations, senders, receivers, _: message(relations, senders),
            update_node_fn=lambda nodes, sent, received, _: received,
            aggregate_edges_for_nodes_fn=lambda messages, receivers, _: gathered.at[receivers].add(
                messages, indices_are_sorted=True
            ),
        )
        return network(edges._replace(nodes=nodes)).nodes, None

    gathered, _ = jax.lax.scan(gather_block, jnp.zeros_like(nodes), edge_blocks(graph, len(nodes)))
    if aggregate == "mean":
        ones = jnp.ones_like(nodes, shape=graph.receivers.shape)
        degrees = jraph.segment_sum(ones, graph.receivers, len(nodes), indices_are_sorted=True)
        gathered /= jnp.maximum(degrees, 1)[:, None]
    return update(nodes, gathered)


def edges_at_a_time(backend: str = "") -> int:
    """Edges of a block: on a CPU their messages fit its cache, an accelerator needs more work."""
    return 2**10 if (backend or jax.default_backend()) == "cpu" else 2**18


def edge_blocks(graph: jraph.GraphsTuple, num_nodes: int) -> jraph.GraphsTuple:
    """The edges as [blocks, block size]; no node receives the edges that fill up the last block."""
    num_edges = len(graph.receivers)
    size = min(edges_at_a_time(), num_edges)
    blocks = -(-num_edges // size)

    def cut(ids: Int[Array, " E"], fill: int) -> Int[Array, "blocks size"]:
        padded = jnp.pad(ids, (0, blocks * size - num_edges), constant_values=fill)
        return padded.reshape(blocks, size)

    return graph._replace(
        edges=cut(graph.edges, 0),
        senders=cut(graph.senders, 0),
        receivers=cut(graph.receivers, num_nodes),  # out of bounds: JAX drops the update
        n_node=jnp.full((blocks, 1), num_nodes),
        n_edge=jnp.full((blocks, 1), size),
    )


class RelationMessage(nnx.Module):
    """m = s_r * h + b_r for relation r, as in CompGCN (arXiv:1911.03082); the identity at first."""

    def __init__(self, num_relations: int, width: int):
        self.scale = Table(jnp.ones((num_relations, width)))
        self.shift = Table(jnp.zeros((num_relations, width)))

    def __call__(
        self, relations: Int[Array, " E"], senders: Float[Array, "E D"]
    ) -> Float[Array, "E D"]:
        """Messages along E edges from the vectors of their senders."""
        return self.scale[...][relations] * senders + self.shift[...][relations]
