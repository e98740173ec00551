import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.ranking import catalogue, from_mask, rank_dense, small_integers

from jaxrec.ranking import top_k as ranking_module
from jaxrec.ranking.adjustments import no_adjustments
from jaxrec.ranking.item_table import ItemTable, prepare
from jaxrec.ranking.top_k import EvalQueries, best_items, rank_host_scores, rank_queries


def test_log_z_normalises_over_valid_items_that_are_not_excluded():
    scores = np.array([[50], [1], [2], [3], [50]], np.float32)
    excluded = from_mask(np.array([[False, False, False, True, False]]))

    top = best_items(
        np.ones((1, 1), np.float32),
        ItemTable(scores, catalogue(4, 5)),
        2,
        excluded,
        with_log_z=True,
    )

    np.testing.assert_allclose(top.log_z, np.log(np.exp([1, 2]).sum()), rtol=1e-6)


def test_unknown_item_and_unused_capacity_are_never_ranked():
    scores = np.tile(np.arange(10, 0, -1), (2, 1))
    scores[:, 7:] = 99

    ranking = rank_dense(scores, [1, 6], valid=catalogue(7, 10), k=6)

    np.testing.assert_array_equal(ranking.items, [[1, 2, 3, 4, 5, 6]] * 2)
    np.testing.assert_array_equal(ranking.ranks, [0, 5])


def test_target_outside_the_catalogue_ranks_behind_all_items():
    scores = np.tile(np.arange(8), (3, 1))

    ranking = rank_dense(scores, [0, 7, 1], valid=catalogue(7, 8))

    np.testing.assert_array_equal(ranking.ranks, [6, 6, 5])


def test_excluded_items_leave_the_ranking():
    mask = np.zeros((2, 6), bool)
    mask[0, [5, 4]] = True
    scores = np.tile(np.arange(6), (2, 1))

    ranking = rank_dense(scores, [2, 2], from_mask(mask), k=2)

    np.testing.assert_array_equal(ranking.ranks, [1, 3])
    np.testing.assert_array_equal(ranking.items, [[3, 2], [5, 4]])


def test_padding_of_the_exclusions_excludes_nothing():
    """Item 0 stays in the ranking if it is valid."""
    ranking = rank_dense([[9, 5, 1]], [1], valid=np.ones(3, bool), k=2)

    assert ranking.ranks == [1]
    np.testing.assert_array_equal(ranking.scores, [[9, 5]])


def test_target_is_never_excluded():
    mask = np.ones((1, 6), bool)

    ranking = rank_dense(np.arange(6)[None], [2], from_mask(mask), k=3)

    assert ranking.ranks == [0]
    np.testing.assert_array_equal(ranking.items, [[2, 0, 0]])
    np.testing.assert_array_equal(ranking.scores, [[2, -np.inf, -np.inf]])


def test_catalogue_smaller_than_k_leaves_empty_places():
    ranking = rank_dense([[0, 1, 2, 3]], [3], k=5)

    np.testing.assert_array_equal(ranking.items, [[3, 2, 1, 0, 0]])
    np.testing.assert_array_equal(ranking.scores[0, 3:], [-np.inf, -np.inf])


@pytest.mark.parametrize("block", [8, 16, 64, None])
def test_blocks_do_not_change_the_ranking(block):
    queries, items = small_integers(0, 37, 6), small_integers(1, 256, 6)
    targets = np.random.default_rng(2).integers(0, 200, 37)
    mask = np.random.default_rng(3).random((37, 256)) < 0.2
    valid = catalogue(200, 256)

    ranking = rank_queries(
        EvalQueries(queries, targets, from_mask(mask)),
        prepare(ItemTable(items, valid), block=block),
        5,
    )

    whole = rank_dense(queries @ items.T, targets, from_mask(mask), valid, k=5, block=37)
    np.testing.assert_array_equal(ranking.ranks, whole.ranks)
    np.testing.assert_array_equal(ranking.items, whole.items)
    np.testing.assert_array_equal(ranking.scores, whole.scores)


