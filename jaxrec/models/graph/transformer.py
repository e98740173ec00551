"""A transformer layer over the edges of a typed graph."""

import jraph
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxrec.models.graph.message_passing import RelationMessage, attend
from jaxrec.models.layers import product
from jaxrec.models.transformer import MLP
from jaxrec.partitioning import to_columns, to_rows


class GraphTransformerLayer(nnx.Module):
    """h <- h + W_o Attention(Norm h); h <- h + MLP(Norm h).

    Every node attends to its incoming edges. Keys and values depend on the relation, as in the
    heterogeneous graph transformer (Hu et al., arXiv:2003.01332), but by a scale and a shift
    instead of a matrix, so that rare relations can be learned. Without relations the attention is
    that of Shi et al. (arXiv:2009.03509, TransformerConv).

    Raises:
        ConfigError: the number of heads does not divide the width.
    """

    def __init__(self, width: int, num_relations: int, heads: int, rngs: nnx.Rngs):
        self.heads = heads
        self.attention_norm = nnx.LayerNorm(width, rngs=rngs)
        self.query = nnx.Linear(width, width, rngs=rngs)
        self.key = nnx.Linear(width, width, rngs=rngs)
        self.value = nnx.Linear(width, width, rngs=rngs)
        self.key_message = RelationMessage(num_relations, width)
        self.value_message = RelationMessage(num_relations, width)
        self.out = nnx.Linear(width, width, rngs=rngs)
        self.mlp_norm = nnx.LayerNorm(width, rngs=rngs)
        self.mlp = MLP(width, 2 * width, dtype=None, rngs=rngs)

    def __call__(self, nodes: Float[Array, "N D"], graph: jraph.GraphsTuple) -> Float[Array, "N D"]:
        """New vectors of all nodes."""
        nodes = to_rows(nodes)
        hidden = self.attention_norm(nodes)
        layers = (self.query, self.key, self.value)
        # no device needs a part of a head
        queries, keys, values = (to_columns(self.by_head(product(x, hidden))) for x in layers)
        sent = (keys.reshape(nodes.shape), values.reshape(nodes.shape))
        gathered = attend(queries, sent, graph, message=self.message)
        return to_columns(self.update(nodes, to_rows(gathered).reshape(nodes.shape)))

    def message(
        self, relations: Int[Array, " E"], sent: tuple[Float[Array, "E D"], Float[Array, "E D"]]
    ) -> tuple[Float[Array, "E H d"], Float[Array, "E H d"]]:
        """Keys and values along E edges."""
        keys = self.key_message(relations, sent[0])
        values = self.value_message(relations, sent[1])
        return self.by_head(keys), self.by_head(values)

    def update(
        self, nodes: Float[Array, "N D"], gathered: Float[Array, "N D"]
    ) -> Float[Array, "N D"]:
        """The residual connections around attention and MLP."""
        nodes = nodes + product(self.out, gathered)
        hidden = self.mlp_norm(nodes).astype(self.mlp.up.kernel[...].dtype)
        return nodes + self.mlp(hidden).astype(nodes.dtype)

    def by_head(self, vectors: Float[Array, "rows D"]) -> Float[Array, "rows H d"]:
        """Vectors cut into one part per head."""
        return vectors.reshape(len(vectors), self.heads, -1)
