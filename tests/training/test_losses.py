import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from jaxrec.training.losses.base import LogitAdjustments, weighted_mean
from jaxrec.training.losses.full_softmax import (
    MIN_BLOCK,
    FullSoftmax,
    blocked_cross_entropy,
    cross_entropy,
    positions_per_block,
)
from jaxrec.types import NEG_INF

BATCH_SIZE, LENGTH, HIDDEN_SIZE, CANDIDATES = 2, 6, 3, 5
VALID = jnp.array([False, True, True, False, True])


def problem() -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Queries, candidates, targets and weights; one target is invalid, and its weight is 0."""
    random = np.random.default_rng(0)
    targets = random.choice(np.flatnonzero(VALID), (BATCH_SIZE, LENGTH))
    weights = random.uniform(0.5, 2, (BATCH_SIZE, LENGTH))
    targets[0, -1], weights[0, -1] = 0, 0
    queries = random.normal(size=(BATCH_SIZE, LENGTH, HIDDEN_SIZE))
    candidates = random.normal(size=(CANDIDATES, HIDDEN_SIZE))
    return (
        jnp.asarray(queries, jnp.float32),
        jnp.asarray(candidates, jnp.float32),
        jnp.asarray(targets, jnp.int32),
        jnp.asarray(weights, jnp.float32),
    )


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


@pytest.mark.parametrize("block", [1, 2, 5, 8, 1000])
def test_blocked_loss_and_gradients_equal_dense(block):
    queries, candidates, targets, weights = problem()

    def dense(queries, candidates):
        return (cross_entropy(queries, candidates, targets, VALID) * weights).sum()

    def blocked(queries, candidates):
        return blocked_cross_entropy(queries, candidates, targets, weights, VALID, block)

    np.testing.assert_allclose(blocked(queries, candidates), dense(queries, candidates), rtol=1e-5)
    expected = jax.grad(lambda *x: 3 * dense(*x), (0, 1))(queries, candidates)
    gradients = jax.jit(jax.grad(lambda *x: 3 * blocked(*x), (0, 1)))(queries, candidates)
    for gradient, expected_gradient in zip(gradients, expected, strict=True):
        assert jnp.abs(expected_gradient).max() > 0.1
        np.testing.assert_allclose(gradient, expected_gradient, atol=1e-4)


@pytest.mark.parametrize("block", [2, 1000])
def test_amounts_are_added_to_the_logits_of_their_position(block):
    """Two amounts for one candidate, one for a target, and one that masks a candidate."""
    queries, candidates, targets, weights = problem()
    others = np.where(np.asarray(targets) == 2, 4, 2)  # of the three that are valid
    items = jnp.asarray(np.stack([others, targets, others, np.ones_like(others)], -1))
    amounts = jnp.asarray(np.random.default_rng(1).normal(size=items.shape), jnp.float32)
    amounts = amounts.at[0, :, 0].set(NEG_INF)

    def dense(queries, candidates, amounts):
        added = (jax.nn.one_hot(items, CANDIDATES) * amounts[..., None]).sum(2)
        logits = jnp.where(VALID, queries @ candidates.T + added, NEG_INF)
        log_p = jax.nn.log_softmax(logits)
        return -(jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0] * weights).sum()

    def blocked(queries, candidates, amounts):
        adjustments = LogitAdjustments(items, amounts)
        return blocked_cross_entropy(
            queries, candidates, targets, weights, VALID, block, adjustments
        )

    inputs = queries, candidates, amounts
    np.testing.assert_allclose(blocked(*inputs), dense(*inputs), rtol=1e-5)
    gradients, expected = (jax.grad(loss, (0, 1, 2))(*inputs) for loss in (blocked, dense))
    for gradient, expected_gradient in zip(gradients, expected, strict=True):
        assert jnp.abs(expected_gradient).max() > 0.1
        np.testing.assert_allclose(gradient, expected_gradient, atol=1e-4)


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


def test_full_softmax_is_the_blocked_sum_for_a_budget_of_logits():
    queries, candidates, targets, weights = problem()
    assert positions_per_block(CANDIDATES, 10**4) == 2000
    assert positions_per_block(CANDIDATES, 10) == MIN_BLOCK
    total = FullSoftmax(10)(queries, candidates, targets, weights, VALID)
    dense = (cross_entropy(queries, candidates, targets, VALID) * weights).sum()
    np.testing.assert_allclose(total, dense, rtol=1e-5)


def test_weighted_mean():
    values = jnp.array([[1.0, 2.0], [10.0, 7.0]])
    weights = jnp.array([[1.0, 3.0], [0.0, 0.0]])
    np.testing.assert_allclose(weighted_mean(values, weights), 7 / 4)
    assert weighted_mean(values, 0 * weights) == 0
    assert jnp.isfinite(jax.grad(weighted_mean)(values, 0 * weights)).all()
