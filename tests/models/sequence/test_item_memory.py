import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.models.sequence.item_memory import scan_memory

BATCH, STEPS, WIDTH, DECAYS = 3, 5, 4, 2


def plain(weights, decay, gates, x, memory):
    """The equations of the memory; JAX differentiates them."""
    readout = []
    for step in range(STEPS):
        memory = decay[step].T[..., None] * memory + gates[step].T[..., None] * x[step][:, None]
        readout.append((weights[None] * memory).sum(1))
    return jnp.stack(readout), memory


def problem(dtype=jnp.float32):
    shapes = {
        "weights": (DECAYS, WIDTH),
        "decay": (STEPS, DECAYS, BATCH),
        "gates": (STEPS, DECAYS, BATCH),
        "x": (STEPS, BATCH, WIDTH),
        "memory": (BATCH, DECAYS, WIDTH),
    }
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [
        jax.random.uniform(key, shape, minval=-1).astype(dtype)
        for key, shape in zip(keys, shapes.values(), strict=True)
    ]


def gradients(function, arguments):
    def loss(*arguments):
        readout, memory = function(*arguments)
        ramp = jnp.arange(readout.size, dtype=jnp.float32).reshape(readout.shape)
        return jnp.sin(ramp * readout).sum() + (memory.astype(jnp.float32) ** 2).sum()

    return jax.grad(loss, range(5))(*arguments)


def test_values_and_gradients_equal_those_of_the_equations():
    arguments = problem()
    actual, expected = (
        (*function(*arguments), *gradients(function, arguments))
        for function in (scan_memory, plain)
    )
    for value, reference in zip(actual, expected, strict=True):
        np.testing.assert_allclose(value, reference, rtol=1e-4, atol=1e-4)


def test_half_precision_goes_in_and_comes_out():
    arguments = problem(jnp.bfloat16)
    assert {out.dtype for out in scan_memory(*arguments)} == {jnp.dtype("bfloat16")}
    exact = [argument.astype(jnp.float32) for argument in arguments]

    def total(*arguments):
        return scan_memory(*arguments)[0].astype(jnp.float32).sum()

    actual, expected = (jax.grad(total, range(5))(*given) for given in (arguments, exact))
    for value, reference in zip(actual, expected, strict=True):
        assert value.dtype == jnp.bfloat16
        np.testing.assert_allclose(
            np.asarray(value, np.float32), reference, atol=0.05 * np.abs(reference).max()
        )
