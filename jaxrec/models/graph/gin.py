"""The layer of the Graph Isomorphism Network."""

import jax.numpy as jnp
import jraph
from flax import nnx
from jaxtyping import Array, Float

from jaxrec.models.graph.message_passing import Aggregate, RelationMessage, message_passing
from jaxrec.partitioning import to_columns, to_rows


class GINLayer(nnx.Module):
    """h' = MLP((1 + eps) h + sum of messages) (Xu et al., arXiv:1810.00826).

    The MLP holds a LayerNorm where GIN has a BatchNorm, whose statistics are mutable state.
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
        return message_passing(
            nodes, graph, message=self.message, update=self.update, aggregate=self.aggregate
        )

    def update(
        self, nodes: Float[Array, "N D"], gathered: Float[Array, "N D"]
    ) -> Float[Array, "N D"]:
        """MLP((1 + eps) h + gathered messages)."""
        combined = to_rows((1 + self.epsilon[...]) * nodes + gathered)
        hidden = self.hidden(combined.astype(self.hidden.kernel[...].dtype))
        return to_columns(self.output(nnx.relu(self.norm(hidden))).astype(nodes.dtype))
