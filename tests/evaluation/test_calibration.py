import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from jaxrec.evaluation import calibration
from jaxrec.evaluation.calibration import Calibration, Correction
from jaxrec.evaluation.reliability import likely_items_reliability, reliability
from jaxrec.ranking import shard, top_k
from jaxrec.ranking.adjustments import (
    ScoreAdjustments,
    as_blocks,
    exclude,
    no_adjustments,
    select_queries,
)
from jaxrec.ranking.item_table import ItemTable
from jaxrec.ranking.top_k import EvalQueries

WIDTH, NUM_ITEMS, CAPACITY = 4, 40, 48


def catalogue():
    """Row 0 is the unknown item, rows from NUM_ITEMS on are unused capacity."""
    rows = np.arange(CAPACITY)
    return (rows > 0) & (rows < NUM_ITEMS)


def fit_temperature(queries, items, targets, valid, adjustments=no_adjustments, **options):
    eval_queries = EvalQueries(queries, targets, adjustments)
    return calibration.fit_temperature(eval_queries, ItemTable(items, valid), **options)


def log_probabilities(queries, items, columns, valid, adjustments=no_adjustments, **options):
    table = ItemTable(items, valid)
    return top_k.log_probabilities(queries, table, columns, adjustments, **options)


def vectors(seed, num_queries):
    random = np.random.default_rng(seed)
    shapes = (num_queries, WIDTH), (CAPACITY, WIDTH)
    queries, items = (random.normal(size=shape).astype(np.float32) for shape in shapes)
    return queries, items


def dense_log_probabilities(queries, items, inverse_temperature=1.0):
    """In float64, over the valid items alone."""
    scores = inverse_temperature * queries.astype(np.float64) @ items.astype(np.float64).T
    scores[:, ~catalogue()] = -np.inf
    return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))


def drawn_targets(seed, queries, items, inverse_temperature=1.0):
    """One item a query, drawn from the softmax of its scaled scores (by Gumbel noise)."""
    log_p = dense_log_probabilities(queries, items, inverse_temperature)
    noise = np.random.default_rng(seed).gumbel(size=log_p.shape)
    return np.argmax(log_p + noise, axis=1)


def loss_at(inverse_temperature, queries, items, targets):
    log_p = dense_log_probabilities(queries, items, inverse_temperature)
    return -log_p[np.arange(len(targets)), targets].mean()


@pytest.mark.parametrize("true", [0.2, 1.0, 3.0])
def test_the_temperature_that_drew_the_targets_is_found(true):
    queries, items = vectors(0, 3000)
    targets = drawn_targets(1, queries, items, true)

    fitted = fit_temperature(queries, items, targets, catalogue())

    assert fitted.inverse_temperature == pytest.approx(true, rel=0.1)
    assert fitted.queries == 3000


def test_scaled_scores_are_scaled_back():
    queries, items = vectors(0, 500)
    targets = drawn_targets(1, queries, items)

    plain = fit_temperature(queries, items, targets, catalogue())
    scaled = fit_temperature(4 * queries, items, targets, catalogue())

    assert scaled.inverse_temperature == pytest.approx(plain.inverse_temperature / 4, rel=1e-2)
    assert scaled.loss_after == pytest.approx(plain.loss_after, abs=1e-5)


def test_losses_are_those_of_a_dense_softmax():
    queries, items = vectors(2, 100)
    targets = drawn_targets(3, queries, items, 2.0)

    fitted = fit_temperature(queries, items, targets, catalogue(), block=32)

    best = fitted.inverse_temperature
    assert fitted.loss_before == pytest.approx(loss_at(1.0, queries, items, targets), rel=1e-5)
    assert fitted.loss_after == pytest.approx(loss_at(best, queries, items, targets), rel=1e-5)
    for other in (best / 1.2, best * 1.2):
        assert loss_at(other, queries, items, targets) > fitted.loss_after


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 30))
def test_the_fit_is_never_worse_than_no_fit(seed, true):
    queries, items = vectors(seed, 20)
    targets = drawn_targets(seed + 1, queries, items, true)

    fitted = fit_temperature(queries, items, targets, catalogue())

    assert fitted.loss_after <= fitted.loss_before
    low, high = calibration.INVERSE_TEMPERATURES
    assert low <= fitted.inverse_temperature <= high


def test_scores_that_tell_nothing_leave_the_temperature_at_one():
    queries, items = np.zeros((10, WIDTH), np.float32), vectors(0, 1)[1]

    fitted = fit_temperature(queries, items, np.ones(10, int), catalogue())

    assert fitted.inverse_temperature == 1
    assert fitted.loss_before == fitted.loss_after == pytest.approx(math.log(NUM_ITEMS - 1))


