import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.training.losses.base import mean_of_sum


def weighted_mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    return mean_of_sum((values * weights).sum(), weights)


def test_weighted_mean():
    values = jnp.array([[1.0, 2.0], [10.0, 7.0]])
    weights = jnp.array([[1.0, 3.0], [0.0, 0.0]])
    np.testing.assert_allclose(weighted_mean(values, weights), 7 / 4)
    assert weighted_mean(values, 0 * weights) == 0
    assert jnp.isfinite(jax.grad(weighted_mean)(values, 0 * weights)).all()
