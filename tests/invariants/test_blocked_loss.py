"""Blocked loss: value and gradients equal those of the dense loss for any block size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.losses import CANDIDATES, VALID, blocked_cross_entropy, cross_entropy, problem

from jaxrec.config import TrainConfig
from jaxrec.models.forms import BY_PLATFORM, traced_with
from jaxrec.training.losses.base import LogitAdjustments
from jaxrec.training.losses.full_softmax import FullSoftmax
from jaxrec.training.tasks.build import full_softmax
from jaxrec.types import NEG_INF


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


def test_full_softmax_is_the_blocked_sum_for_a_budget_of_logits():
    queries, candidates, targets, weights = problem()
    assert FullSoftmax(10**4).positions_per_block(CANDIDATES) == 2000
    assert FullSoftmax(10).positions_per_block(CANDIDATES) == FullSoftmax.min_positions
    for forms in BY_PLATFORM.values():
        with traced_with(forms):
            assert full_softmax(TrainConfig()).max_logits == forms.loss_logits
            assert full_softmax(TrainConfig(loss_logits=10)).max_logits == 10
    total = FullSoftmax(10)(queries, candidates, targets, weights, VALID)
    dense = (cross_entropy(queries, candidates, targets, VALID) * weights).sum()
    np.testing.assert_allclose(total, dense, rtol=1e-5)
