"""A graph layer that adds averages over the neighbourhoods of the neighbours."""

from functools import partial

import jax.numpy as jnp
import jraph
from flax import nnx
from jaxtyping import Array, Float

from jaxrec.models.graph.message_passing import Aggregate, RelationMessage, message_passing


class ResidualLayer(nnx.Module):
    """H' = H + alpha A D^-1 A H, with A the adjacency matrix and D the degrees."""

    def __init__(self, width: int, num_relations: int, aggregate: Aggregate):
        self.message = RelationMessage(num_relations, width)
        self.alpha = nnx.Param(jnp.full((), 0.1, jnp.float32))
        self.aggregate: Aggregate = aggregate

    def __call__(self, nodes: Float[Array, "N D"], graph: jraph.GraphsTuple) -> Float[Array, "N D"]:
        """New vectors of all nodes."""
        gather = partial(
            message_passing, graph=graph, message=self.message, update=lambda _, gathered: gathered
        )
        averages = gather(nodes, aggregate="mean")
        return nodes + self.alpha[...] * gather(averages, aggregate=self.aggregate)
