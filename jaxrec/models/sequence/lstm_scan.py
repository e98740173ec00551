"""The scan of an LSTM over time, with a gradient written by hand.

Arrays are [features, rows], so that the four gates are split and joined along whole rows of memory
and no operand of a step's three products is transposed. On two CPU cores, forward and backward at
256 rows and 64 steps take .71 to .87 of the time of a scan over [rows, features] with the automatic
gradient (`benchmarks/speed/lstm.py`).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrec.models.forms import chosen_forms
from jaxrec.models.sequence.blocks import Masks
from jaxrec.models.sequence.lstm_cell import gate_gradients, next_state
from jaxrec.partitioning import row_shards, sums_by_shard

State = tuple[Float[Array, "D B"], Float[Array, "D B"]]  # hidden and cell


class Weights(NamedTuple):
    """Parameters of one layer; gates in the order input, forget, cell, output."""

    kernel: Float[Array, "2*D 4*D"]  # of the input and, below it, of the hidden state
    bias: Float[Array, " 4*D"]


class Residuals(NamedTuple):
    """What the gradient of a step needs from the forward pass."""

    inputs: Float[Array, "2*D B"]  # input and, below it, the hidden state before the step
    cell: Float[Array, "D B"]  # before the step
    gates: tuple[Float[Array, "D B"], ...]  # after their non-linearities


@jax.custom_vjp
def scan_lstm(
    weights: Weights, x: Float[Array, "T D B"], masks: Masks, state: State
) -> tuple[Float[Array, "T D B"], State]:
    """Hidden states after every step, and the state after the last."""
    return _forward(weights, x, masks, state, keep_residuals=False)[0]


def step_lstm(
    kernels: tuple[Float[Array, "D 4*D"], Float[Array, "D 4*D"]],
    bias: Float[Array, " 4*D"],
    x: Float[Array, "D B"],
    masks: Masks,
    state: State,
) -> State:
    """The state after one step, for live events: joining the kernels takes longer than the step.

    Args:
        kernels: of the input and of the hidden state.
        masks: of the step, [B] each.
    """
    before = tuple(jnp.where(masks.starts, 0, part) for part in state)
    products = bias[None] + sum(
        jnp.matmul(part.T, kernel, preferred_element_type=jnp.float32)
        for kernel, part in zip(kernels, (x, before[0]), strict=True)
    )
    (hidden, cell), _ = _next_state(products.T, before, masks.valid)
    return hidden.astype(x.dtype), cell.astype(x.dtype)


def _next_state(products, before, valid):
    """Hidden and cell state of a step, and the gates after their non-linearities."""
    hidden_before, cell_before = before
    (hidden, cell), gates = next_state(jnp.split(products, 4), cell_before)
    if valid is not None:
        hidden = jnp.where(valid, hidden, hidden_before)
        cell = jnp.where(valid, cell, cell_before)
    return (hidden, cell), gates


def _forward(weights, x, masks, state, *, keep_residuals):
    kernel = weights.kernel.T
    bias = weights.bias[:, None]
    joined = chosen_forms().products_behind_scan

    def step(state: State, inputs: tuple[Array, Masks]) -> tuple[State, tuple]:
        x, masks = inputs
        hidden_before, cell_before = (jnp.where(masks.starts, 0, part) for part in state)
        inputs_and_hidden = jnp.concatenate([x, hidden_before])
        products = jnp.matmul(kernel, inputs_and_hidden, preferred_element_type=jnp.float32) + bias
        (hidden, cell), gates = _next_state(products, (hidden_before, cell_before), masks.valid)
        gates = tuple(gate.astype(x.dtype) for gate in gates)
        hidden, cell = hidden.astype(x.dtype), cell.astype(x.dtype)
        if not keep_residuals:
            return (hidden, cell), (hidden, None)
        residuals = Residuals(inputs_and_hidden, cell_before, gates)
        # an accelerator starts one kernel to store an array
        stored = jnp.concatenate(jax.tree.leaves(residuals)) if joined else residuals
        return (hidden, cell), (hidden, stored)

    state, (outputs, residuals) = jax.lax.scan(step, state, (x, masks))
    return (outputs, state), (weights, masks, residuals)


def _backward(saved, cotangents):
    weights, masks, residuals = saved
    grad_outputs, grad_state = cotangents
    in_scan = isinstance(residuals, Residuals)
    sum_products = _products_in_scan if in_scan else _products_behind_scan
    grad_state, grad_x, grad_kernel, grad_bias = sum_products(
        weights, grad_state, (grad_outputs, masks, residuals)
    )
    grad_weights = Weights(
        grad_kernel.astype(weights.kernel.dtype), grad_bias.astype(weights.bias.dtype)
    )
    return grad_weights, grad_x, None, grad_state


def _products_in_scan(weights, grad_state, inputs):
    """Gradients of the first state, of x and of the weights, to which every step adds."""
    width, rows = inputs[0].shape[1:]
    shards = row_shards(rows)

    def by_shard(part: Float[Array, "n B"]) -> Float[Array, "n S B/S"]:
        return part.reshape(len(part), shards, rows // shards)

    def step(carry, inputs):
        grad_state, grad_gates, grad_kernel, grad_bias = carry

        def joined(by_gate):
            # writing into a carried array takes 3 to 8 % less time than a concatenation
            whole = grad_gates
            for number, grad in enumerate(by_gate):
                whole = jax.lax.dynamic_update_slice_in_dim(whole, grad, number * width, 0)
            return whole

        grad_before, grad_gates, grads = _backward_step(weights.kernel, grad_state, inputs, joined)
        grad_kernel += jnp.einsum(
            "gsb,dsb->sgd",
            by_shard(grad_gates),
            by_shard(inputs[2].inputs),
            preferred_element_type=jnp.float32,
        )
        grad_bias += by_shard(grad_gates).sum(2, dtype=jnp.float32).T
        return (grad_before, grad_gates, grad_kernel, grad_bias), grads[:width]

    zeros = [sums_by_shard(shards, *part.shape[::-1]) for part in weights]
    grad_gates = jnp.concatenate([jnp.zeros_like(gate[0]) for gate in inputs[2].gates])
    (grad_state, _, grad_kernel, grad_bias), grad_x = jax.lax.scan(
        step, (grad_state, grad_gates, *zeros), inputs, reverse=True
    )
    return grad_state, grad_x, grad_kernel.sum(0).T, grad_bias.sum(0)


def _products_behind_scan(weights, grad_state, inputs):
    """What `_products_in_scan` gives, by products over all steps: fewer and larger kernels."""
    residuals, width = inputs[2], inputs[0].shape[1]
    inward, recurrent = weights.kernel[:width], weights.kernel[width:]

    def step(grad_state, inputs):
        grad_output, masks, joined = inputs
        _, _, cell, *gates = jnp.split(joined, 7)
        inputs = (grad_output, masks, Residuals(joined[: 2 * width], cell, tuple(gates)))
        grad_before, grad_gates, _ = _backward_step(recurrent, grad_state, inputs, jnp.concatenate)
        return grad_before, grad_gates

    grad_state, grad_gates = jax.lax.scan(step, grad_state, inputs, reverse=True)
    grad_x = jnp.einsum("dg,tgb->tdb", inward, grad_gates)
    grad_kernel = jnp.einsum(
        "tdb,tgb->dg", residuals[:, : 2 * width], grad_gates, preferred_element_type=jnp.float32
    )
    return grad_state, grad_x, grad_kernel, grad_gates.sum((0, 2), dtype=jnp.float32)


def _backward_step(kernel, grad_state, inputs, joined):
    """Gradients of the state before a step, of its gates before their non-linearities, and of what
    `kernel` multiplies: the hidden state [D, B], or the input and below it the hidden state.

    Args:
        joined: makes one array [4*D, B] of the gradients of the four gates.
    """
    grad_output, masks, (_, cell_before, gates) = inputs
    grad_hidden, grad_cell = grad_state[0] + grad_output, grad_state[1]
    # where the step kept the state, its gradient passes the step by
    kept_hidden, kept_cell = jnp.zeros_like(grad_hidden), jnp.zeros_like(grad_cell)
    if masks.valid is not None:
        kept_hidden = jnp.where(masks.valid, 0, grad_hidden)
        kept_cell = jnp.where(masks.valid, 0, grad_cell)
        grad_hidden = jnp.where(masks.valid, grad_hidden, 0)
        grad_cell = jnp.where(masks.valid, grad_cell, 0)
    by_gate, grad_cell = gate_gradients(gates, cell_before, grad_hidden, grad_cell)
    grad_gates = joined(by_gate)
    width = len(grad_hidden)
    grad_inputs = kernel @ grad_gates
    grad_before = (
        jnp.where(masks.starts, 0, grad_inputs[-width:] + kept_hidden),
        jnp.where(masks.starts, 0, grad_cell + kept_cell),
    )
    return grad_before, grad_gates, grad_inputs


scan_lstm.defvjp(partial(_forward, keep_residuals=True), _backward)
