import jax
import jax.numpy as jnp
import numpy as np
from helpers.losses import VALID, blocked_cross_entropy, cross_entropy, problem
from scipy.special import logsumexp

from jaxrec.training.losses.base import LogitAdjustments
from jaxrec.types import NEG_INF


def test_hand_value():
    """Odds 1 : 2 : 5 and an invalid candidate: the second candidate has probability 2 / 8."""
    candidates = jnp.log(jnp.array([1.0, 2.0, 5.0, 100.0]))[:, None]
    valid = jnp.array([True, True, True, False])
    loss = cross_entropy(jnp.ones((1, 1)), candidates, jnp.array([1]), valid)
    np.testing.assert_allclose(loss, [np.log(4)], rtol=1e-6)


def test_invalid_candidates_get_no_probability():
    queries, candidates, targets, _ = problem()
    logits = np.asarray(queries, np.float64) @ np.asarray(candidates, np.float64).T
    total = logsumexp(logits[..., np.asarray(VALID)], axis=-1)
    expected = total - np.take_along_axis(logits, np.asarray(targets)[..., None], -1)[..., 0]
    losses = cross_entropy(queries, candidates, targets, VALID)
    counted = np.asarray(VALID)[targets]
    np.testing.assert_allclose(losses[counted], expected[counted], rtol=1e-5)
    assert (losses[~counted] > 1e20).all()


def test_without_amounts_the_listed_candidates_are_masked():
    queries, candidates, targets, weights = problem()
    others = jnp.where(targets == 2, 4, 2)[..., None]

    def loss(amounts):
        adjustments = LogitAdjustments(others, amounts)
        return jax.value_and_grad(blocked_cross_entropy, (0, 1))(
            queries, candidates, targets, weights, VALID, 4, adjustments
        )

    for actual, expected in zip(
        jax.tree.leaves(loss(None)),
        jax.tree.leaves(loss(jnp.full(others.shape, NEG_INF))),
        strict=True,
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_only_weighted_positions_and_valid_candidates_get_a_gradient():
    queries, candidates, targets, weights = problem()
    grad_queries, grad_candidates = jax.grad(blocked_cross_entropy, (0, 1))(
        queries, candidates, targets, weights, VALID, 4
    )
    np.testing.assert_array_equal(np.abs(grad_candidates).max(1) > 0, VALID)
    np.testing.assert_array_equal(np.abs(grad_queries).max(2) > 0, weights > 0)
