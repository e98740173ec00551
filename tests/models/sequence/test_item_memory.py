import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrec.models.forms import BY_PLATFORM, traced_with
from jaxrec.models.sequence import item_memory
from jaxrec.models.sequence.item_memory import ItemMemory, scan_in_parallel, scan_memory

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


@pytest.mark.thorough
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


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_products_give_what_the_scan_gives(dtype, monkeypatch):
    """In blocks of three steps, from a memory that is not empty, over starts and missing events."""
    monkeypatch.setattr(item_memory, "BLOCK", 3)
    weights, _, _, x, before = problem()
    module = ItemMemory(WIDTH, DECAYS, nnx.Rngs(0))
    module.weights[...] = weights
    module.gates.kernel[...] = jax.random.normal(jax.random.key(1), (WIDTH, DECAYS))
    definition, params = nnx.split(module)
    starts = jnp.zeros((BATCH, STEPS), bool).at[0, 3].set(True).at[1, 0].set(True)
    valid = jnp.arange(STEPS)[None] < jnp.array([[STEPS], [3], [0]])

    def results(platform):
        def loss(params, x, before):
            readout, after = nnx.merge(definition, params).scan(x, starts, valid, before)
            ramp = jnp.arange(readout.size, dtype=jnp.float32).reshape(readout.shape)
            total = (jnp.cos(ramp) * readout).sum() + (after.astype(jnp.float32) ** 2).sum()
            return total, (readout, after)

        inputs = (params, jnp.moveaxis(x, 1, 0), before)
        inputs = jax.tree.map(lambda part: part.astype(dtype), inputs)
        with traced_with(BY_PLATFORM[platform]):
            return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*inputs)

    products, scan = (jax.tree.leaves(results(platform)) for platform in ("gpu", "cpu"))
    tolerance = 1e-5 if dtype == jnp.float32 else 0.05
    for value, reference in zip(products, scan, strict=True):
        assert value.dtype == reference.dtype
        value, reference = (np.asarray(part, np.float32) for part in (value, reference))
        np.testing.assert_allclose(value, reference, atol=tolerance * max(abs(reference).max(), 1))
