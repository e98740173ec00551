"""Filtered ranks of the edges of a knowledge graph.

The tail of an edge is ranked among all nodes of its type, without the other tails that the graph
gives to the same head and relation (Bordes et al., "Translating embeddings for modeling
multi-relational data", 2013). Ties count half, so that equal scores rank in the middle.
"""

from collections import defaultdict

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxrec.data.graph_arrays import Edges
from jaxrec.evaluation.metrics import recall
from jaxrec.types import KnowledgeGraph

QUERIES_AT_A_TIME = 256


def link_metrics(ranks: Float[np.ndarray, " Q"]) -> dict[str, float]:
    """The means of the reciprocal rank and of the hits among the first ten."""
    return {
        "links/mrr": float((1 / (ranks + 1)).mean()),
        "links/hits@10": float(recall(ranks, 10).mean()),
    }


def both_ways(graph: KnowledgeGraph, numbers: Int[np.ndarray, " n"]) -> Edges:
    """Edges and their reverses, from heads (`senders`) to tails (`receivers`)."""
    heads, tails = graph.heads[numbers], graph.tails[numbers]
    relations = graph.edge_relations[numbers]
    return Edges(
        receivers=np.concatenate([tails, heads]),
        relations=np.concatenate([relations, relations + len(graph.relations)]),
        senders=np.concatenate([heads, tails]),
    )


def link_ranks(
    queries: Float[np.ndarray, "Q F"],
    vectors: Float[np.ndarray, "N F"],
    edges: Edges,
    graph: KnowledgeGraph,
) -> Float[np.ndarray, " Q"]:
    """The filtered rank, from 0, of the tail of every edge by `queries @ vectors.T`."""
    known = defaultdict(list)
    all_edges = both_ways(graph, np.arange(len(graph.heads)))
    wanted = set(zip(edges.senders.tolist(), edges.relations.tolist(), strict=True))
    for tail, relation, head in zip(*(part.tolist() for part in all_edges), strict=True):
        if (head, relation) in wanted:
            known[head, relation].append(tail)
    ranks = np.zeros(len(queries))
    for node_type in graph.types:
        local = edges.receivers - node_type.offset
        rows = np.flatnonzero((local >= 0) & (local < node_type.padded_size))
        block = vectors[node_type.offset : node_type.offset + node_type.padded_size]
        for start in range(0, len(rows), QUERIES_AT_A_TIME):
            part = rows[start : start + QUERIES_AT_A_TIME]
            candidates = np.tile(node_type.valid, (len(part), 1))
            for place, row in enumerate(part):
                others = known[int(edges.senders[row]), int(edges.relations[row])]
                candidates[place, np.array(others, np.int64) - node_type.offset] = False
            ranks[part] = filtered_ranks(queries[part] @ block.T, local[part], candidates)
    return ranks


def filtered_ranks(
    scores: Float[np.ndarray, "Q K"],
    targets: Int[np.ndarray, " Q"],
    candidates: Bool[np.ndarray, "Q K"],
) -> Float[np.ndarray, " Q"]:
    """Ranks of targets among the candidates, whether the target itself is one or not."""
    rows = np.arange(len(targets))
    candidates = candidates.copy()
    candidates[rows, targets] = False
    of_target = scores[rows, targets][:, None]
    higher = ((scores > of_target) & candidates).sum(1)
    equal = ((scores == of_target) & candidates).sum(1)
    return higher + equal / 2
