"""The arrays that models and rankings read of a knowledge graph."""

from collections.abc import Sequence
from typing import NamedTuple

import jraph
import numpy as np
from jaxtyping import Int
from scipy.sparse import csr_array

from jaxrec.types import KnowledgeGraph, padded_size


class Edges(NamedTuple):
    """Messages to nodes: the receiver, the relation and the sender of each."""

    receivers: Int[np.ndarray, " E"]
    relations: Int[np.ndarray, " E"]
    senders: Int[np.ndarray, " E"]


def graphs_tuple(graph: KnowledgeGraph) -> jraph.GraphsTuple:
    """Edges in both directions as of `padded_graph`.

    Relation ids are r for a forward edge, R + r for its reverse, 2 R for padding.
    """
    num_relations = len(graph.relations)
    edges = Edges(
        receivers=np.concatenate([graph.tails, graph.heads]),
        relations=np.concatenate([graph.edge_relations, graph.edge_relations + num_relations]),
        senders=np.concatenate([graph.heads, graph.tails]),
    )
    return padded_graph(
        edges,
        node_degrees(graph)[edges.senders],
        num_nodes=graph.num_nodes,
        size=padded_size(len(edges.senders) + 1),
        padding_relation=2 * num_relations,
    )


def padded_graph(
    edges: Edges,
    degrees: Int[np.ndarray, " E"],
    *,
    num_nodes: int,
    size: int,
    padding_relation: int,
) -> jraph.GraphsTuple:
    """Edges sorted by receiver and padded, without node features; `edges` holds relation ids.

    Padding edges go from the last node, which is always unused, to itself. Of the edges of a
    receiver, those from senders with few edges come first: they say most about it.

    Args:
        degrees: of the senders.
        size: number of edges with the padding.
    """
    order, last = np.lexsort((degrees, edges.receivers)), num_nodes - 1

    def sorted_and_padded(values: np.ndarray, fill: int) -> Int[np.ndarray, " padded"]:
        padded = np.full(size, fill, np.int32)
        padded[: len(order)] = values[order]
        return padded

    return jraph.GraphsTuple(
        nodes=None,
        edges=sorted_and_padded(edges.relations, padding_relation),
        senders=sorted_and_padded(edges.senders, last),
        receivers=sorted_and_padded(edges.receivers, last),
        globals=None,
        n_node=np.array([last, 1], np.int32),
        n_edge=np.array([len(order), size - len(order)], np.int32),
    )


def node_degrees(graph: KnowledgeGraph) -> Int[np.ndarray, " N"]:
    """The number of edges at every node."""
    return np.bincount(np.concatenate([graph.heads, graph.tails]), minlength=graph.num_nodes)


def first_neighbours(graph: KnowledgeGraph, type_name: str) -> Int[np.ndarray, " I"]:
    """The local id of every item's first neighbour of a node type; 0 if there is none."""
    node_type = graph.type(type_name)
    ends = np.stack([graph.heads, graph.tails], 1)
    items, entities = ends.ravel(), ends[:, ::-1].ravel()  # either end may be the item
    selected = (
        (items < graph.types[0].count)
        & (entities >= node_type.offset)
        & (entities < node_type.offset + node_type.count)
    )
    neighbours = np.zeros(graph.types[0].count, np.int32)
    # Backwards, because the last assignment wins.
    neighbours[items[selected][::-1]] = entities[selected][::-1] - node_type.offset
    return neighbours


def neighbourhoods(graph: KnowledgeGraph) -> csr_array:
    """The neighbours of every item as weights over all nodes [I, N], with rows of length 1.

    A neighbour of degree d has the weight 1 / sqrt(log(1 + d)). So the product of two rows is the
    normalised index of Adamic & Adar ("Friends and neighbors on the web", 2003): 1 for items with
    the same neighbours, 0 for items without common neighbours.
    """
    ends = np.stack([graph.heads, graph.tails], 1)
    items, nodes = ends.ravel(), ends[:, ::-1].ravel()  # either end may be the item
    degrees = node_degrees(graph)
    selected = items < graph.types[0].count
    items, nodes = np.unique(np.stack([items[selected], nodes[selected]]), axis=1)
    weights = 1 / np.sqrt(np.log1p(degrees[nodes]))
    lengths = np.sqrt(np.bincount(items, weights**2, minlength=graph.types[0].count))
    shape = (graph.types[0].count, graph.num_nodes)
    return csr_array((weights / lengths[items], (items, nodes)), shape=shape)


def first_rows(counts: Sequence[int]) -> Int[np.ndarray, " shops"]:
    """How many rows come before those of each shop."""
    return np.cumsum([0, *counts])[:-1]


def shop_starts(graphs: Sequence[KnowledgeGraph], type_name: str) -> tuple[int, ...]:
    """Where the nodes of each shop begin in the joint block of a node type.

    Those of the first shop begin with the unknown node, row 0; those of the last one end with the
    padding.
    """
    starts = 1 + first_rows([count_of(graph, type_name) for graph in graphs])
    return (0, *starts[1:].tolist())


def count_of(graph: KnowledgeGraph, type_name: str) -> int:
    """The number of known nodes of a type."""
    return sum(node_type.count - 1 for node_type in graph.types if node_type.name == type_name)
