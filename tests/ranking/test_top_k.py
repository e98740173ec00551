import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxrec.ranking import top_k as ranking_module
from jaxrec.ranking.adjustments import (
    ScoreAdjustments,
    as_blocks,
    combine,
    exclude,
    no_adjustments,
    scale,
)
from jaxrec.ranking.item_table import ItemTable, prepare
from jaxrec.ranking.shard import top_k
from jaxrec.ranking.top_k import EvalQueries, best_items, rank_host_scores, rank_queries
from jaxrec.sharding import make_mesh
from jaxrec.types import NEG_INF


def from_mask(mask):
    """The exclusions of a dense [Q, I] mask, block by block."""
    return lambda start, stop: exclude(*np.nonzero(mask[start:stop]))


def catalogue(num_items, capacity):
    """Row 0 is the unknown item, rows from num_items on are unused capacity."""
    rows = np.arange(capacity)
    return (rows > 0) & (rows < num_items)


def rank_dense(scores, targets, excluded=no_adjustments, valid=None, **options):
    scores = np.asarray(scores, np.float32)
    valid = catalogue(scores.shape[1], scores.shape[1]) if valid is None else valid
    return rank_host_scores(
        lambda start, stop: scores[start:stop], np.asarray(targets), excluded, valid, **options
    )


def small_integers(seed, *shape):
    """Vectors whose products are exact in float32, with many equal ones."""
    return np.random.default_rng(seed).integers(-2, 3, shape).astype(np.float32)


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


def test_padding_of_the_pairs_excludes_nothing():
    """Item 0 is kept where the caller calls it valid."""
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


