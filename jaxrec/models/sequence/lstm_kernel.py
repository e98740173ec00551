"""The scan of an LSTM as one kernel for TPUs, with its gradient.

Operands of products have the dtype of the inputs, bfloat16 with `train.bf16`. Sums, gates and the
state are float32.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrec.models.sequence.blocks import Masks
from jaxrec.models.sequence.chip_scan import Carried, ChipScan
from jaxrec.models.sequence.lstm_cell import FourGates, gate_gradients, next_state
from jaxrec.models.sequence.lstm_scan import Weights

State = tuple[Float[Array, "B D"], Float[Array, "B D"]]  # hidden and cell


@jax.custom_vjp
def kernel_lstm(
    weights: Weights, x: Float[Array, "T B D"], masks: Masks, state: State
) -> tuple[Float[Array, "T B D"], State]:
    """What `scan_lstm` gives: hidden states after every step, and the state after the last."""
    return _forward(weights, x, masks, state, keep_residuals=False)[0]


def _forward(weights, x, masks, state, *, keep_residuals):
    width = x.shape[2]
    kept = (4 * width, width) if keep_residuals else ()
    scan = ChipScan(partial(_step, width), (width, *kept))
    weights_on_chip = (weights.kernel, weights.bias[None])
    (outputs, *residuals), after = scan(weights_on_chip, [x], masks, state)
    return (outputs, tuple(after)), (weights, x, masks, state[0], outputs, residuals)


def _step(width, weights, arrays, carried: Carried):
    """The gates [4*D] and the cell state before the step come after the hidden state."""
    kernel, bias = weights
    (x,) = arrays
    hidden_before, cell_before = (carried.keep * part for part in carried.state)
    products = bias[...].astype(jnp.float32) + sum(
        jnp.dot(part.astype(x.dtype), kernel[rows], preferred_element_type=jnp.float32)
        for part, rows in ((x, slice(None, width)), (hidden_before, slice(width, None)))
    )
    (hidden, cell), gates = next_state(_four(products, width), cell_before)
    after = [
        before + carried.valid * (part - before)
        for part, before in ((hidden, hidden_before), (cell, cell_before))
    ]
    return (after[0], jnp.concatenate(gates, -1), cell_before), after


def _backward(saved, cotangents):
    weights, x, masks, first_hidden, outputs, residuals = saved
    grad_outputs, grad_state = cotangents
    width = x.shape[2]
    scan = ChipScan(partial(_backward_step, width), (4 * width, width), reverse=True)
    streams = [grad_outputs, *residuals]
    (grad_gates, grad_x), grad_first = scan([weights.kernel.T], streams, masks, grad_state)
    before = jnp.concatenate([first_hidden[None].astype(outputs.dtype), outputs[:-1]])
    before = jnp.where(masks.starts[..., None], 0, before)
    product = partial(jnp.einsum, "tbd,tbg->dg", preferred_element_type=jnp.float32)
    grad_kernel = jnp.concatenate([product(part, grad_gates) for part in (x, before)])
    grad_weights = Weights(
        grad_kernel.astype(weights.kernel.dtype),
        grad_gates.sum((0, 1), dtype=jnp.float32).astype(weights.bias.dtype),
    )
    return grad_weights, grad_x, None, tuple(grad_first)


def _backward_step(width, weights, arrays, carried: Carried):
    """Gradients of the gates before their non-linearities, and of x; the state is its gradient."""
    (kernel,) = weights
    dtype = arrays[0].dtype
    grad_output, gates, cell_before = (part.astype(jnp.float32) for part in arrays)
    grad_hidden, grad_cell = carried.state[0] + grad_output, carried.state[1]
    # where the step kept the state, its gradient passes the step by
    kept_hidden, kept_cell = ((1 - carried.valid) * part for part in (grad_hidden, grad_cell))
    grad_hidden, grad_cell = (carried.valid * part for part in (grad_hidden, grad_cell))
    by_gate, grad_cell = gate_gradients(_four(gates, width), cell_before, grad_hidden, grad_cell)
    grad_gates = jnp.concatenate(by_gate, -1).astype(dtype)
    grad_inputs = jnp.dot(grad_gates, kernel[...], preferred_element_type=jnp.float32)
    before = (
        carried.keep * (grad_inputs[:, width:] + kept_hidden),
        carried.keep * (grad_cell + kept_cell),
    )
    return (grad_gates, grad_inputs[:, :width]), before


def _four(joined: Float[Array, "rows gates"], width: int) -> FourGates:
    first, second, third, last = (joined[:, n * width : (n + 1) * width] for n in range(4))
    return first, second, third, last


kernel_lstm.defvjp(partial(_forward, keep_residuals=True), _backward)
