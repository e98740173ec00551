"""A bidirectional transformer over what is known of a node: itself, its text, its neighbours."""

from functools import partial

import jax
import jax.numpy as jnp
import jraph
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxrec.config import ModelConfig
from jaxrec.models.graph.message_passing import RelationMessage, WeightedEdges, gathered
from jaxrec.models.layers import normal_table, product
from jaxrec.models.transformer import TransformerBlock
from jaxrec.partitioning import by_column, whole
from jaxrec.runtime import target_platform

NODE, TEXT, NEIGHBOUR = range(3)  # types of tokens


class ContextEncoder(nnx.Module):
    """Vectors of nodes from one short sequence each.

    The first token is the node itself. The vector of its text follows, where the expert reads text
    and the node is an item. Then come its neighbours, each under its relation. A token is the sum
    of its vector and an embedding of its type, normalised as in BERT. All tokens see each other.
    The output is a linear map of the first position.

    A node with more neighbours than `model.context_neighbours` reads the first ones in the order of
    its edges: those with the fewest edges of their own, which tell most (Adamic & Adar 2003).

    Raises:
        ConfigError: the number of heads does not divide the width.
    """

    def __init__(self, config: ModelConfig, num_relations: int, rngs: nnx.Rngs):
        width = config.hidden_size
        self.num_neighbours = config.context_neighbours
        self.message = RelationMessage(num_relations, width)
        self.token_type_table = normal_table(3, width, rngs)
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.blocks = nnx.List(
            TransformerBlock(
                width, config.graph_heads, 2 * width, norm="pre", dtype=None, rngs=rngs
            )
            for _ in range(config.context_layers)
        )
        self.output_norm = nnx.LayerNorm(width, rngs=rngs)
        self.output = nnx.Linear(width, width, rngs=rngs)

    def __call__(
        self,
        nodes: Float[Array, "N D"],
        graph: jraph.GraphsTuple,
        text: Float[Array, "I D"] | None = None,
    ) -> Float[Array, "N D"]:
        """Vectors of all nodes, in the dtype of `nodes`.

        Sequences exist for one block of nodes at a time and are computed again for the gradient.
        Every device reads and encodes all nodes, as any of them may be a neighbour.

        Args:
            graph: edges sorted by receiver, the most informative first; `graph.edges` holds
                relation numbers, `WeightedEdges` where some edges are hidden, or `DividedEdges`.
            text: vectors of the texts of the items, which are the first nodes.
        """
        nodes, text = whole(nodes), None if text is None else whole(text)
        graph = gathered(graph)
        size = min(nodes_at_a_time(), len(nodes))
        blocks = -(-len(nodes) // size)
        numbers = jnp.arange(blocks * size).reshape(blocks, size)

        @partial(jax.checkpoint, prevent_cse=False)  # inside a scan, XLA needs no such guard
        def encode(_: None, rows: Int[Array, " n"]) -> tuple[None, Float[Array, "n D"]]:
            return None, self.encode(rows, nodes, graph, text)

        # rows beyond the last node repeat it
        _, vectors = jax.lax.scan(encode, None, jnp.minimum(numbers, len(nodes) - 1))
        return by_column(vectors.reshape(blocks * size, -1)[: len(nodes)])

    def encode(
        self,
        rows: Int[Array, " n"],
        nodes: Float[Array, "N D"],
        graph: jraph.GraphsTuple,
        text: Float[Array, "I D"] | None,
    ) -> Float[Array, "n D"]:
        """Vectors of some nodes."""
        tokens, mask = self.tokens(rows, nodes, graph, text)
        hidden = self.norm(tokens).astype(self.output.kernel[...].dtype)
        for number, block in enumerate(self.blocks, 1):
            # of the last block, only the position of the node is read
            first = 1 if number == len(self.blocks) else None
            hidden = block(hidden, mask[:, None, None], first)
        return product(self.output, self.output_norm(hidden[:, 0]).astype(nodes.dtype))

    def tokens(
        self,
        rows: Int[Array, " n"],
        nodes: Float[Array, "N D"],
        graph: jraph.GraphsTuple,
        text: Float[Array, "I D"] | None,
    ) -> tuple[Float[Array, "n L D"], Bool[Array, "n L"]]:
        """The sequences of some nodes, and which of their positions hold a token."""
        begin = jnp.searchsorted(graph.receivers, rows)
        end = jnp.searchsorted(graph.receivers, rows, side="right")
        places = begin[:, None] + jnp.arange(self.num_neighbours)[None]
        is_edge = places < end[:, None]
        edges = jnp.minimum(places, len(graph.receivers) - 1)
        relations = graph.edges
        if isinstance(relations, WeightedEdges):
            is_edge &= relations.weights[edges] > 0
            relations = relations.relations
        neighbours = self.message(relations[edges], nodes[graph.senders[edges]])
        types = self.token_type_table[...][:, None, None]
        parts = [(nodes[rows][:, None] + types[NODE], jnp.ones((len(rows), 1), bool))]
        if text is not None:
            vectors = text[jnp.minimum(rows, len(text) - 1)][:, None]
            parts.append((vectors + types[TEXT], (rows < len(text))[:, None]))
        parts.append((neighbours + types[NEIGHBOUR], is_edge))
        tokens, masks = zip(*parts, strict=True)
        return jnp.concatenate(tokens, 1), jnp.concatenate(masks, 1)


def nodes_at_a_time() -> int:
    """Nodes of a block: on a CPU a block fits its cache, an accelerator needs more work."""
    return 2**7 if target_platform() == "cpu" else 2**14
