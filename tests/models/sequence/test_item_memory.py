import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.models.sequence.item_memory import scan_in_parallel, scan_memory

BATCH, STEPS, WIDTH, DECAYS = 3, 5, 4, 2


def plain(weights, decay, gates, x, memory):
    """The equations of the memory; JAX differentiates them."""
    readout = []
    for step in range(STEPS):
        memory = decay[step].T[..., None] * memory + gates[step].T[..., None] * x[step][:, None]
        readout.append((weights[None] * memory).sum(1))
    return jnp.stack(readout), memory


def parallel(weights, decay, gates, x, memory):
    """All steps at once, with the axes of `scan_memory`."""
    decay, gates = (jnp.transpose(part, (2, 0, 1)) for part in (decay, gates))
    readout, memory = scan_in_parallel(weights, decay, gates, jnp.moveaxis(x, 1, 0), memory)
    return jnp.moveaxis(readout, 0, 1), memory


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


@pytest.mark.parametrize("scan", [scan_memory, parallel])
def test_values_and_gradients_equal_those_of_the_equations(scan):
    arguments = problem()
    actual, expected = (
        (*function(*arguments), *gradients(function, arguments)) for function in (scan, plain)
    )
    for value, reference in zip(actual, expected, strict=True):
        np.testing.assert_allclose(value, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scan", [scan_memory, parallel])
def test_half_precision_goes_in_and_comes_out(scan):
    arguments = problem(jnp.bfloat16)
    assert {out.dtype for out in scan(*arguments)} == {jnp.dtype("bfloat16")}
    exact = [argument.astype(jnp.float32) for argument in arguments]

    def total(*arguments):
        return scan(*arguments)[0].astype(jnp.float32).sum()

    actual, expected = (jax.grad(total, range(5))(*given) for given in (arguments, exact))
    for value, reference in zip(actual, expected, strict=True):
        assert value.dtype == jnp.bfloat16
        np.testing.assert_allclose(
            np.asarray(value, np.float32), reference, atol=0.05 * np.abs(reference).max()
        )
