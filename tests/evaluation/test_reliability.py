"""Reliability of predicted probabilities."""

import json
import math
from dataclasses import asdict

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.probabilities import (
    NUM_ITEMS,
    catalogue,
    dense_log_probabilities,
    drawn_targets,
    fit_temperature,
    log_probabilities,
    vectors,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.evaluation.calibration import Calibration, Correction
from jaxrec.evaluation.reliability import likely_items_reliability, reliability
from jaxrec.ranking.item_table import ItemTable
from jaxrec.ranking.top_k import EvalQueries


def random_outcomes(seed, num_rows, num_columns, factor=1.0):
    """Probabilities over several orders of magnitude, and hits `factor` as likely."""
    random = np.random.default_rng(seed)
    probabilities = 10 ** random.uniform(-3, -0.3, (num_rows, num_columns))
    return probabilities, random.random(probabilities.shape) < factor * probabilities


@pytest.mark.parametrize("bins", [1, 4, 7, 200])
def test_bins_agree_with_a_loop_over_sorted_pairs(bins):
    probabilities, hits = random_outcomes(0, 30, 4)

    result = reliability(probabilities, hits, bins)

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
        assert result.counts[b] == len(group)
        assert result.predicted[b] == pytest.approx(predicted)
        assert result.observed[b] == pytest.approx(observed)
        assert result.standard_error[b] == pytest.approx(deviation)
        error += len(group) / len(pairs) * abs(predicted - observed)
    assert len(result.counts) == len(groups)
    assert result.expected_error == pytest.approx(error)
    assert result.predicted_to_observed == pytest.approx(probabilities.sum() / hits.sum())


def test_equal_probabilities_share_a_bin():
    probabilities = np.array([[0.1, 0.5, 0.1, 0.1, 0.5, 0.1]])
    hits = np.array([[True, True, False, False, True, False]])

    result = reliability(probabilities, hits, bins=3)

    np.testing.assert_array_equal(result.counts, [4, 2])
    np.testing.assert_allclose(result.predicted, [0.1, 0.5])
    np.testing.assert_allclose(result.observed, [0.25, 1])


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.7, 1.0]), min_size=1), st.integers(1, 12))
def test_bins_keep_every_pair_and_never_cut_through_equals(values, bins):
    probabilities = np.array([values])
    hits = np.array([[value > 0.5 for value in values]])

    result = reliability(probabilities, hits, bins)

    assert result.counts.sum() == len(values)
    assert (result.counts > 0).all()
    assert len(result.counts) <= min(bins, len(set(values)))
    assert (np.diff(result.predicted) > 0).all()
    assert result.counts @ result.predicted == pytest.approx(sum(values))
    assert result.counts @ result.observed == pytest.approx(hits.sum())


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
def test_reliability_of_the_likeliest_items(k):
    queries, items = vectors(0, 50)
    targets = drawn_targets(1, queries, items)
    targets[:5] = 0

    result = likely_items_reliability(
        EvalQueries(queries, targets), ItemTable(jnp.asarray(items), catalogue()), k
    )

    log_p = dense_log_probabilities(queries, items)
    best = np.argsort(-log_p, axis=1)[:, : min(k, NUM_ITEMS - 1)]
    p = np.exp(np.take_along_axis(log_p, best, axis=1))
    expected = reliability(p, best == targets[:, None])
    np.testing.assert_array_equal(result.counts, expected.counts)
    np.testing.assert_allclose(result.predicted, expected.predicted, rtol=1e-5)
    np.testing.assert_allclose(result.observed, expected.observed)


def test_probabilities_in_float32_are_summed_in_float64():
    probabilities = np.full((1000, 100), 0.1, np.float32)

    result = reliability(probabilities, np.ones(probabilities.shape, bool))

    assert result.predicted == pytest.approx(float(np.float32(0.1)), rel=1e-9)


def test_calibration_and_reliability_survive_json():
    calibration = Calibration(1.5, 3.0, 2.5, 10)
    result = reliability(*random_outcomes(0, 30, 4), bins=3)

    fields = json.loads(json.dumps(asdict(calibration)))
    fields["correction"] = Correction(**fields["correction"])
    assert Calibration(**fields) == calibration
    fields = json.loads(json.dumps(result.as_dict()))
    assert fields["counts"] == [40, 40, 40]
    for name in ("predicted", "observed", "standard_error"):
        np.testing.assert_array_equal(fields[name], getattr(result, name))
    assert fields["expected_error"] == result.expected_error
    assert fields["predicted_to_observed"] == result.predicted_to_observed


def test_a_ratio_to_no_hits_is_infinite_and_none_in_json():
    result = reliability(np.array([[0.1, 0.2]]), np.zeros((1, 2), bool))

    assert result.predicted_to_observed == math.inf
    assert result.as_dict()["predicted_to_observed"] is None
    json.dumps(result.as_dict(), allow_nan=False)


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
