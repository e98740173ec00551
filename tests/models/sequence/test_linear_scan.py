import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.models.sequence.linear_scan import linear_scan

BATCH, STEPS, WIDTH = 2, 7, 3


def plain(decay, inputs, before):
    """The equation, one step after another; JAX differentiates it."""
    states = []
    for step in range(STEPS):
        before = decay[:, step] * before + inputs[:, step]
        states.append(before)
    return jnp.stack(states, 1)


@pytest.mark.parametrize("columns", [1, WIDTH])
def test_values_and_gradients_equal_those_of_the_equation(columns):
    keys = jax.random.split(jax.random.key(0), 4)
    decay = jax.random.uniform(keys[0], (BATCH, STEPS, columns)).at[:, 3].set(0)
    inputs = jax.random.normal(keys[1], (BATCH, STEPS, WIDTH))
    before = jax.random.normal(keys[2], (BATCH, WIDTH))
    cotangent = jax.random.normal(keys[3], inputs.shape)
    actual, expected = (
        (states, *gradient(cotangent))
        for states, gradient in (
            jax.vjp(function, decay, inputs, before) for function in (linear_scan, plain)
        )
    )
    for value, reference in zip(actual, expected, strict=True):
        np.testing.assert_allclose(value, reference, atol=1e-5)
