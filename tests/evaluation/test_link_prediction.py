"""Filtered ranks against values by hand."""

import numpy as np
import polars as pl
import pytest

from jaxrec.evaluation.link_prediction import both_ways, filtered_ranks, link_metrics, link_ranks
from jaxrec.types import KnowledgeGraph, NodeType


def test_known_tails_do_not_count_and_ties_count_half():
    scores = np.array([[0.9, 0.5, 0.5, 0.7, 0.1], [0.2, 0.4, 0.3, 0.3, 0.3]])
    candidates = np.array([[True, True, True, False, True], [True, True, True, True, False]])
    # first: 0.9 is higher and another 0.5 ties; 0.7 is known. Second: 0.4 is higher, 0.3 ties
    np.testing.assert_array_equal(filtered_ranks(scores, np.array([1, 2]), candidates), [1.5, 1.5])


def test_tails_are_ranked_in_both_directions_among_nodes_of_their_type():
    items = NodeType("item", pl.Series([None, "a", "b", "c"]), 0)
    brands = NodeType("brand", pl.Series([None, "x", "y"]), items.padded_size)
    x, y = brands.offset + 1, brands.offset + 2
    # a and b are of x, b is of y too
    graph = KnowledgeGraph(
        (items, brands), ("of",), np.array([1, 2, 2]), np.zeros(3, int), np.array([x, x, y])
    )
    edges = both_ways(graph, np.array([1]))
    assert [part.tolist() for part in edges] == [[x, 2], [0, 1], [2, x]]
    vectors = np.zeros((graph.num_nodes, 1))
    vectors[[1, 2, 3, x, y], 0] = [5, 3, 4, 1, 2]
    vectors[[0, brands.offset, -1]] = 9  # unknown nodes and padding are no candidates
    # b -> x: y scores higher but is known. x -> b: a is known, c is higher
    ranks = link_ranks(np.ones((2, 1)), vectors, edges, graph)
    np.testing.assert_array_equal(ranks, [0, 1])


def test_metrics_are_means_over_the_edges():
    metrics = link_metrics(np.array([0.0, 1.0, 9.0, 10.0]))
    assert metrics["links/mrr"] == pytest.approx((1 + 1 / 2 + 1 / 10 + 1 / 11) / 4)
    assert metrics["links/hits@10"] == 0.75
