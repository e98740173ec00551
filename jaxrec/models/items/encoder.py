"""Items and the other nodes of the graph -> vectors."""

import re
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
import jraph
from flax import nnx
from jaxtyping import Array, Float

from jaxrec.models.graph.context import ContextEncoder
from jaxrec.models.graph.encoder import GraphEncoder
from jaxrec.models.inputs import Nodes, NodeVectors
from jaxrec.models.items.text import TextSource
from jaxrec.models.layers import Table, unit_norm
from jaxrec.partitioning import by_column, by_row, shards, to_columns, to_rows
from jaxrec.sharding import ITEMS

ENTITY_TABLE = re.compile(r"\['entity_table'\]")  # in paths of parameters, and of their moments


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
        return unit_norm(to_rows(self.features(nodes, graph, key)))

    def apart(
        self, nodes: Nodes, graph: jraph.GraphsTuple, key: Array | None = None
    ) -> NodeVectors:
        """The same vectors as a training step reads them: apart on a mesh that divides items."""
        num_items = len(nodes.items)
        if shards(ITEMS) == 1:
            return NodeVectors((self(nodes, graph, key),), num_items)
        if self.graph_encoder is None and self.context is None:
            items, entities = self.item_features(nodes, key)[0], self.entity_features(nodes)
        else:
            columns, entities = jnp.split(self.features(nodes, graph, key), [num_items])
            items = to_rows(columns)
        return NodeVectors((unit_norm(items), unit_norm(to_rows(entities))), num_items)

    def features(
        self, nodes: Nodes, graph: jraph.GraphsTuple, key: Array | None = None
    ) -> Float[Array, "N D"]:
        """The vectors before the norm: the sum of the sources and of what the graph adds.

        They lie by column.
        """
        features, text = self.item_features(nodes, key)
        features = to_columns(features)
        if self.entity_table is not None:
            features = jnp.concatenate([features, self.entity_features(nodes)])
        if self.graph_encoder is not None:
            features += self.graph_encoder(features, graph)
        if self.context is not None:
            features += self.context(features, graph, text)
        return features

    def item_features(
        self, nodes: Nodes, key: Array | None
    ) -> tuple[Float[Array, "I D"], Float[Array, "I D"] | None]:
        """The sums of the sources, and the vectors of the texts alone where these are one.

        They lie by row.
        """
        features, text = by_row(jnp.zeros((len(nodes.items), self.width))), None
        for source in self.sources:
            vectors = by_row(source(nodes, key))
            features += vectors
            if isinstance(source, TextSource):
                text = vectors.astype(features.dtype)
        return features, text

    def entity_features(self, nodes: Nodes) -> Float[Array, "entities D"]:
        """The learned vectors of the other nodes, by column."""
        if self.entity_table is None:
            return jnp.zeros((0, self.width))
        return by_column(to_columns(self.entity_table[...])[nodes.entities])
