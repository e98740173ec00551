"""Vectors of single items from their text and their neighbours, without the rest of the catalogue.

An item takes messages from its neighbours as they were in training and sends none. So the result is
that of encoding the whole catalogue if a vector reads one edge far. Beyond that, neighbours of
neighbours count too: at most `MAX_EDGES` of each, as in GraphSAGE (arXiv:1706.02216).
"""

from dataclasses import dataclass, field
from functools import cached_property

import jax.numpy as jnp
import jraph
import numpy as np
from jaxtyping import Float, Int

from jaxrec.config import ModelConfig
from jaxrec.data.graph_arrays import Edges, graphs_tuple, node_degrees, padded_graph
from jaxrec.data.packing import ranges
from jaxrec.inference.encoding import CatalogArrays, encode_catalog
from jaxrec.models.graph.build import reach
from jaxrec.models.inputs import Nodes
from jaxrec.models.items.features import Features
from jaxrec.models.recommender import Model
from jaxrec.ranking.top_k import power_of_two
from jaxrec.types import KnowledgeGraph

BATCHES = (16, 1024)  # items at a time: the shapes that are compiled
MAX_EDGES = 64  # of a neighbour
SMALLEST = 64  # rows for items among the neighbours
USUAL_EDGES = 8  # of an item; tables are padded to at least as many, so few sizes are compiled


@dataclass(frozen=True)
class NewItemEncoder:
    """Encodes items with a trained model.

    Args:
        graph: that of training.
        text: whitened text vectors of the items of training.
        features: of the items of training, as `catalog_features` gives them.
        ids: row of every item in the id tables.
    """

    model: Model
    config: ModelConfig
    graph: KnowledgeGraph
    text: Float[np.ndarray, "I text"]
    ids: Int[np.ndarray, " n"]
    features: Features = field(default_factory=dict)

    @cached_property
    def incoming(self) -> jraph.GraphsTuple:
        """The edges of training in both directions, sorted by receiver."""
        return graphs_tuple(self.graph)

    @cached_property
    def degrees(self) -> Int[np.ndarray, " N"]:
        """The number of edges of every node in training."""
        return node_degrees(self.graph)

    def edges_to(self, nodes: Int[np.ndarray, " n"], limit: int | None = None) -> Edges:
        """The edges of training to nodes, in their order; at most `limit` of each."""
        begins, ends = np.searchsorted(self.incoming.receivers, [nodes, nodes + 1])
        lengths = ends - begins if limit is None else np.minimum(ends - begins, limit)
        numbers = ranges(begins, lengths)
        parts = (self.incoming.receivers, self.incoming.edges, self.incoming.senders)
        return Edges(*(part[numbers] for part in parts))

    def encode(
        self,
        ids: Int[np.ndarray, " n"],
        text: Float[np.ndarray, "n text"],
        edges: Edges,
        features: Features | None = None,
    ) -> Float[np.ndarray, "n F"]:
        """Vectors of items.

        Args:
            ids: their rows in the catalogue of training; 0: training has not seen the item.
            edges: their receivers are places in `ids`, their senders nodes of training.
            features: of each item; None: as item 0 has, of which nothing is known.
        """
        size = BATCHES[-1]
        if features is None:
            nothing = np.zeros(len(ids), np.int64)
            features = {name: values[nothing] for name, values in self.features.items()}
        parts = []
        for start in range(0, len(ids), size):
            part = slice(start, start + size)
            inside = (edges.receivers >= start) & (edges.receivers < start + size)
            own = Edges(*(values[inside] for values in edges))
            own = own._replace(receivers=own.receivers - start)
            own_features = {name: values[part] for name, values in features.items()}
            parts.append(self._encode(ids[part], text[part], own, own_features))
        width = self.config.hidden_size * len(self.config.experts)
        return np.concatenate(parts) if parts else np.zeros((0, width), np.float32)

    def warm_up(self) -> None:
        """Compile the usual sizes."""
        none = self.edges_to(np.zeros(0, np.int64))
        for size in BATCHES:
            ids = np.zeros(size, np.int64)
            self.encode(ids, np.zeros((size, self.text.shape[1]), np.float32), none)

    def _encode(
        self, ids: np.ndarray, text: np.ndarray, edges: Edges, features: Features
    ) -> np.ndarray:
        count, size = len(ids), next(size for size in BATCHES if size >= len(ids))
        nodes, inner = self._surroundings(np.unique(edges.senders))
        num_items = self.graph.types[0].padded_size
        items, entities = nodes[nodes < num_items], nodes[nodes >= num_items]
        item_rows = size + power_of_two(len(items), SMALLEST)
        # the last node is for padding
        num_nodes = item_rows + power_of_two(len(entities) + 1, USUAL_EDGES * size)
        place = np.full(self.graph.num_nodes, num_nodes - 1)
        place[items] = size + np.arange(len(items))
        place[entities] = item_rows + np.arange(len(entities))

        item_ids, texts = np.zeros(item_rows, np.int32), np.zeros((item_rows, text.shape[1]))
        rows = np.concatenate([ids, items])
        places = np.concatenate([np.arange(count), size + np.arange(len(items))])
        item_ids[places] = np.pad(self.ids, (0, num_items - len(self.ids)))[rows]
        texts[places] = np.concatenate([text, np.asarray(self.text)[items]])
        entity_ids = np.zeros(num_nodes - item_rows, np.int32)
        entity_ids[: len(entities)] = entities - num_items
        senders = np.concatenate([edges.senders, inner.senders])
        messages = Edges(
            np.concatenate([edges.receivers, place[inner.receivers]]),
            np.concatenate([edges.relations, inner.relations]),
            place[senders],
        )
        message_graph = padded_graph(
            messages,
            self.degrees[senders],
            num_nodes=num_nodes,
            size=power_of_two(len(senders), USUAL_EDGES * size),
            padding_relation=2 * len(self.graph.relations),
        )
        columns = dict[str, jnp.ndarray]()
        for name, values in features.items():
            column = np.zeros((item_rows, *values.shape[1:]), values.dtype)
            column[places] = np.concatenate([values, self.features[name][items]])
            columns[name] = jnp.asarray(column)
        arrays = CatalogArrays(
            Nodes(
                jnp.asarray(item_ids),
                jnp.asarray(entity_ids),
                jnp.asarray(texts.astype(np.float32)),
                columns,
            ),
            message_graph,
            jnp.zeros(item_rows, bool),
        )
        return np.asarray(encode_catalog(self.model, arrays))[:count]

    def _surroundings(self, nodes: Int[np.ndarray, " m"]) -> tuple[Int[np.ndarray, " n"], Edges]:
        """The nodes that these depend on, themselves included, and the edges between them."""
        inner, latest = self.edges_to(nodes[:0]), nodes
        for _ in range(reach(self.config) - 1):
            edges = self.edges_to(latest, MAX_EDGES)
            inner = Edges(*map(np.concatenate, zip(inner, edges, strict=True)))
            latest = np.setdiff1d(edges.senders, nodes)
            nodes = np.union1d(nodes, latest)
        return nodes, inner
