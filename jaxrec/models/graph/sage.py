"""The layer of GraphSAGE."""

import jraph
from flax import nnx
from jaxtyping import Array, Float

from jaxrec.models.graph.message_passing import Aggregate, RelationMessage, message_passing
from jaxrec.models.layers import product, unit_norm
from jaxrec.partitioning import to_columns, to_rows


class SAGELayer(nnx.Module):
    """h' = W_self h + W_neighbours g + b, where g gathers the messages (Hamilton et al. 2017).

    With the aggregate "max", neighbours send relu(W_pool h + b_pool): the max-pooling aggregator of
    arXiv:1706.02216, section 3.3.

    Args:
        normalize: divide the vectors by their lengths, as in line 7 of Algorithm 1.
        activate: apply a ReLU; between layers, not after the last one.
    """

    def __init__(
        self,
        width: int,
        num_relations: int,
        aggregate: Aggregate,
        rngs: nnx.Rngs,
        *,
        normalize: bool = False,
        activate: bool = False,
    ):
        self.message = RelationMessage(num_relations, width)
        self.pool = nnx.Linear(width, width, rngs=rngs) if aggregate == "max" else None
        self.own = nnx.Linear(width, width, rngs=rngs)
        self.neighbours = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.aggregate: Aggregate = aggregate
        self.normalize, self.activate = normalize, activate

    def __call__(self, nodes: Float[Array, "N D"], graph: jraph.GraphsTuple) -> Float[Array, "N D"]:
        """New vectors of all nodes."""
        sent = nodes
        if self.pool is not None:
            sent = to_columns(nnx.relu(product(self.pool, to_rows(nodes))))
        return message_passing(
            sent,
            graph,
            message=self.message,
            update=lambda _, gathered: self.update(nodes, gathered),
            aggregate=self.aggregate,
        )

    def update(
        self, nodes: Float[Array, "N D"], gathered: Float[Array, "N D"]
    ) -> Float[Array, "N D"]:
        """W_self h + W_neighbours g + b, then the ReLU and the division by the length."""
        nodes, gathered = to_rows(nodes), to_rows(gathered)
        nodes = product(self.own, nodes) + product(self.neighbours, gathered)
        nodes = nnx.relu(nodes) if self.activate else nodes
        return to_columns(unit_norm(nodes) if self.normalize else nodes)
