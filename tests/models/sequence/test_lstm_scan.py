import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.models.forms import BY_PLATFORM, traced_with
from jaxrec.models.sequence.blocks import Masks
from jaxrec.models.sequence.lstm_scan import Weights, scan_lstm

BATCH, STEPS, WIDTH = 3, 5, 4


def plain(weights: Weights, x: jax.Array, masks: Masks, state: tuple[jax.Array, jax.Array]):
    """The equations of the LSTM, one row and step at a time; JAX differentiates them."""
    outputs = []
    hidden, cell = state
    for step in range(STEPS):
        columns = []
        for row in range(BATCH):
            h, c = (jnp.where(masks.starts[step, row], 0, part[:, row]) for part in (hidden, cell))
            gates = jnp.concatenate([x[step, :, row], h]) @ weights.kernel + weights.bias
            input_gate, forget_gate, cell_gate, output_gate = jnp.split(gates, 4)
            new_c = jax.nn.sigmoid(forget_gate) * c
            new_c += jax.nn.sigmoid(input_gate) * jnp.tanh(cell_gate)
            new_h = jax.nn.sigmoid(output_gate) * jnp.tanh(new_c)
            if masks.valid is not None and not masks.valid[step, row]:
                new_h, new_c = h, c
            columns.append((new_h, new_c))
        hidden, cell = (jnp.stack(part, 1) for part in zip(*columns, strict=True))
        outputs.append(hidden)
    return jnp.stack(outputs), (hidden, cell)


def problem(with_valid: bool, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 7)

    def normal(key: int, *shape: int) -> jax.Array:
        return jax.random.normal(keys[key], shape).astype(dtype)

    weights = Weights(normal(0, 2 * WIDTH, 4 * WIDTH), normal(1, 4 * WIDTH))
    state = (normal(2, WIDTH, BATCH), normal(3, WIDTH, BATCH))
    starts = jax.random.bernoulli(keys[4], 0.3, (STEPS, BATCH))
    lengths = jnp.array([[STEPS, 2, 0]])
    valid = jnp.arange(STEPS)[:, None] < lengths if with_valid else None
    return weights, normal(5, STEPS, WIDTH, BATCH), Masks(starts, valid), state


@pytest.mark.parametrize(("with_valid", "platform"), [(False, "cpu"), (True, "cpu"), (True, "gpu")])
def test_outputs_state_and_gradients_equal_those_of_the_equations(with_valid, platform):
    """Where the gradient of the weights is summed inside of the scan, and behind it."""
    weights, x, masks, state = problem(with_valid)

    def loss(function, weights, x, state):
        outputs, (hidden, cell) = function(weights, x, masks, state)
        ramp = jnp.arange(outputs.size, dtype=jnp.float32).reshape(outputs.shape)
        total = jnp.sin(ramp * outputs).sum() + (hidden**2).sum() + jnp.cos(cell).sum()
        return total, (outputs, hidden, cell)

    with traced_with(BY_PLATFORM[platform]):
        (_, values), gradients = jax.value_and_grad(loss, (1, 2, 3), has_aux=True)(
            scan_lstm, weights, x, state
        )
    (_, expected), expected_gradients = jax.value_and_grad(loss, (1, 2, 3), has_aux=True)(
        plain, weights, x, state
    )
    pairs = zip(
        jax.tree.leaves((values, gradients)),
        jax.tree.leaves((expected, expected_gradients)),
        strict=True,
    )
    for value, reference in pairs:
        np.testing.assert_allclose(value, reference, rtol=2e-4, atol=2e-4)


def test_half_precision_goes_in_and_comes_out():
    weights, x, masks, state = problem(False, jnp.bfloat16)

    def total(weights, x, state):
        outputs, state = scan_lstm(weights, x, masks, state)
        assert {leaf.dtype for leaf in jax.tree.leaves((outputs, state))} == {jnp.dtype("bfloat16")}
        return outputs.astype(jnp.float32).sum()

    gradients = jax.grad(total, (0, 1, 2))(weights, x, state)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype("bfloat16")}
    exact = jax.grad(lambda w, x, s: scan_lstm(w, x, masks, s)[0].sum(), (0, 1, 2))(
        *(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), part) for part in (weights, x, state))
    )
    for value, reference in zip(jax.tree.leaves(gradients), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(
            np.asarray(value, np.float32), reference, atol=0.05 * np.abs(reference).max()
        )
