"""Metrics equal independent implementations without ties, and hand-computed values with ties."""

import math

import numpy as np
import pytest
from helpers.ranking import catalogue, from_mask, rank_dense
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.evaluation import metrics


def test_values_of_whole_and_tied_ranks_by_hand():
    ranks = np.array([0.0, 1.0, 2.5, 4.5, 5.0])

    np.testing.assert_array_equal(metrics.recall(ranks, 5), [1, 1, 1, 1, 0])
    np.testing.assert_allclose(
        metrics.ndcg(ranks, 5),
        [1, 1 / math.log2(3), 1 / math.log2(4.5), 1 / math.log2(6.5), 0],
    )
    np.testing.assert_allclose(metrics.mrr(ranks, 5), [1, 1 / 2, 1 / 3.5, 1 / 5.5, 0])


@given(st.lists(st.permutations(range(8)), min_size=1, max_size=5), st.integers(1, 8))
def test_metrics_agree_with_a_loop_over_the_lists(lists, k):
    """Item 0 is the target of every list."""
    ranks = np.array([float(items.index(0)) for items in lists])

    recall = ndcg = mrr = 0.0
    for items in lists:
        for place, item in enumerate(items[:k], start=1):
            if item == 0:
                recall += 1
                ndcg += math.log(2) / math.log(place + 1)
                mrr += 1 / place
    summary = metrics.summarise(ranks, cutoffs=(k,))

    assert summary["count"] == len(lists)
    assert summary[f"recall@{k}"] == pytest.approx(recall / len(lists))
    assert summary[f"ndcg@{k}"] == pytest.approx(ndcg / len(lists))
    assert summary[f"mrr@{k}"] == pytest.approx(mrr / len(lists))


def test_list_properties_by_hand():
    """Five items beside the unknown one; recommended 2, 1, 1, 0 and 0 times."""
    top_items = np.array([[1, 2], [3, 1], [0, 0]])
    counts = np.array([100.0, 10.0, 4.0, 0.0, 0.0, 0.0])

    assert metrics.coverage(top_items, 6) == pytest.approx(3 / 5)
    assert metrics.gini(top_items, 6) == pytest.approx(0.5)
    assert metrics.mean_popularity(top_items, counts) == pytest.approx(24 / 4)


def test_gini_is_half_the_relative_mean_difference():
    top_items = np.random.default_rng(0).integers(1, 20, (30, 5))
    counts = np.array([(top_items == item).sum() for item in range(1, 25)])

    differences = np.abs(counts[:, None] - counts[None, :]).mean()

    assert metrics.gini(top_items, 25) == pytest.approx(differences / (2 * counts.mean()))


def test_rank_counts_higher_items_and_half_of_the_ties():
    scores = [
        [99, 5, 4, 3, 2, 1],  # second of five
        [99, 7, 3, 3, 3, 1],  # one higher, two tied
        [99, 2, 2, 2, 2, 2],  # four tied
    ]

    ranking = rank_dense(scores, [2, 3, 5], k=3)

    np.testing.assert_array_equal(ranking.ranks, [1, 2, 2])
    np.testing.assert_array_equal(ranking.items, [[1, 2, 3], [1, 2, 3], [1, 2, 3]])
    np.testing.assert_array_equal(ranking.scores, [[5, 4, 3], [7, 3, 3], [2, 2, 2]])


def test_one_tie_gives_half_a_rank():
    assert rank_dense([[0, 4, 4, 1]], [1]).ranks == [0.5]


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_agrees_with_sorting_on_scores_without_ties(seed):
    generator = np.random.default_rng(seed)
    num_queries, capacity, num_items, k = 11, 20, 16, 4
    scores = generator.permuted(np.tile(np.arange(capacity), (num_queries, 1)), axis=1)
    mask = generator.random(scores.shape) < 0.3
    targets = generator.integers(1, num_items, num_queries)

    ranking = rank_dense(
        scores, targets, from_mask(mask), catalogue(num_items, capacity), k=k, block=8
    )

    for query, target in enumerate(targets):
        allowed = [i for i in range(1, num_items) if i == target or not mask[query, i]]
        ordered = sorted(allowed, key=lambda item: -scores[query, item])
        assert ranking.ranks[query] == ordered.index(target)
        best = ordered[:k] + [0] * (k - len(ordered))
        np.testing.assert_array_equal(ranking.items[query], best)