def test_vectors_in_bfloat16_are_ranked_by_float32_scores():
    """257 is no bfloat16 number: rounded scores would tie both items."""
    queries = jnp.array([[1, 1]], jnp.bfloat16)
    items = jnp.array([[0, 0], [256, 0], [256, 1]], jnp.bfloat16)

    ranking = rank_queries(
        EvalQueries(queries, np.array([2])), ItemTable(items, catalogue(3, 3)), k=1
    )

    assert ranking.ranks == [0]
    assert ranking.scores == [[257]]


def test_no_queries_give_an_empty_ranking():
    ranking = rank_dense(np.zeros((0, 6)), np.zeros(0, int), k=3)

    assert ranking.ranks.shape == (0,)
    assert ranking.items.shape == ranking.scores.shape == (0, 3)


@pytest.mark.parametrize(
    ("num_queries", "num_items", "rows"),
    [(100, 64, 16), (100, 63, 16), (100, 65, 8), (100, 5000, 8), (10, 64, 16), (3, 64, 8)],
)
def test_blocks_are_bounded_powers_of_two(num_queries, num_items, rows, monkeypatch):
    """At most 1,024 scores, at least 8 rows, and no more rows than the queries need."""
    monkeypatch.setattr(ranking_module, "MAX_BLOCK_SCORES", 1024)
    blocks = []

    def score_block(start, stop):
        blocks.append((start, stop))
        return np.ones((stop - start, num_items))

    targets = np.ones(num_queries, int)
    rank_host_scores(score_block, targets, no_adjustments, catalogue(num_items, num_items))

    starts = range(0, num_queries, rows)
    assert blocks == [(start, min(start + rows, num_queries)) for start in starts]


@pytest.fixture
def allow_nan():
    """A context manager would not reach the threads that rank blocks."""
    jax.config.update("jax_debug_nans", False)
    yield
    jax.config.update("jax_debug_nans", True)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_scores_that_are_not_finite_raise(value, allow_nan):
    scores = np.ones((12, 6))
    scores[9, 3] = value

    with pytest.raises(ValueError, match="query 9 are not finite"):
        rank_dense(scores, np.ones(12, int), block=8)
    items = np.ones((6, 1), np.float32)
    queries = np.ones((12, 1), np.float32)
    queries[9] = value
    with pytest.raises(ValueError, match="query 9 are not finite"):
        best_items(queries, ItemTable(items, catalogue(6, 6)), 2)


def test_catalogue_without_valid_items_raises():
    with pytest.raises(ValueError, match="no item is valid"):
        rank_dense(np.ones((1, 6)), [1], valid=np.zeros(6, bool))


def test_arguments_that_do_not_fit_raise(unchecked):
    vectors, valid = np.ones((6, 2), np.float32), catalogue(6, 6)

    with pytest.raises(ValueError, match="2 queries and 3 targets"):
        rank_queries(EvalQueries(vectors[:2], np.ones(3, int)), ItemTable(vectors, valid))
    with pytest.raises(ValueError, match="targets outside"):
        rank_queries(EvalQueries(vectors[:2], np.array([1, 6])), ItemTable(vectors, valid))
    with pytest.raises(ValueError, match=r"\[0, 2\) have shape \(6,\)"):
        rank_host_scores(lambda start, stop: np.ones(6), np.ones(2, int), no_adjustments, valid)


def test_approximate_search_returns_nearly_all_of_the_best():
    random = np.random.default_rng(0)
    queries, items = (random.normal(size=(n, 8)).astype(np.float32) for n in (20, 512))
    table = ItemTable(items, catalogue(512, 512))
    result = best_items(queries, table, 20, approximate=True).items
    exact = best_items(queries, table, 20).items
    shared = [len(set(f) & set(e)) for f, e in zip(result, exact, strict=True)]
    assert np.mean(shared) >= 0.9 * 20


def test_log_z_is_none_unless_requested():
    vectors = small_integers(0, 8, 2)
    top = best_items(vectors, ItemTable(vectors, catalogue(8, 8)), 3)
    assert top.log_z is None
