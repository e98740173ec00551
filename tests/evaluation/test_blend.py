import numpy as np
import pytest
from helpers.splits import ITEMS, make_split

from jaxrec.config import EvaluationConfig
from jaxrec.evaluation.blend import blended, fit_blend, standardised
from jaxrec.evaluation.protocol import Protocol


@pytest.fixture
def protocol():
    split = make_split()
    everything = np.ones(len(split.log.items), bool)
    valid = np.arange(len(ITEMS)) > 0
    counts = np.ones(len(ITEMS), np.float32)
    return Protocol(split, EvaluationConfig(mask=("none",)), valid, everything, counts)


def scores_of(table):
    """The same scores for the queries of validation and test: both are by user."""
    return lambda queries: lambda start, stop: table[queries.users[start:stop]]


def test_standardised_scores_ignore_rows_that_are_no_items():
    valid = np.array([False, True, True])
    found = standardised(np.array([[1e9, 2, 4], [7, 5, 5]], np.float32), valid)
    np.testing.assert_allclose(found[:, 1:], [[-1, 1], [0, 0]])


def test_a_blend_adds_standardised_scores():
    valid = np.ones(4, bool)
    model, other = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    found = blended(lambda a, b: model[a:b], lambda a, b: 9 * other[a:b] + 5, 0.4, valid)(1, 3)
    expected = standardised(model[1:], valid) + 0.4 * standardised(other[1:], valid)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_baseline_that_knows_the_answers_of_validation_gets_weight(protocol):
    queries = protocol.split.validation
    model = np.zeros((2, len(ITEMS)), np.float32)
    model[:, 1:] = [4, 3, 2, 1]
    answers = np.eye(len(ITEMS), dtype=np.float32)[protocol.split.log.items[queries.positions]]
    scorer, report = fit_blend(protocol, scores_of(model), scores_of(answers))
    assert report["weight"] > 0
    alone = protocol.evaluate(scores_of(model)(queries), queries)["ndcg@10"]
    assert report["validation"]["ndcg@10"] > alone
    assert report["validation"] == protocol.evaluate(scorer(queries), queries)


def test_a_baseline_that_knows_nothing_gets_none(protocol):
    model = np.random.default_rng(0).normal(size=(2, len(ITEMS))).astype(np.float32)
    _, report = fit_blend(protocol, scores_of(model), scores_of(np.zeros_like(model)))
    queries = protocol.split.validation
    assert report["weight"] == 0
    alone = protocol.evaluate(scores_of(model)(queries), queries)
    assert report["validation"]["ndcg@10"] == alone["ndcg@10"]