def test_targets_that_contradict_the_scores_end_at_the_lowest_scale():
    queries, items = vectors(0, 50)
    targets = np.argmin(np.where(catalogue(), queries @ items.T, np.inf), axis=1)

    fitted = fit_temperature(queries, items, targets, catalogue())

    assert fitted.inverse_temperature == pytest.approx(0.05, rel=1e-3)


def test_queries_without_a_valid_target_are_left_out():
    queries, items = vectors(0, 60)
    targets = drawn_targets(1, queries, items)
    targets[::3], targets[1::3] = 0, CAPACITY - 1

    fitted = fit_temperature(queries, items, targets, catalogue())

    assert fitted.queries == 20
    assert fitted == fit_temperature(queries[2::3], items, targets[2::3], catalogue())


def test_many_queries_are_thinned_evenly():
    queries, items = vectors(0, 100)
    targets = drawn_targets(1, queries, items)

    fitted = fit_temperature(queries, items, targets, catalogue(), limit=25)

    assert fitted.queries == 25
    assert fitted == fit_temperature(queries[::4], items, targets[::4], catalogue())


@pytest.mark.parametrize("block", [1, 7, 64])
def test_blocks_do_not_change_log_probabilities(block):
    queries, items = vectors(0, 23)
    columns = np.random.default_rng(1).integers(1, NUM_ITEMS, (23, 3))

    log_p = log_probabilities(
        queries, items, columns, catalogue(), inverse_temperature=1.7, block=block
    )

    dense = dense_log_probabilities(queries, items, 1.7)
    np.testing.assert_allclose(log_p, np.take_along_axis(dense, columns, 1), rtol=1e-5, atol=1e-5)


def test_no_more_scores_exist_than_allowed(monkeypatch):
    rows = []

    def recorded(vectors, size, plain=top_k._with_one):
        rows.append(size)
        return plain(vectors, size)

    monkeypatch.setattr(top_k, "_with_one", recorded)
    monkeypatch.setattr(top_k, "MAX_BLOCK_SCORES", 8 * CAPACITY)
    queries, items = vectors(0, 23)
    columns = np.ones((23, 1), int)

    log_probabilities(queries, items, columns, catalogue(), inverse_temperature=1.0)
    log_probabilities(queries, items, columns, catalogue(), inverse_temperature=1.0, block=6)

    assert rows == [8, 8, 8, 6, 6, 6, 6]


def test_every_temperature_and_block_share_one_compilation():
    queries, items = vectors(0, 50)
    targets = drawn_targets(1, queries, items)
    shard.compiled_ranking.cache_clear()

    fit_temperature(queries, items, targets, catalogue(), block=16)

    options = shard.RankOptions(0, with_log_z=True)
    ranking = shard.compiled_ranking(top_k.single_device_mesh(), options)
    assert ranking._cache_size() == 1


def test_probabilities_of_all_valid_items_sum_to_one_and_others_are_zero():
    queries, items = vectors(0, 5)
    columns = np.tile(np.arange(CAPACITY), (5, 1))

    p = np.exp(log_probabilities(queries, items, columns, catalogue(), inverse_temperature=0.7))

    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)
    assert (p[:, ~catalogue()] == 0).all()


def test_a_certain_item_has_at_most_probability_one():
    random = np.random.default_rng(0)
    queries, items = 30 * random.normal(size=(200, WIDTH)), random.normal(size=(CAPACITY, WIDTH))
    best = np.argmax(np.where(catalogue(), queries @ items.T, -np.inf), axis=1)[:, None]

    log_p = log_probabilities(
        queries.astype(np.float32),
        items.astype(np.float32),
        best,
        catalogue(),
        inverse_temperature=1.3,
    )

    assert log_p.max() <= 0


def test_what_is_excluded_has_no_probability():
    queries, items = vectors(0, 6)
    excluded = (np.array([1, 1, 4]), np.array([1, 2, 3]))
    columns = np.tile([1, 2, 3], (6, 1))
    log_p = log_probabilities(
        queries,
        items,
        columns,
        catalogue(),
        as_blocks(exclude(*excluded)),
        inverse_temperature=1.0,
        block=2,
    )
    scores = np.where(catalogue(), queries @ items.T, -np.inf)
    scores[excluded] = -np.inf
    np.testing.assert_allclose(log_p, log_softmax(scores, axis=1)[:, 1:4], atol=1e-4)


