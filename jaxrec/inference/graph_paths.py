"""Paths in the knowledge graph from the items of a history to another item."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int

from jaxrec.data.graph_arrays import Edges, node_degrees
from jaxrec.types import KnowledgeGraph


@dataclass(frozen=True)
class NodePath:
    """item - relation - node - relation - item; node 0 stands for an edge between the two items."""

    item: int  # of the history
    relation: int
    node: int
    last_relation: int
    degree: int  # number of edges at the node; 0 for an edge between the two items


@dataclass(frozen=True)
class Neighbours:
    """The edges of a graph, in both directions, by the node where they begin."""

    graph: KnowledgeGraph

    @cached_property
    def degrees(self) -> Int[np.ndarray, " N"]:
        """The number of edges at every node."""
        return node_degrees(self.graph)

    @cached_property
    def edges(self) -> Edges:
        """All edges in the order of their first nodes, the `receivers`."""
        graph = self.graph
        first = np.concatenate([graph.heads, graph.tails])
        order = np.argsort(first, kind="stable")
        relations = np.tile(graph.edge_relations, 2)[order]
        return Edges(first[order], relations, np.concatenate([graph.tails, graph.heads])[order])

    def of(self, node: int) -> list[tuple[int, int]]:
        """The neighbours of a node, each with the number of the relation."""
        begin, end = np.searchsorted(self.edges.receivers, [node, node + 1])
        nodes, relations = self.edges.senders[begin:end], self.edges.relations[begin:end]
        return list(zip(nodes.tolist(), relations.tolist(), strict=True))

    def paths(self, items: Iterable[int], target: int, most: int) -> list[NodePath]:
        """The strongest paths from items to a target: edges between them, then rare nodes first.

        A node of few edges tells more about the items that share it (Adamic & Adar, "Friends and
        neighbors on the web", 2003).
        """
        of_target = dict(self.of(target))
        paths = []
        for item in dict.fromkeys(items):
            if item in (0, target):
                continue
            for node, relation in self.of(item):
                if node == target:
                    paths.append(NodePath(item, relation, 0, relation, 0))
                elif node in of_target:
                    degree = int(self.degrees[node])
                    paths.append(NodePath(item, relation, node, of_target[node], degree))
        return sorted(paths, key=lambda path: path.degree)[:most]