@pytest.mark.parametrize("block", [8, 16, 64, None])
def test_blocks_do_not_change_the_ranking(block):
    queries, items = small_integers(0, 37, 6), small_integers(1, 256, 6)
    targets = np.random.default_rng(2).integers(0, 200, 37)
    mask = np.random.default_rng(3).random((37, 256)) < 0.2
    valid = catalogue(200, 256)

    ranking = rank_queries(
        EvalQueries(queries, targets, from_mask(mask)), ItemTable(items, valid), 5, block=block
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
    """Also in the threads that rank blocks, which a context manager would not reach."""
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


@pytest.mark.parametrize("num_items", [100, 256, 4096, 4100])
@pytest.mark.parametrize("spread", [3, 1000, 10**6])
def test_top_k_is_a_stable_sort(num_items, spread):
    scores = np.random.default_rng(0).integers(0, spread, (9, num_items)).astype(np.float32)
    scores[0] = -np.inf

    values, columns = top_k(jnp.asarray(scores), 10)

    expected = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    np.testing.assert_array_equal(columns, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(scores, expected, axis=1))


def test_wide_rows_are_searched_in_chunks(monkeypatch):
    """The chunked path must be the one that the stable-sort test sees at 4096 columns."""
    widths = []

    def recorded(scores, k, plain=lax.top_k):
        widths.append(scores.shape[-1])
        return plain(scores, k)

    monkeypatch.setattr(lax, "top_k", recorded)
    top_k(jnp.zeros((2, 4096)), 10)

    assert widths == [128, 320]


@pytest.mark.parametrize(("block", "item_shards"), [(8, 1), (16, 2), (24, 4), (None, 4)])
def test_neither_blocks_nor_devices_show_in_a_ranking(block, item_shards):
    """On vectors whose products are exact, with ties within and across the shards."""
    queries, items = small_integers(0, 37, 4), small_integers(1, 64, 4)
    valid, targets = catalogue(50, 64), np.random.default_rng(2).integers(0, 50, 37)
    mask = np.random.default_rng(3).random((37, 64)) < 0.2
    excluded = from_mask(mask)
    bias = np.where(np.arange(64) % 7, 0, -np.inf)
    mesh = make_mesh(item_shards)

    eval_queries, table = EvalQueries(queries, targets, excluded), ItemTable(items, valid)
    ranking = rank_queries(eval_queries, table, 20, block=block, mesh=mesh)
    expected = rank_queries(eval_queries, table, 20)
    for name, value in vars(ranking).items():
        np.testing.assert_array_equal(value, getattr(expected, name))

    prepared = prepare(ItemTable(items, valid, bias), mesh)
    top = best_items(queries, prepared, 20, excluded, block=block)
    allowed = valid & (bias == 0) & ~mask
    scores = np.where(allowed, queries @ items.T, -np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :20]
    expected_scores = np.take_along_axis(scores, order, axis=1)
    np.testing.assert_array_equal(top.scores, expected_scores)
    np.testing.assert_array_equal(top.items, np.where(expected_scores > -np.inf, order, 0))


@pytest.mark.parametrize("item_shards", [1, 2, 4])
def test_amounts_are_added_to_scores_on_any_mesh(item_shards):
    """To targets as well, twice for one item, and beside what is left out."""
    queries, items = small_integers(0, 8, 4), small_integers(1, 64, 4)
    valid, targets = catalogue(50, 64), np.random.default_rng(2).integers(1, 50, 8)
    some = np.random.default_rng(3)
    rows, columns = np.sort(some.integers(0, 8, 40)), some.integers(1, 50, 40)
    columns[:8] = targets[rows[:8]]
    amounts = some.integers(-3, 4, 40).astype(np.float32)
    out = some.random((8, 64)) < 0.2
    pairs = combine(from_mask(out), as_blocks(ScoreAdjustments(rows, columns, amounts)))
    scores = queries @ items.T
    np.add.at(scores, (rows, columns), amounts)
    out[np.arange(8), targets] = False
    expected = rank_dense(np.where(out, -np.inf, scores), targets, valid=valid, k=5)
    mesh = make_mesh(item_shards)
    found = rank_queries(
        EvalQueries(queries, targets, pairs), ItemTable(items, valid), 5, mesh=mesh
    )
    for name, value in vars(found).items():
        np.testing.assert_array_equal(value, getattr(expected, name))


def test_scaled_pairs_leave_out_what_they_did():
    pairs = as_blocks(
        ScoreAdjustments(np.array([0, 1, 1]), np.array([4, 5, 6]), np.float32([2, NEG_INF, -1]))
    )
    found = scale(pairs, 0.1)(1, 2)
    assert found.rows.tolist() == [0, 0]
    np.testing.assert_allclose(found.amounts, [NEG_INF, -0.1])


@pytest.mark.parametrize("item_shards", [1, 2, 4])
def test_real_vectors_are_ranked_alike_on_any_mesh(item_shards):
    random = np.random.default_rng(0)
    queries, items = (random.normal(size=(n, 16)).astype(np.float32) for n in (30, 256))
    table = ItemTable(items, catalogue(250, 256))
    top, expected = (
        best_items(queries, prepare(table, mesh), 10, with_log_z=True)
        for mesh in (make_mesh(item_shards), None)
    )
    np.testing.assert_array_equal(top.items, expected.items)
    np.testing.assert_allclose(top.scores, expected.scores, atol=1e-5)
    np.testing.assert_allclose(top.log_z, expected.log_z, atol=1e-5)


def test_approximate_search_finds_nearly_all_of_the_best():
    random = np.random.default_rng(0)
    queries, items = (random.normal(size=(n, 8)).astype(np.float32) for n in (20, 512))
    table = ItemTable(items, catalogue(512, 512))
    found = best_items(queries, table, 20, approximate=True).items
    exact = best_items(queries, table, 20).items
    shared = [len(set(f) & set(e)) for f, e in zip(found, exact, strict=True)]
    assert np.mean(shared) >= 0.9 * 20


def test_log_z_is_left_out_when_nobody_asks():
    vectors = small_integers(0, 8, 2)
    top = best_items(vectors, ItemTable(vectors, catalogue(8, 8)), 3)
    assert top.log_z is None