def test_what_is_added_to_scores_counts_at_the_temperature():
    queries, items = vectors(0, 6)
    rows, columns = np.array([1, 1, 4]), np.array([1, 2, 3])
    amounts = np.array([2, -1, 3], np.float32)
    log_p = log_probabilities(
        queries,
        items,
        np.tile([1, 2, 3], (6, 1)),
        catalogue(),
        as_blocks(ScoreAdjustments(rows, columns, amounts)),
        inverse_temperature=0.7,
    )
    scores = np.where(catalogue(), queries @ items.T, -np.inf)
    scores[rows, columns] += amounts
    np.testing.assert_allclose(log_p, log_softmax(0.7 * scores, axis=1)[:, 1:4], atol=1e-4)


@pytest.mark.parametrize(("shift", "decay"), [(3.0, 0.0), (2.0, 0.7), (-1.0, -0.3)])
def test_the_correction_that_drew_the_targets_is_found(shift, decay):
    """Whatever the temperature; every query has two own items, of several ages."""
    queries, items = vectors(0, 1500)
    random = np.random.default_rng(2)
    rows = np.repeat(np.arange(len(queries)), 2)
    own, ages = random.integers(1, NUM_ITEMS, len(rows)), random.integers(0, 64, len(rows))
    learned = random.normal(size=(1, 64)).astype(np.float32)

    def pairs(correction, chosen):
        amounts = correction.repeat_bias(learned, np.array([True]))[0, ages]
        return select_queries(as_blocks(ScoreAdjustments(rows, own, amounts)), chosen, len(queries))

    scores = np.where(catalogue(), queries @ items.T, -np.inf)
    np.add.at(
        scores, (rows, own), pairs(Correction(0, shift, decay), np.arange(1500))(0, 1500).amounts
    )
    targets = np.argmax(0.8 * scores + random.gumbel(size=scores.shape), axis=1)
    found = calibration.fit_repeat_bias(
        EvalQueries(queries, targets), ItemTable(items, catalogue()), pairs, limit=1200
    )
    assert found.repeat_shift == pytest.approx(shift, abs=0.6)
    assert found.repeat_decay == pytest.approx(decay, abs=0.2)


@pytest.mark.parametrize("strength", [-0.6, 0.0, 0.4])
def test_popularity_is_corrected_where_targets_ask_for_it(strength):
    """Least of what is as good as the best: towards the strength that drew the targets."""
    queries, items = vectors(0, 1500)
    random = np.random.default_rng(2)
    counts = random.geometric(0.01, len(items)).astype(np.float32)
    scores = queries @ items.T + Correction(strength).popularity_bias(counts)
    scores[:, ~catalogue()] = -np.inf
    targets = np.argmax(scores + random.gumbel(size=scores.shape), axis=1)

    found = calibration.fit_popularity(
        EvalQueries(2 * queries, targets),  # at half the temperature
        ItemTable(items, catalogue()),
        counts,
        inverse_temperature=0.5,
    )
    assert found * 0.5 == pytest.approx(strength, abs=0.21)
    assert abs(found * 0.5) <= abs(strength) + 0.1


def test_what_is_not_counted_is_not_familiar():
    learned = np.ones((3, 2, 8), np.float32)
    found = Correction(0.0, 2.0, 1.0).repeat_bias(learned, np.array([True, False]))
    np.testing.assert_allclose(found[:, 0, [0, 1, 3, 7]], np.tile([3.0, 2, 1, 0], (3, 1)))
    assert not found[:, 1].any()


def test_nothing_is_left_where_all_is_excluded():
    queries, items = vectors(0, 1)
    everything = np.arange(CAPACITY)
    log_p = log_probabilities(
        queries,
        items,
        np.array([[1, 2]]),
        catalogue(),
        as_blocks(exclude(np.zeros_like(everything), everything)),
        inverse_temperature=1.0,
    )
    assert (log_p == -np.inf).all()


def test_a_temperature_is_fitted_to_what_is_not_excluded():
    """Where the items that score above the targets are out, the targets are certain."""
    queries, items = vectors(0, 6)
    scores = np.where(catalogue(), queries @ items.T, -np.inf)
    targets = np.argsort(-scores, axis=1)[:, 2]
    higher = scores > scores[np.arange(6), targets][:, None]
    above = as_blocks(exclude(*np.nonzero(higher)))
    with_all = fit_temperature(queries, items, targets, catalogue())
    without = fit_temperature(queries, items, targets, catalogue(), above, limit=4)
    assert without.inverse_temperature > with_all.inverse_temperature


def test_vectors_in_bfloat16_are_scored_in_float32():
    queries = jnp.array([[1, 1]], jnp.bfloat16)
    items = jnp.array([[0, 0], [256, 0], [256, 1]], jnp.bfloat16)
    valid = np.array([False, True, True])

    log_p = log_probabilities(queries, items, np.array([[1, 2]]), valid, inverse_temperature=1.0)

    np.testing.assert_allclose(np.diff(log_p), [[1]], atol=1e-4)


