import math

import jax
import numpy as np
import pytest
from helpers.probabilities import (
    CAPACITY,
    NUM_ITEMS,
    WIDTH,
    catalogue,
    dense_log_probabilities,
    drawn_targets,
    fit_temperature,
    log_probabilities,
    vectors,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.evaluation import calibration
from jaxrec.evaluation.calibration import Correction
from jaxrec.ranking import shard, top_k
from jaxrec.ranking.adjustments import ScoreAdjustments, as_blocks, exclude, select_queries
from jaxrec.ranking.item_table import ItemTable
from jaxrec.ranking.top_k import EvalQueries


def loss_at(inverse_temperature, queries, items, targets):
    log_p = dense_log_probabilities(queries, items, inverse_temperature)
    return -log_p[np.arange(len(targets)), targets].mean()


@pytest.mark.parametrize("true", [0.2, 1.0, 3.0])
def test_the_fit_recovers_the_temperature_of_the_targets(true):
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


def test_equal_scores_leave_the_temperature_at_one():
    queries, items = np.zeros((10, WIDTH), np.float32), vectors(0, 1)[1]

    fitted = fit_temperature(queries, items, np.ones(10, int), catalogue())

    assert fitted.inverse_temperature == 1
    assert fitted.loss_before == fitted.loss_after == pytest.approx(math.log(NUM_ITEMS - 1))


def test_targets_that_contradict_the_scores_end_at_the_lowest_scale():
    queries, items = vectors(0, 50)
    targets = np.argmin(np.where(catalogue(), queries @ items.T, np.inf), axis=1)

    fitted = fit_temperature(queries, items, targets, catalogue())

    assert fitted.inverse_temperature == pytest.approx(0.05, rel=1e-3)


def test_queries_without_a_valid_target_are_ignored():
    queries, items = vectors(0, 60)
    targets = drawn_targets(1, queries, items)
    targets[::3], targets[1::3] = 0, CAPACITY - 1

    fitted = fit_temperature(queries, items, targets, catalogue())

    assert fitted.queries == 20
    assert fitted == fit_temperature(queries[2::3], items, targets[2::3], catalogue())


def test_many_queries_are_subsampled_evenly():
    queries, items = vectors(0, 100)
    targets = drawn_targets(1, queries, items)

    fitted = fit_temperature(queries, items, targets, catalogue(), limit=25)

    assert fitted.queries == 25
    assert fitted == fit_temperature(queries[::4], items, targets[::4], catalogue())


def test_every_temperature_and_block_share_one_compilation():
    queries, items = vectors(0, 50)
    targets = drawn_targets(1, queries, items)
    shard.compiled_ranking.cache_clear()

    fit_temperature(queries, items, targets, catalogue(), block=16)

    options = shard.RankOptions(0, with_log_z=True)
    ranking = shard.compiled_ranking(top_k.single_device_mesh(), options)
    assert ranking._cache_size() == 1


@pytest.mark.parametrize(("shift", "decay"), [(3.0, 0.0), (2.0, 0.7), (-1.0, -0.3)])
def test_the_fit_recovers_the_repeat_bias_of_the_targets(shift, decay):
    """At any temperature; every query has two items of its history, of several ages."""
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
    fit = calibration.fit_repeat_bias(
        EvalQueries(queries, targets), ItemTable(items, catalogue()), pairs, limit=1200
    )
    assert fit.repeat_shift == pytest.approx(shift, abs=0.6)
    assert fit.repeat_decay == pytest.approx(decay, abs=0.2)


def test_a_repeat_bias_has_limits_where_nobody_repeats():
    queries, items = vectors(0, 200)
    rows, ages = np.arange(len(queries)), np.zeros(len(queries), np.int64)
    targets = drawn_targets(1, queries, items)
    own = np.where(targets == 1, 2, 1)  # never the target

    def pairs(correction, chosen):
        amounts = correction.repeat_bias(np.zeros((1, 64), np.float32), np.array([True]))[0, ages]
        return select_queries(as_blocks(ScoreAdjustments(rows, own, amounts)), chosen, len(queries))

    fit = calibration.fit_repeat_bias(
        EvalQueries(queries, targets), ItemTable(items, catalogue()), pairs
    )
    assert -100 <= fit.repeat_shift < -1 and abs(fit.repeat_decay) <= 100


@pytest.mark.parametrize("strength", [-0.6, 0.0, 0.4])
def test_the_fit_recovers_the_popularity_bias_of_the_targets(strength):
    """The fit takes the weakest strength that is as good as the best one."""
    queries, items = vectors(0, 1500)
    random = np.random.default_rng(2)
    counts = random.geometric(0.01, len(items)).astype(np.float32)
    scores = queries @ items.T + Correction(strength).popularity_bias(counts)
    scores[:, ~catalogue()] = -np.inf
    targets = np.argmax(scores + random.gumbel(size=scores.shape), axis=1)

    fit = calibration.fit_popularity(
        EvalQueries(2 * queries, targets),  # at half the temperature
        ItemTable(items, catalogue()),
        counts,
        inverse_temperature=0.5,
    )
    assert fit * 0.5 == pytest.approx(strength, abs=0.21)
    assert abs(fit * 0.5) <= abs(strength) + 0.1


def test_masked_event_types_get_no_repeat_bias():
    learned = np.ones((3, 2, 8), np.float32)
    fit = Correction(0.0, 2.0, 1.0).repeat_bias(learned, np.array([True, False]))
    np.testing.assert_allclose(fit[:, 0, [0, 1, 3, 7]], np.tile([3.0, 2, 1, 0], (3, 1)))
    assert not fit[:, 1].any()


def test_the_temperature_fit_respects_exclusions():
    """Without the items that score above the targets, the targets are certain."""
    queries, items = vectors(0, 6)
    scores = np.where(catalogue(), queries @ items.T, -np.inf)
    targets = np.argsort(-scores, axis=1)[:, 2]
    higher = scores > scores[np.arange(6), targets][:, None]
    above = as_blocks(exclude(*np.nonzero(higher)))
    with_all = fit_temperature(queries, items, targets, catalogue())
    without = fit_temperature(queries, items, targets, catalogue(), above, limit=4)
    assert without.inverse_temperature > with_all.inverse_temperature


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
