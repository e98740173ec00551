"""Draws a part of the edges of a graph, so that a training step costs less."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import jraph
import numpy as np
from jaxtyping import Array, Float, Int

from jaxrec.models.graph.message_passing import selected_edges


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EdgeSampler:
    """Draws at most a fixed number of incoming edges of every relation of every node.

    This is the neighbour sampling of GraphSAGE (Hamilton et al., arXiv:1706.02216), with a fan-out
    for each relation, and without replacement. The edges of a node and a relation are a group. They
    stand in random order, and a draw takes consecutive ones from a random place on, in a circle. So
    all edges of a group are drawn equally often.

    An edge that is drawn stands for `size of the group / edges drawn` of them. With these weights,
    sums and means over the drawn edges are unbiased estimates of those over all edges.
    """

    edges: Int[Array, " E"]  # numbers of the edges, group after group
    starts: Int[Array, " groups"]  # place of the first edge of each group in `edges`
    sizes: Int[Array, " groups"]
    groups: Int[Array, " drawn"]  # group of each edge to draw
    ranks: Int[Array, " drawn"]  # its number among those of the group
    weights: Float[Array, " drawn"]

    def sample(self, graph: jraph.GraphsTuple, key: Array) -> jraph.GraphsTuple:
        """A graph of the same nodes with `WeightedEdges`, sorted by receiver."""
        shifts = jax.random.randint(key, self.sizes.shape, 0, self.sizes)
        places = (shifts[self.groups] + self.ranks) % self.sizes[self.groups]
        drawn = self.edges[self.starts[self.groups] + places]
        return graph._replace(
            edges=selected_edges(graph.edges, drawn, self.weights),
            senders=graph.senders[drawn],
            receivers=graph.receivers[drawn],
            n_edge=jnp.array([len(drawn), 0]),
        )


def edge_sampler(graph: jraph.GraphsTuple, fan_out: int, seed: int) -> EdgeSampler:
    """A sampler of `fan_out` edges of each node and relation.

    Args:
        graph: edges sorted by receiver; `graph.edges` holds relation numbers.
        seed: of the order of the edges of a group.
    """
    receivers, relations = np.asarray(graph.receivers), np.asarray(graph.edges)
    random = np.random.default_rng(seed).random(len(receivers))
    edges = np.lexsort((random, relations, receivers))
    pairs = np.stack([receivers, relations], 1)[edges]
    is_first = np.concatenate([[True], (pairs[1:] != pairs[:-1]).any(1)])
    starts = np.flatnonzero(is_first)
    sizes = np.diff(np.append(starts, len(edges)))
    drawn = np.minimum(sizes, fan_out)
    groups = np.repeat(np.arange(len(sizes)), drawn)
    ranks = np.arange(len(groups)) - np.repeat(np.cumsum(drawn) - drawn, drawn)
    return EdgeSampler(
        edges=jnp.asarray(edges, jnp.int32),
        starts=jnp.asarray(starts, jnp.int32),
        sizes=jnp.asarray(sizes, jnp.int32),
        groups=jnp.asarray(groups, jnp.int32),
        ranks=jnp.asarray(ranks, jnp.int32),
        weights=jnp.asarray((sizes / drawn)[groups], jnp.float32),
    )