def test_no_queries_have_no_log_probabilities():
    queries, items = vectors(0, 0)

    log_p = log_probabilities(
        queries, items, np.zeros((0, 3), int), catalogue(), inverse_temperature=1.0
    )

    assert log_p.shape == (0, 3)


def test_arguments_that_do_not_fit_raise(unchecked):
    queries, items = vectors(0, 3)
    valid = catalogue()

    with pytest.raises(ValueError, match="3 queries and 2 targets"):
        fit_temperature(queries, items, np.ones(2, int), valid)
    with pytest.raises(ValueError, match=r"outside \[0, 48\)"):
        fit_temperature(queries, items, np.array([1, 2, CAPACITY]), valid)
    with pytest.raises(ValueError, match=r"outside \[0, 48\)"):
        fit_temperature(queries, items, np.array([1, 2, -1]), valid)
    with pytest.raises(ValueError, match="none of 3 queries has a valid target"):
        fit_temperature(queries, items, np.zeros(3, int), valid)
    with pytest.raises(ValueError, match="none of 0 queries has a valid target"):
        fit_temperature(queries[:0], items, np.zeros(0, int), valid)
    with pytest.raises(ValueError, match="limit must be at least 1, not 0"):
        fit_temperature(queries, items, np.ones(3, int), valid, limit=0)
    with pytest.raises(ValueError, match="block must be at least 1, not 0"):
        fit_temperature(queries, items, np.ones(3, int), valid, block=0)
    with pytest.raises(ValueError, match="no item is valid"):
        log_probabilities(
            queries, items, np.ones((3, 1), int), np.zeros(CAPACITY, bool), inverse_temperature=1.0
        )


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_scores_that_are_not_finite_raise(value):
    queries, items = vectors(0, 6)
    queries[4, 0] = value

    with jax.debug_nans(False), pytest.raises(ValueError, match="query 4 are not finite"):
        fit_temperature(queries, items, np.ones(6, int), catalogue())


def random_outcomes(seed, num_rows, num_columns, factor=1.0):
    """Probabilities over several orders of magnitude, and hits `factor` as likely."""
    random = np.random.default_rng(seed)
    probabilities = 10 ** random.uniform(-3, -0.3, (num_rows, num_columns))
    return probabilities, random.random(probabilities.shape) < factor * probabilities


@pytest.mark.parametrize("bins", [1, 4, 7, 200])
def test_bins_agree_with_walking_through_the_pairs_in_order(bins):
    probabilities, hits = random_outcomes(0, 30, 4)

    found = reliability(probabilities, hits, bins)

    pairs = sorted(zip(probabilities.flat, hits.flat, strict=True))
    members = {}
    for place, pair in enumerate(pairs):
        last = max(b for b in range(bins) if b * len(pairs) // bins <= place)
        members.setdefault(last, []).append(pair)
    groups = [members[b] for b in sorted(members)]
    assert len(groups) == min(bins, len(pairs))
    error = 0.0
    for b, group in enumerate(groups):
        predicted = sum(p for p, _ in group) / len(group)
        observed = sum(hit for _, hit in group) / len(group)
        deviation = math.sqrt(observed * (1 - observed) / len(group))
        assert found.counts[b] == len(group)
        assert found.predicted[b] == pytest.approx(predicted)
        assert found.observed[b] == pytest.approx(observed)
        assert found.standard_error[b] == pytest.approx(deviation)
        error += len(group) / len(pairs) * abs(predicted - observed)
    assert len(found.counts) == len(groups)
    assert found.expected_error == pytest.approx(error)
    assert found.predicted_to_observed == pytest.approx(probabilities.sum() / hits.sum())


def test_equal_probabilities_share_a_bin():
    probabilities = np.array([[0.1, 0.5, 0.1, 0.1, 0.5, 0.1]])
    hits = np.array([[True, True, False, False, True, False]])

    found = reliability(probabilities, hits, bins=3)

    np.testing.assert_array_equal(found.counts, [4, 2])
    np.testing.assert_allclose(found.predicted, [0.1, 0.5])
    np.testing.assert_allclose(found.observed, [0.25, 1])


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.7, 1.0]), min_size=1), st.integers(1, 12))
def test_bins_keep_every_pair_and_never_cut_through_equals(values, bins):
    probabilities = np.array([values])
    hits = np.array([[value > 0.5 for value in values]])

    found = reliability(probabilities, hits, bins)

    assert found.counts.sum() == len(values)
    assert (found.counts > 0).all()
    assert len(found.counts) <= min(bins, len(set(values)))
    assert (np.diff(found.predicted) > 0).all()
    assert found.counts @ found.predicted == pytest.approx(sum(values))
    assert found.counts @ found.observed == pytest.approx(hits.sum())


