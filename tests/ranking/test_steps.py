import numpy as np
import polars as pl
import pytest
from helpers.histories import log_of
from helpers.paths import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.data.graph import build_graph
from jaxrec.data.graph_arrays import neighbourhoods
from jaxrec.ranking.adjustments import no_adjustments
from jaxrec.ranking.item_table import ItemTable
from jaxrec.ranking.pipeline import Reranker, RerankQueries, build_pipeline
from jaxrec.ranking.steps import Boost, Caps, Diversity, Epsilon, Explore, Feedback
from jaxrec.ranking.strategy import read_strategy
from jaxrec.types import Catalog

ITEMS, USERS, WIDTH = 60, 4, 6
DAY, MINUTE = 86_400, 60
STRATEGIES = sorted((ROOT / "configs" / "strategies").glob("*.yaml"))


@pytest.fixture(scope="module")
def catalog():
    ids = range(1, ITEMS)
    table = pl.DataFrame(
        {
            "item_id": [None, *(f"i{item}" for item in ids)],
            "brand": [None, *(f"b{item % 5}" for item in ids)],
            "category": [None, *(f"c{item % 2}" for item in ids)],
            "price": [None, *ids],
        }
    )
    return Catalog(table, build_graph(table, None))


@pytest.fixture(scope="module")
def vectors(catalog):
    random = np.random.default_rng(0)
    rows = catalog.graph.types[0].padded_size
    queries = random.normal(size=(USERS, WIDTH)).astype(np.float32)
    return queries, random.normal(size=(rows, WIDTH)).astype(np.float32)


def nothing(rows):
    return no_adjustments


def lists(catalog, vectors, *steps, k=10, histories=None, counts=None, seed=0):
    valid = catalog.graph.types[0].valid
    counts = np.arange(ITEMS, dtype=np.float32) if counts is None else counts
    pipeline = build_pipeline(steps, catalog, counts, valid)
    queries, items = vectors
    reranker = Reranker(pipeline, ItemTable(items, valid))
    random = np.random.default_rng(seed)
    return pipeline, reranker.rank(RerankQueries(queries, nothing, histories), k, random)


def names_of(ready, ranked, row):
    return [ready.names(touched) for touched in ranked.touched[row]]


@pytest.mark.parametrize("file", STRATEGIES, ids=lambda file: file.stem)
def test_shipped_strategies_are_read_and_applied(catalog, vectors, file):
    ready, result = lists(catalog, vectors, *read_strategy(file), histories=log_of([], [], [], []))
    assert (result.lists.items > 0).all()
    everything = np.ones(len(ready.steps), bool)
    assert ready.names(everything) == [step.name for step in ready.steps]


def test_steps_act_in_their_order(catalog, vectors):
    caps, diversity = Caps({"brand": 1}), Diversity(0.9, pool=5)
    _, capped_first = lists(catalog, vectors, caps, diversity, k=5)
    _, diverse_first = lists(catalog, vectors, diversity, caps, k=5)
    for result in (capped_first, diverse_first):
        for row in result.lists.items:
            assert len({int(item) % 5 for item in row}) == 5
    assert (capped_first.lists.items != diverse_first.lists.items).any()


def test_scoring_steps_must_precede_reordering_steps(catalog, vectors):
    with pytest.raises(ValueError, match="boost changes scores, so it must stand before caps"):
        lists(catalog, vectors, Caps({"brand": 1}), Boost("price > 1"))


def test_a_boost_raises_matching_items_and_is_named(catalog, vectors):
    _, plain = lists(catalog, vectors)
    ready, result = lists(catalog, vectors, Boost("brand = 'b1'", by=1.5))
    scores = dict(zip(plain.lists.items[0], plain.lists.scores[0], strict=True))
    for item, score, names in zip(
        result.lists.items[0], result.lists.scores[0], names_of(ready, result.lists, 0), strict=True
    ):
        boosted = item % 5 == 1
        assert names == (["boost"] if boosted else [])
        if item in scores:
            assert score == pytest.approx(scores[item] + 1.5 * boosted, abs=1e-5)
    assert (result.lists.items % 5 == 1).sum() > (plain.lists.items % 5 == 1).sum()


def test_rare_shared_neighbours_count_more_for_similarity(catalog):
    near = neighbourhoods(catalog.graph)
    similarity = (near @ near.T).toarray()
    np.testing.assert_allclose(similarity.diagonal()[1:], 1)
    assert similarity[1, 11] == pytest.approx(1)  # same brand and category
    brand, category = similarity[1, 6], similarity[1, 3]
    assert brand > category > 0  # five brands, two categories: the rarer counts more
    assert similarity[1, 2] == 0


feedback_histories = st.lists(
    st.tuples(
        st.integers(0, ITEMS - 1),
        st.sampled_from(["view", "dislike", "like"]),
        st.integers(0, 60 * DAY),
    ),
    max_size=6,
)


