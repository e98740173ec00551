"""Caps, diversity and exploration against plain loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.ranking.reorder import compact, diversify, epsilon_greedy, explore, within_caps

seeds = st.integers(0, 2**32 - 1)
many = settings(deadline=None, max_examples=50)


def ranked_lists(generator, num_lists, num_places, num_items):
    """Lists of distinct items, some of them short, with scores that fall."""
    items = np.stack(
        [generator.permutation(np.arange(1, num_items))[:num_places] for _ in range(num_lists)]
    )
    scores = -np.sort(-generator.normal(size=items.shape).astype(np.float32), axis=1)
    missing = np.arange(num_places) >= generator.integers(0, 2 * num_places, (num_lists, 1))
    return np.where(missing, 0, items), np.where(missing, -np.inf, scores)


def capped_by_a_loop(ranked, caps):
    kept = np.zeros(ranked.shape, bool)
    for row, items in enumerate(ranked):
        taken: list[dict[int, int]] = [{} for _ in caps]
        for place, item in enumerate(items):
            groups = [of_item[item] for of_item, _ in caps]
            room = all(
                group == 0 or counts.get(group, 0) < limit
                for group, counts, (_, limit) in zip(groups, taken, caps, strict=True)
            )
            kept[row, place] = item > 0 and room
            if kept[row, place]:
                for group, counts in zip(groups, taken, strict=True):
                    counts[group] = counts.get(group, 0) + 1
    return kept


def test_a_cap_keeps_the_best_of_every_group():
    brands = np.array([0, 5, 5, 5, 9, 0, 0])

    kept = within_caps(np.array([[3, 5, 1, 2, 4, 6], [2, 4, 3, 0, 0, 0]]), [(brands, 1)])

    np.testing.assert_array_equal(kept, [[1, 1, 0, 0, 1, 1], [1, 1, 0, 0, 0, 0]])


def test_dropped_entries_do_not_count_for_other_caps():
    """Item 2 is the second of its brand, so it does not use up the category of item 3."""
    brands, categories = np.array([0, 1, 1, 2]), np.array([0, 7, 8, 8])

    kept = within_caps(np.array([[1, 2, 3]]), [(brands, 1), (categories, 1)])

    np.testing.assert_array_equal(kept, [[True, False, True]])


def test_without_caps_every_item_stays():
    np.testing.assert_array_equal(within_caps(np.array([[3, 1, 0]]), []), [[True, True, False]])


@many
@given(seeds, st.integers(1, 3))
def test_caps_agree_with_a_loop(seed, num_caps):
    generator = np.random.default_rng(seed)
    ranked, _ = ranked_lists(generator, 4, 9, 12)
    caps = [
        (generator.integers(0, 4, 12) * 10**9, int(generator.integers(1, 4)))
        for _ in range(num_caps)
    ]

    np.testing.assert_array_equal(within_caps(ranked, caps), capped_by_a_loop(ranked, caps))


def test_compact_moves_kept_entries_to_the_front():
    kept = np.array([[False, True, False, True], [False] * 4, [True] * 4])
    ranked = np.arange(1, 13).reshape(3, 4)
    scores = -ranked.astype(np.float32)

    items, values = compact(kept, ranked, scores, 3)

    np.testing.assert_array_equal(items, [[2, 4, 0], [0, 0, 0], [9, 10, 11]])
    np.testing.assert_array_equal(values, [[-2, -4, -np.inf], [-np.inf] * 3, [-9, -10, -11]])
    assert values.dtype == np.float32


def test_compact_pads_lists_that_are_longer_than_the_pool():
    items, values = compact(np.ones((1, 1), bool), np.array([[4]]), np.ones((1, 1)), 3)

    np.testing.assert_array_equal(items, [[4, 0, 0]])
    np.testing.assert_array_equal(values, [[1, -np.inf, -np.inf]])


def diversified_by_a_loop(ranked, scores, vectors, k, strength):
    chosen: list[int] = []
    real = [place for place, item in enumerate(ranked) if item]
    low, high = min(scores[real], default=0), max(scores[real], default=0)

    def cosine(a, b):
        norms = np.linalg.norm(vectors[a]) * np.linalg.norm(vectors[b])
        return vectors[a] @ vectors[b] / norms if norms else 0.0

    def gain(place):
        relevance = (scores[place] - low) / (high - low) if high > low else 0.0
        nearest = max((cosine(place, other) for other in chosen), default=0.0)
        return (1 - strength) * relevance - strength * nearest

    while len(chosen) < k:
        left = [place for place in real if place not in chosen]
        missing = [place for place in range(len(ranked)) if place not in real + chosen]
        chosen.append(max(left, key=gain) if left else missing[0])
    return chosen


@many
@given(seeds, st.sampled_from([0.0, 0.3, 0.7, 1.0]), st.integers(1, 7))
def test_diversify_agrees_with_a_loop(seed, strength, k):
    generator = np.random.default_rng(seed)
    ranked, scores = ranked_lists(generator, 4, 7, 20)
    vectors = generator.normal(size=(4, 7, 3))
    scores = scores.astype(np.float64)

    places = diversify(ranked, scores, vectors, k, strength)

    for row in range(4):
        expected = diversified_by_a_loop(ranked[row], scores[row], vectors[row], k, strength)
        np.testing.assert_array_equal(places[row], expected)


def test_diversify_prefers_dissimilar_items():
    """The vectors of items 1 and 2 point the same way."""
    vectors = np.array([[[1, 0], [2, 0], [0, 1]]], float)
    ranked, scores = np.array([[1, 2, 3]]), np.array([[3.0, 2.0, 1.0]])

    np.testing.assert_array_equal(diversify(ranked, scores, vectors, 3, 0.5), [[0, 2, 1]])
    np.testing.assert_array_equal(diversify(ranked, scores, vectors, 3, 0.2), [[0, 1, 2]])


def test_opposite_vectors_attract():
    """The largest cosine to the chosen items may be negative; it then raises an entry."""
    vectors = np.array([[[1, 0], [0, 1], [-1, 0]]], float)

    places = diversify(np.array([[1, 2, 3]]), np.ones((1, 3)), vectors, 2, 1.0)

    np.testing.assert_array_equal(places, [[0, 2]])


@many
@given(seeds, st.integers(1, 6))
def test_diversify_at_strength_zero_keeps_the_order(seed, k):
    generator = np.random.default_rng(seed)
    ranked, scores = ranked_lists(generator, 5, 6, 9)
    vectors = generator.normal(size=(5, 6, 2)).astype(np.float32)

    places = diversify(ranked, scores, vectors, k, 0.0)

    np.testing.assert_array_equal(places, np.tile(np.arange(k), (5, 1)))


def test_ties_go_to_the_better_rank_and_zero_vectors_are_dissimilar_to_all():
    ranked, scores = np.array([[5, 0, 4, 3]]), np.array([[1.0, -np.inf, 1.0, 1.0]])

    places = diversify(ranked, scores, np.zeros((1, 4, 2)), 4, 0.5)

    np.testing.assert_array_equal(places, [[0, 2, 3, 1]])


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_missing_entries_are_chosen_last(strength):
    ranked = np.array([[0, 7, 0, 8], [0, 0, 0, 0]])
    scores = np.where(ranked > 0, 1.0, -np.inf) * [4, 3, 2, 1]

    places = diversify(ranked, scores, np.ones((2, 4, 2)), 4, strength)

    np.testing.assert_array_equal(places, [[1, 3, 0, 2], [0, 1, 2, 3]])


def test_diversify_refuses_a_pool_that_is_smaller_than_the_list():
    with pytest.raises(ValueError, match="4 places of a pool of 3"):
        diversify(np.ones((1, 3), int), np.ones((1, 3)), np.ones((1, 3, 2)), 4, 0.5)


def explored(ranked, new_ranked, share):
    ranked, new_ranked = np.array([ranked]), np.array([new_ranked])
    scores = np.where(ranked > 0, 100.0 - ranked, -np.inf)
    new_scores = np.where(new_ranked > 0, 100.0 - new_ranked, -np.inf)
    items, values = explore(ranked, scores, new_ranked, new_scores, share)
    np.testing.assert_array_equal(values, np.where(items > 0, 100.0 - items, -np.inf))
    return items[0].tolist()


@pytest.mark.parametrize(
    ("ranked", "new_ranked", "share", "expected"),
    [
        ([1, 2, 3, 4], [11, 12, 13], 0.5, [1, 2, 11, 12]),
        ([1, 2, 3, 4], [11, 12, 13], 0.01, [1, 2, 3, 11]),
        ([1, 2, 3, 4], [11, 12, 13], 0.0, [1, 2, 3, 4]),
        ([1, 2, 3, 4], [11, 12, 13, 14], 1.0, [11, 12, 13, 14]),
        ([1, 11, 3, 4], [11, 12, 13], 0.5, [1, 11, 3, 12]),
        ([1, 2, 3, 11], [11, 12, 13], 0.5, [1, 2, 11, 12]),
        ([11, 12, 13, 4], [11, 12, 13], 0.5, [11, 12, 13, 4]),
        ([1, 2, 0, 0], [11, 12, 13], 0.25, [1, 2, 11, 0]),
        ([1, 2, 3, 0], [11, 12, 13], 0.5, [1, 2, 11, 12]),
        ([0, 0, 0, 0], [11, 12, 0], 1.0, [11, 12, 0, 0]),
        ([1, 2, 3, 4], [11, 0, 0], 0.75, [1, 2, 3, 11]),
        ([1, 2, 3, 4], [0, 0, 0], 0.5, [1, 2, 3, 4]),
    ],
    ids=[
        "last places",
        "at least one",
        "no share",
        "all",
        "one new is there already",
        "new entries are not displaced",
        "enough are there already",
        "free places first",
        "free places, then the last",
        "empty list",
        "too few new items",
        "no new items",
    ],
)
def test_explore_fills_the_reserved_places(ranked, new_ranked, share, expected):
    assert explored(ranked, new_ranked, share) == expected


def top(scores, k):
    order = np.argsort(-scores, axis=1)[:, :k]
    values = np.take_along_axis(scores, order, axis=1)
    return np.where(values > -np.inf, order, 0), values


@many
@given(seeds, st.floats(0, 1))
def test_explore_reaches_the_share_and_never_repeats_an_item(seed, share):
    generator = np.random.default_rng(seed)
    num_places, is_new = 6, np.arange(16) > 9
    all_scores = generator.normal(size=(5, 16))
    all_scores[generator.random((5, 16)) < generator.random((5, 1))] = -np.inf
    all_scores[:, 0] = -np.inf
    ranked, scores = top(all_scores, num_places)
    new_ranked, new_scores = top(np.where(is_new, all_scores, -np.inf), 7)

    items, values = explore(ranked, scores, new_ranked, new_scores, share)

    reserved = max(round(share * num_places), 1) if share else 0
    for row, (before, new) in enumerate(zip(ranked, new_ranked, strict=True)):
        before, new = before[before > 0], new[new > 0]
        missing_new = max(min(reserved, len(new)) - is_new[before].sum(), 0)
        added = [item for item in new if item not in before][:missing_new]
        old = [item for item in before if not is_new[item]]
        dropped = old[len(old) - max(len(before) + len(added) - num_places, 0) :]
        expected = [item for item in before if item not in dropped] + added
        assert len(set(expected)) == len(expected) <= num_places
        missing = num_places - len(expected)
        np.testing.assert_array_equal(items[row], expected + [0] * missing)
        np.testing.assert_array_equal(
            values[row], [*all_scores[row, expected], *[-np.inf] * missing]
        )


def test_observed_frequencies_equal_the_propensities():
    """The share of every first entry equals its propensity; inverse weights recover any policy."""
    ranked = np.tile(np.arange(1, 6), (20_000, 1))
    ranked[:, 4] = 0  # four entries are left
    places, propensities = epsilon_greedy(ranked, 3, 0.4, np.random.default_rng(0))
    assert all(len(set(row)) == 3 for row in places[:200].tolist())
    assert not (np.take_along_axis(ranked, places, 1) == 0).any()
    shares = np.bincount(places[:, 0], minlength=4) / len(places)
    np.testing.assert_allclose(shares, [0.7, 0.1, 0.1, 0.1], atol=0.01)
    for place, share in enumerate([0.7, 0.1, 0.1, 0.1]):
        np.testing.assert_allclose(propensities[places[:, 0] == place, 0], share)
    worth = np.array([1.0, 5.0, 2.0, 0.0])
    uniform = (worth[places[:, 0]] / propensities[:, 0] / 4).mean()
    assert uniform == pytest.approx(worth.mean(), abs=0.05)
    second = 1 / propensities[:, 1]  # the expected weight is the number of entries left
    assert second.mean() == pytest.approx(3, abs=0.05)


def test_short_lists_stay_short_under_epsilon_greedy():
    places, propensities = epsilon_greedy(np.array([[7, 0, 0]]), 3, 0.5, np.random.default_rng(0))
    assert sorted(places[0].tolist()) == [0, 1, 2]
    assert places[0, 0] == 0
    np.testing.assert_array_equal(propensities, 1)