def test_calibrated_probabilities_have_a_small_error():
    true = reliability(*random_outcomes(0, 2000, 20))
    doubled = reliability(*random_outcomes(0, 2000, 20, factor=0.5))

    assert true.expected_error < 0.005 < 0.02 < doubled.expected_error
    assert true.predicted_to_observed == pytest.approx(1, rel=0.05)
    assert doubled.predicted_to_observed == pytest.approx(2, rel=0.05)
    assert (abs(true.predicted - true.observed) < 4 * true.standard_error + 1e-3).all()


def test_a_fitted_temperature_makes_overconfident_scores_reliable():
    queries, items = vectors(0, 3000)
    columns = np.tile(np.arange(1, NUM_ITEMS), (3000, 1))
    hits = columns == drawn_targets(1, queries, items)[:, None]
    targets = drawn_targets(2, queries, items)
    fitted = fit_temperature(3 * queries, items, targets, catalogue())

    def error(inverse_temperature):
        log_p = log_probabilities(
            3 * queries, items, columns, catalogue(), inverse_temperature=inverse_temperature
        )
        return reliability(np.exp(log_p), hits).expected_error

    assert error(fitted.inverse_temperature) < 0.2 * error(1.0)


@pytest.mark.parametrize("k", [3, 100])
def test_the_likeliest_items_are_compared_with_the_targets(k):
    queries, items = vectors(0, 50)
    targets = drawn_targets(1, queries, items)
    targets[:5] = 0

    found = likely_items_reliability(
        EvalQueries(queries, targets), ItemTable(jnp.asarray(items), catalogue()), k
    )

    log_p = dense_log_probabilities(queries, items)
    best = np.argsort(-log_p, axis=1)[:, : min(k, NUM_ITEMS - 1)]
    p = np.exp(np.take_along_axis(log_p, best, axis=1))
    expected = reliability(p, best == targets[:, None])
    np.testing.assert_array_equal(found.counts, expected.counts)
    np.testing.assert_allclose(found.predicted, expected.predicted, rtol=1e-5)
    np.testing.assert_allclose(found.observed, expected.observed)


def test_probabilities_in_float32_are_summed_in_float64():
    probabilities = np.full((1000, 100), 0.1, np.float32)

    found = reliability(probabilities, np.ones(probabilities.shape, bool))

    assert found.predicted == pytest.approx(float(np.float32(0.1)), rel=1e-9)


def test_both_results_survive_json():
    calibration = Calibration(1.5, 3.0, 2.5, 10)
    found = reliability(*random_outcomes(0, 30, 4), bins=3)

    fields = json.loads(json.dumps(calibration.as_dict()))
    fields["correction"] = Correction(**fields["correction"])
    assert Calibration(**fields) == calibration
    fields = json.loads(json.dumps(found.as_dict()))
    assert fields["counts"] == [40, 40, 40]
    for name in ("predicted", "observed", "standard_error"):
        np.testing.assert_array_equal(fields[name], getattr(found, name))
    assert fields["expected_error"] == found.expected_error
    assert fields["predicted_to_observed"] == found.predicted_to_observed


def test_a_ratio_to_no_hits_is_infinite_and_none_in_json():
    found = reliability(np.array([[0.1, 0.2]]), np.zeros((1, 2), bool))

    assert found.predicted_to_observed == math.inf
    assert found.as_dict()["predicted_to_observed"] is None
    json.dumps(found.as_dict(), allow_nan=False)


def test_outcomes_that_do_not_fit_raise(unchecked):
    p, hits = np.array([[0.1, 0.2]]), np.array([[True, False]])

    with pytest.raises(ValueError, match=r"shape \(1, 2\) and hits of shape \(1, 1\)"):
        reliability(p, hits[:, :1])
    with pytest.raises(ValueError, match="no probabilities"):
        reliability(p[:, :0], hits[:, :0])
    with pytest.raises(ValueError, match=r"1 of 2 values are no probabilities \(-2\)"):
        reliability(np.array([[0.1, -2.0]]), hits)
    with pytest.raises(ValueError, match=r"2 of 2 values are no probabilities \(nan, 1.5\)"):
        reliability(np.array([[np.nan, 1.5]]), hits)
    with pytest.raises(ValueError, match="bins must be at least 1, not 0"):
        reliability(p, hits, 0)
