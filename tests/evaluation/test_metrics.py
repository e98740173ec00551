import math

import numpy as np
import pytest

from jaxrec.evaluation import metrics


def test_summary_names_every_metric_at_every_cutoff():
    expected = {f"{name}@{k}" for name in ("ndcg", "recall", "mrr") for k in (5, 10, 20, 50)}

    assert set(metrics.summarise(np.array([3.0]))) == expected | {"count"}


def test_summary_of_no_queries_is_zero():
    assert metrics.summarise(np.zeros(0), cutoffs=(10,)) == {
        "count": 0,
        "ndcg@10": 0.0,
        "recall@10": 0.0,
        "mrr@10": 0.0,
    }


def test_segments_count_and_average_their_own_queries():
    ranks = np.array([0.0, 9.0, 0.0])
    masks = {
        "cold": np.array([True, True, False]),
        "warm": np.array([False, False, True]),
        "empty": np.zeros(3, bool),
    }

    result = metrics.segments(ranks, masks, cutoffs=(5,))

    assert {name: values["count"] for name, values in result.items()} == {
        "cold": 2,
        "warm": 1,
        "empty": 0,
    }
    assert [result[name]["recall@5"] for name in masks] == [0.5, 1.0, 0.0]


def test_gini_of_even_and_of_concentrated_recommendations():
    assert metrics.gini(np.arange(1, 101).reshape(10, 10), 101) == pytest.approx(0.0)
    assert metrics.gini(np.full((10, 1), 7), 101) == pytest.approx(0.99)


@pytest.mark.parametrize("top_items", [np.zeros((0, 10), int), np.zeros((4, 10), int)])
def test_lists_without_recommendations_give_zero(top_items):
    assert metrics.coverage(top_items, 6) == 0
    assert metrics.gini(top_items, 6) == 0
    assert metrics.mean_popularity(top_items, np.ones(6)) == 0


def test_bootstrap_interval_is_that_of_the_normal_approximation():
    generator = np.random.default_rng(0)
    b = generator.normal(size=2000)
    a = b + generator.normal(loc=0.1, size=2000)

    low, high = metrics.bootstrap_interval(a, b, samples=2000, seed=1)

    mean, error = (a - b).mean(), (a - b).std() / math.sqrt(2000)
    assert low == pytest.approx(mean - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.15 * error)


def test_bootstrap_pairs_the_queries():
    """A constant advantage has no variance, even if the queries differ much."""
    b = np.arange(50) % 7 * 1.0

    low, high = metrics.bootstrap_interval(b + 2, b, samples=100, seed=0)

    assert (low, high) == (2.0, 2.0)


def test_bootstrap_depends_on_the_seed_alone_and_narrows_with_the_level():
    a, b = np.random.default_rng(0).normal(size=(2, 100))
    wide = metrics.bootstrap_interval(a, b, samples=200, seed=3)
    narrow = metrics.bootstrap_interval(a, b, samples=200, seed=3, level=0.5)

    assert wide == metrics.bootstrap_interval(a, b, samples=200, seed=3)
    assert wide != metrics.bootstrap_interval(a, b, samples=200, seed=4)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_bootstrap_of_nothing_and_of_unpaired_values(unchecked):
    assert metrics.bootstrap_interval(np.zeros(0), np.zeros(0), samples=10, seed=0) == (0.0, 0.0)
    with pytest.raises(ValueError, match="pair them"):
        metrics.bootstrap_interval(np.zeros(3), np.zeros(4), samples=10, seed=0)
