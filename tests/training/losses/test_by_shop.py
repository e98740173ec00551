"""The loss over the candidates of the target's shop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.training.losses.base import LogitAdjustments, Loss
from jaxrec.training.losses.by_shop import ShopLoss, shop_ranges
from jaxrec.training.losses.full_softmax import FullSoftmax
from jaxrec.types import NEG_INF

# row 0 is unknown, rows 1 to 4 are of the first shop, 5 to 7 of the second, and 8 is padding
SHOP = np.array([0, 1, 1, 1, 1, 2, 2, 2, 0])
LOSS = ShopLoss(FullSoftmax(64), (0, 5))
TARGETS = jnp.array([[1, 6, 4], [5, 0, 2]])
WEIGHTS = jnp.array([[1.0, 2.0, 0.5], [1.0, 0.0, 3.0]])
QUERIES, CANDIDATES = (
    jax.random.normal(jax.random.key(seed), shape) for seed, shape in ((0, (2, 3, 4)), (1, (9, 4)))
)
# items of the history, and 0 where there is none
ADJUSTED = jnp.array([[[2, 0], [5, 7], [4, 1]], [[7, 0], [3, 0], [0, 0]]])
AMOUNTS = jnp.array([[[0.5, 9], [NEG_INF, 1], [2, -1]], [[3, 9], [0, 0], [9, 9]]], jnp.float32)


def dense(queries, adjustments):
    """The same loss by one matrix of logits."""
    logits = jnp.einsum("btd,kd->btk", queries, CANDIDATES)
    if adjustments is not None:
        items, amounts, _ = adjustments
        amounts = jnp.full(items.shape, NEG_INF) if amounts is None else amounts
        for place in range(items.shape[-1]):
            added = jax.nn.one_hot(items[..., place], 9) * amounts[..., place, None]
            logits += jnp.where(SHOP > 0, added, 0)
    same = SHOP[None, None] == SHOP[TARGETS][..., None]
    log_p = jax.nn.log_softmax(jnp.where(same & (SHOP > 0), logits, NEG_INF))
    losses = -jnp.take_along_axis(log_p, TARGETS[..., None], -1)[..., 0]
    return jnp.sum(jnp.where(WEIGHTS > 0, losses * WEIGHTS, 0))


@pytest.mark.parametrize(
    "adjustments",
    [None, LogitAdjustments(ADJUSTED, AMOUNTS), LogitAdjustments(ADJUSTED[..., 1:], None)],
    ids=["none", "amounts", "masked"],
)
def test_it_is_a_softmax_over_the_candidates_of_the_shop(adjustments):
    assert isinstance(LOSS, Loss)
    if adjustments is not None and adjustments.amounts is None:  # never the target itself
        own = adjustments.candidates == TARGETS[..., None]
        adjustments = LogitAdjustments(jnp.where(own, 0, adjustments.candidates), None)

    def loss(queries):
        return LOSS(queries, CANDIDATES, TARGETS, WEIGHTS, jnp.asarray(SHOP > 0), adjustments)

    value, gradient = jax.value_and_grad(loss)(QUERIES)
    expected, expected_gradient = jax.value_and_grad(lambda q: dense(q, adjustments))(QUERIES)
    assert value == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5)


def test_ranges_cover_all_rows():
    assert shop_ranges((0, 5), 9) == [(0, 5), (5, 9)]
    assert shop_ranges((0,), 9) == [(0, 9)]
