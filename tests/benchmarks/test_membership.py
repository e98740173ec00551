"""The figures of the membership attacks on scores whose answer is known."""

import sys

import numpy as np
import pytest
from helpers.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks" / "quality"))

import membership


def test_every_user_is_in_half_of_the_models():
    halves = membership.balanced_halves(11, 4)
    assert halves.sum(1).tolist() == [5] * 4
    assert not np.any(halves[0] & halves[1]) and not np.any(halves[2] & halves[3])
    assert (halves[0] != halves[2]).any()


def test_the_area_is_the_share_of_pairs_in_the_right_order():
    random = np.random.default_rng(0)
    members = random.random((2, 40)) < 0.5
    scores = random.integers(0, 5, (2, 40)).astype(float) + members
    judged = random.random((2, 40)) < 0.8
    inside, outside = scores[members & judged], scores[~members & judged]
    wins = (inside[:, None] > outside).mean() + (inside[:, None] == outside).mean() / 2
    area, _ = membership.attack_figures(scores, members, judged)
    assert area == pytest.approx(wins)


def test_an_attack_that_knows_finds_all_and_one_that_guesses_almost_none():
    members = membership.balanced_halves(1000, 2)
    random = np.random.default_rng(1)
    known = membership.measured(members + 0.1 * random.random(members.shape), members)
    assert known["auc"] == known["tpr at 1% fpr"] == [1, 1, 1]
    guess = membership.measured(random.random(members.shape), members)
    value, low, high = guess["auc"]
    assert 0.4 < low < value < high < 0.6
    assert guess["tpr at 1% fpr"][0] < 0.03


def test_shadows_are_models_that_never_saw_the_user():
    members = np.array([[1, 0], [0, 1], [1, 0], [0, 1]], bool)
    stats = [{"loss": np.array([n, 10 * n]), "rank": np.zeros(2)} for n in (1.0, 2.0, 3.0, 4.0)]
    found = membership.with_shadows(stats, members, 0)
    # user 0: models 1 and 3 have not seen them; user 1: model 2, besides model 0 itself
    assert found["loss, shadow"].tolist() == [1 - 3, 10 - 30]
