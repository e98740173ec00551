import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.models.layers import dropout, unit_norm


def test_dropout_zeroes_a_share_and_keeps_the_mean():
    dropped = np.asarray(dropout(jnp.ones((100, 100)), 0.25, jax.random.key(0)))
    np.testing.assert_allclose(np.unique(dropped), np.array([0, 4 / 3]), rtol=1e-6)
    assert abs(dropped.mean() - 1) < 0.03


def test_unit_norm_keeps_direction_and_the_zero_vector():
    vectors = unit_norm(jnp.array([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(vectors, np.array([[0.6, 0.8], [0, 0]]), atol=1e-6)