@settings(max_examples=40, deadline=None)
@given(st.lists(feedback_histories, min_size=USERS, max_size=USERS), st.integers(1, 20))
def test_feedback_gives_the_list_of_a_complete_ranking(catalog, vectors, histories, k):
    """Also if items fall far and others must be fetched in their place."""
    log = log_of(*(sorted(history, key=lambda event: event[2]) for history in histories))
    step = Feedback(item=0.8, neighbours=0.4)
    _, result = lists(catalog, vectors, step, k=k, histories=log)
    near = neighbourhoods(catalog.graph)
    for user in range(USERS):
        rated, weights = step.item_weights(log, user)
        similarity = (near @ near[rated].T).toarray()
        moves = np.where(np.arange(ITEMS)[:, None] == rated, 0.8, 0.4 * similarity) @ weights
        scores = (vectors[1] @ vectors[0][user])[:ITEMS]
        scores = scores + np.ptp(scores[1:]) * moves
        best = np.sort(scores[1:])[::-1][:k]
        np.testing.assert_allclose(result.lists.scores[user], best, atol=1e-4)
        np.testing.assert_allclose(scores[result.lists.items[user]], best, atol=1e-4)


def test_a_dislike_lowers_the_item_and_its_neighbours_and_is_named(catalog, vectors):
    _, plain = lists(catalog, vectors, k=20)
    disliked = int(plain.lists.items[0, 0])
    log = log_of([(disliked, "dislike", 0)], [], [], [])
    ready, result = lists(catalog, vectors, Feedback(), k=20, histories=log)
    assert disliked not in result.lists.items[0]
    np.testing.assert_array_equal(result.lists.items[1:], plain.lists.items[1:])
    before = dict(zip(plain.lists.items[0], plain.lists.scores[0], strict=True))
    touched = names_of(ready, result.lists, 0)
    for item, score, names in zip(
        result.lists.items[0], result.lists.scores[0], touched, strict=True
    ):
        similar = item % 5 == disliked % 5 or item % 2 == disliked % 2
        assert names == (["feedback"] if similar else [])
        if item in before:
            assert (score < before[item] - 1e-6) == similar
    assert not result.lists.touched[1].any()


def test_feedback_decays_and_a_later_choice_cancels_it():
    step = Feedback(half_life_days=10)
    fresh = log_of([(3, "dislike", 0)])
    worn = log_of([(3, "dislike", 0), (4, "view", 10 * DAY)])
    void = log_of([(3, "dislike", 0), (3, "buy", DAY)])
    again = log_of([(3, "dislike", 0), (3, "dislike", 0)])
    assert step.item_weights(fresh, 0)[1].tolist() == [-1]
    assert step.item_weights(worn, 0)[1].tolist() == [-0.5]
    assert step.item_weights(void, 0)[0].tolist() == []
    assert step.item_weights(again, 0)[1].tolist() == [-1]
    without_time = log_of([(3, "dislike", 0), (4, "view", 10 * DAY)], has_time=False)
    assert step.item_weights(without_time, 0)[1].tolist() == [-1]


def test_ignored_impressions_add_up():
    event_types = ("view", "impression")
    seen = [(3, "impression", n) for n in range(4)]
    items, weights = Feedback().item_weights(log_of(seen, event_types=event_types), 0)
    assert items.tolist() == [3]
    assert weights == pytest.approx([-0.2], abs=1e-4)


@pytest.mark.parametrize("after", [Diversity(0.5), Caps({"brand": 1}), Epsilon(0.1)])
def test_no_step_may_reorder_after_epsilon(catalog, vectors, after):
    """Otherwise the propensities would belong to other places."""
    with pytest.raises(ValueError, match=f"so {after.name} must stand before"):
        lists(catalog, vectors, Epsilon(0.5), after)


def test_at_epsilon_zero_the_best_items_have_propensity_one(catalog, vectors):
    _, plain = lists(catalog, vectors)
    _, result = lists(catalog, vectors, Epsilon(0.0))
    np.testing.assert_array_equal(result.lists.items, plain.lists.items)
    np.testing.assert_array_equal(result.lists.propensity, 1)


def test_exploration_steps_are_named_on_the_items_they_moved(catalog, vectors):
    counts = np.full(ITEMS, 9, np.float32)
    counts[:8] = 0
    ready, result = lists(catalog, vectors, Explore(0.4), counts=counts)
    _, plain = lists(catalog, vectors, counts=counts)
    for row in range(USERS):
        names = names_of(ready, result.lists, row)
        added = set(result.lists.items[row]) - set(plain.lists.items[row])
        for item, name in zip(result.lists.items[row], names, strict=True):
            assert item not in added or name == ["explore"]
        assert names[0] == [] or result.lists.items[row, 0] != plain.lists.items[row, 0]
