"""Items and the other nodes of the graph -> vectors."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
import jraph
from flax import nnx
from jaxtyping import Array, Float

from jaxrec.models.graph.context import ContextEncoder
from jaxrec.models.graph.encoder import GraphEncoder
from jaxrec.models.inputs import Nodes
from jaxrec.models.items.text import TextSource
from jaxrec.models.layers import Table, unit_norm


@runtime_checkable
class ItemSource(Protocol):
    """One kind of knowledge about items, such as ids or texts -> vectors.

    To add a source, write an `nnx.Module` with this method in a file beside this one, then add its
    name and its case to `jaxrec/models/items/build.py`. A source named `stock` is selected by
    `--model.experts stock+graph`. The raw features that it reads are a field of `Nodes`.
    """

    def __call__(self, nodes: Nodes, key: Array | None) -> Float[Array, "I D"]:
        """The source's part of the items' features; the features are the sum over the sources.

        Row i depends on item i alone. Row 0 is the unknown item. The last rows are padding: they
        hold any finite values.

        Args:
            key: a random key in training, None at inference. All sources get the same key: pass it
                through `jax.random.fold_in` with a number that no other source uses.
        """
        ...


class ItemEncoder(nnx.Module):
    """v = Norm(h' + ContextEncoder(h')) with h' = h + GraphEncoder(h).

    h is the sum of the sources for an item, and a learned vector for every other node.

    Args:
        entity_table: vectors of the nodes that are not items; None if all nodes are items.
        graph_encoder: message passing over all nodes; None leaves it out.
        context: reads each node with its text and its neighbours; None leaves it out.
    """

    def __init__(
        self,
        width: int,
        entity_table: Table | None,
        sources: Sequence[ItemSource],
        graph_encoder: GraphEncoder | None,
        context: ContextEncoder | None = None,
    ):
        self.width = width
        self.entity_table = entity_table
        self.sources = nnx.List(sources)
        self.graph_encoder = graph_encoder
        self.context = context

    def __call__(
        self, nodes: Nodes, graph: jraph.GraphsTuple, key: Array | None = None
    ) -> Float[Array, "N D"]:
        """Unit vectors of all nodes, items first, in float32; `key` as in `ItemSource`."""
        return unit_norm(self.features(nodes, graph, key))

    def features(
        self, nodes: Nodes, graph: jraph.GraphsTuple, key: Array | None = None
    ) -> Float[Array, "N D"]:
        """The vectors before the norm: the sum of the sources and of what the graph adds."""
        features, text = jnp.zeros((len(nodes.items), self.width)), None
        for source in self.sources:
            vectors = source(nodes, key)
            features += vectors
            if isinstance(source, TextSource):
                text = vectors.astype(features.dtype)
        if self.entity_table is not None:
            features = jnp.concatenate([features, self.entity_table[...][nodes.entities]])
        if self.graph_encoder is not None:
            features += self.graph_encoder(features, graph)
        if self.context is not None:
            features += self.context(features, graph, text)
        return features
