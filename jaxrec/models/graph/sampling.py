"""Draws a part of the edges of a graph, so that a training step costs less."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import jraph
import numpy as np
from jaxtyping import Array, Int

from jaxrec.models.graph.message_passing import selected_edges
from jaxrec.partitioning import WHOLE, look_up
from jaxrec.types import STATIC


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
    starts: Int[Array, " starts"]  # place of the first edge of each group in `edges`, and E
    fan_out: int = field(metadata=STATIC)
    num_drawn: int = field(metadata=STATIC)  # edges to draw of all groups

    def sample(self, graph: jraph.GraphsTuple, key: Array) -> jraph.GraphsTuple:
        """A graph of the same nodes with `WeightedEdges`, sorted by receiver."""
        sizes = jnp.diff(self.starts)
        counts = jnp.minimum(sizes, self.fan_out)
        shifts = jax.random.randint(key, sizes.shape, 0, sizes)
        groups = jnp.repeat(jnp.arange(len(sizes)), counts, total_repeat_length=self.num_drawn)
        ranks = jnp.arange(self.num_drawn) - (jnp.cumsum(counts) - counts)[groups]
        places = (shifts[groups] + ranks) % sizes[groups]
        drawn = look_up(self.edges, self.starts[groups] + places, spec=WHOLE)
        return graph._replace(
            edges=selected_edges(graph.edges, drawn, (sizes / counts)[groups]),
            senders=look_up(graph.senders, drawn, spec=WHOLE),
            receivers=look_up(graph.receivers, drawn, spec=WHOLE),
            n_edge=jnp.array([self.num_drawn, 0]),
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
    starts = np.append(np.flatnonzero(is_first), len(edges))
    return EdgeSampler(
        edges=jnp.asarray(edges, jnp.int32),
        starts=jnp.asarray(starts, jnp.int32),
        fan_out=fan_out,
        num_drawn=int(np.minimum(np.diff(starts), fan_out).sum()),
    )
