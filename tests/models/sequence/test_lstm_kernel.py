"""The kernel for TPUs, interpreted on a CPU, gives what the plain scan gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from jaxrec.models.forms import BY_PLATFORM, traced_with
from jaxrec.models.sequence.blocks import Masks
from jaxrec.models.sequence.chip_scan import ROWS, steps_of_block
from jaxrec.models.sequence.lstm import LSTM
from jaxrec.models.sequence.lstm_kernel import kernel_lstm
from jaxrec.models.sequence.lstm_scan import Weights, scan_lstm
from jaxrec.partitioning import on_mesh
from jaxrec.sharding import ITEMS, USERS, make_mesh, replicated

WIDTH = 4
KERNEL = BY_PLATFORM["tpu"]
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.02}  # of the largest entry


def problem(rows: int, steps: int, masked: bool, dtype=jnp.float32):
    """Random inputs; if masked, sequences start inside of rows, and rows end early."""
    keys = iter(jax.random.split(jax.random.key(rows + steps), 6))

    def normal(*shape: int) -> jax.Array:
        return jax.random.normal(next(keys), shape).astype(dtype)

    weights = Weights(normal(2 * WIDTH, 4 * WIDTH), normal(4 * WIDTH))
    x, state = normal(steps, rows, WIDTH), (normal(rows, WIDTH), normal(rows, WIDTH))
    starts, valid = jnp.zeros((steps, rows), bool), None
    if masked:
        starts = jax.random.bernoulli(next(keys), 0.3, starts.shape)
        valid = jnp.arange(steps)[:, None] < steps - jnp.arange(rows)[None] % (steps + 1)
    return weights, x, Masks(starts, valid), state


def plain(weights, x, masks, state):
    """`scan_lstm` on arrays in the layout of the kernel."""
    outputs, after = scan_lstm(weights, jnp.swapaxes(x, 1, 2), masks, tuple(s.T for s in state))
    return jnp.swapaxes(outputs, 1, 2), tuple(part.T for part in after)


def values_and_gradients(scan):
    def loss(weights, x, state, masks):
        outputs, after = scan(weights, x, masks, state)
        wave = jnp.cos(jnp.arange(outputs.size, dtype=jnp.float32)).reshape(outputs.shape)
        total = (outputs * wave).sum() + sum(
            (part.astype(jnp.float32) ** 2).sum() for part in after
        )
        return total, (outputs, after)

    return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))


def assert_close(results, expected, dtype="float32"):
    pairs = zip(jax.tree.leaves(results), jax.tree.leaves(expected), strict=True)
    for value, reference in pairs:
        assert value.dtype == reference.dtype == dtype
        value, reference = (np.asarray(part, np.float32) for part in (value, reference))
        atol = TOLERANCE[dtype] * max(np.abs(reference).max(), 1)
        np.testing.assert_allclose(value, reference, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("rows", "steps", "masked"), [(3, 5, True), (3, 16, False), (ROWS + 2, 2, True)]
)
def test_outputs_state_and_gradients_equal_those_of_the_plain_scan(rows, steps, masked):
    """In one block of time steps, in several, and in two blocks of rows."""
    weights, x, masks, state = problem(rows, steps, masked)
    results, expected = (
        values_and_gradients(scan)(weights, x, state, masks) for scan in (kernel_lstm, plain)
    )
    assert_close(results, expected)


def test_bfloat16_goes_in_and_comes_out():
    weights, x, masks, state = problem(3, 5, True, jnp.bfloat16)
    results = values_and_gradients(kernel_lstm)(weights, x, state, masks)
    exact = [jax.tree.map(lambda p: p.astype(jnp.float32), part) for part in (weights, x, state)]
    expected = values_and_gradients(plain)(*exact, masks)
    halved = jax.tree.map(lambda part: part.astype(jnp.bfloat16), expected)
    assert_close(results, halved, "bfloat16")


def test_experts_are_scanned_as_one():
    _, x, masks, state = problem(3, 5, True)
    weights, *_ = zip(*(problem(3, steps, False) for steps in (5, 6)), strict=True)
    stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *weights)
    run = values_and_gradients(kernel_lstm)
    together = jax.vmap(run, (0, None, None, None))(stacked, x, state, masks)
    for number, own in enumerate(weights):
        part = jax.tree.map(lambda leaf, n=number: leaf[n], together)
        assert_close(part, run(own, x, state, masks))


def test_every_device_of_a_mesh_reads_its_own_rows():
    weights, x, masks, state = problem(8, 5, True)
    mesh, run = make_mesh(2), values_and_gradients(kernel_lstm)
    by_row = NamedSharding(mesh, PartitionSpec(None, (USERS, ITEMS)))

    def on_all_devices(*inputs):
        with on_mesh(mesh):
            return run(*inputs)

    results = jax.jit(on_all_devices)(weights, jax.device_put(x, by_row), state, masks)
    assert_close(results, run(weights, x, state, masks))
    assert results[1][0].sharding.is_equivalent_to(by_row, 3)


def test_a_layer_gives_the_same_with_the_kernel_and_without():
    layer, mesh = LSTM(WIDTH, nnx.Rngs(0)), make_mesh(4)
    _, x, masks, state = problem(3, 5, True)
    inputs = jax.device_put((jnp.swapaxes(x, 0, 1), masks, state), replicated(mesh))
    with on_mesh(mesh), traced_with(KERNEL):
        assert "pallas_call" in str(jax.make_jaxpr(layer.scan)(*inputs))
        results = jax.jit(lambda *i: layer.scan(*i))(*inputs)
    with traced_with(KERNEL):  # several devices and no mesh: a kernel cannot divide its rows
        assert "pallas_call" not in str(jax.make_jaxpr(lambda *i: layer.scan(*i))(*inputs))
    assert_close(results, layer.scan(*inputs))


def test_a_block_holds_as_many_steps_as_fit_and_divide_all():
    assert [steps_of_block(steps, 1) for steps in (64, 200, 12, 7, 11)] == [8, 8, 6, 7, 1]
    assert steps_of_block(64, 2**21) == 2 and steps_of_block(64, 2**30) == 1
