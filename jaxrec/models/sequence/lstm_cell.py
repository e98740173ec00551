"""One step of an LSTM and its gradient, whatever the layout of the arrays."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

FourGates = tuple[Array, Array, Array, Array]  # input, forget, cell, output


def next_state(
    products: Sequence[Float[Array, "*shape"]], cell_before: Float[Array, "*shape"]
) -> tuple[tuple[Float[Array, "*shape"], Float[Array, "*shape"]], FourGates]:
    """Hidden and cell state, and the gates after their non-linearities.

    Args:
        products: the gates before their non-linearities.
    """
    input_gate, forget_gate, output_gate = (_sigmoid(products[number]) for number in (0, 1, 3))
    cell_gate = jnp.tanh(products[2])
    cell = forget_gate * cell_before + input_gate * cell_gate
    hidden = output_gate * jnp.tanh(cell)
    return (hidden, cell), (input_gate, forget_gate, cell_gate, output_gate)


def gate_gradients(
    gates: FourGates,
    cell_before: Float[Array, "*shape"],
    grad_hidden: Float[Array, "*shape"],
    grad_cell: Float[Array, "*shape"],
) -> tuple[FourGates, Float[Array, "*shape"]]:
    """Gradients of the gates before their non-linearities, and of the cell state before the step.

    Args:
        gates: after their non-linearities.
        grad_hidden: of the hidden state after the step.
        grad_cell: of the cell state after the step, without what comes through the hidden state.
    """
    input_gate, forget_gate, cell_gate, output_gate = gates
    cell_tanh = jnp.tanh(forget_gate * cell_before + input_gate * cell_gate)
    grad_cell = grad_cell + grad_hidden * output_gate * (1 - cell_tanh * cell_tanh)
    grad_gates = (
        grad_cell * cell_gate * input_gate * (1 - input_gate),
        grad_cell * cell_before * forget_gate * (1 - forget_gate),
        grad_cell * input_gate * (1 - cell_gate * cell_gate),
        grad_hidden * cell_tanh * output_gate * (1 - output_gate),
    )
    return grad_gates, grad_cell * forget_gate


def _sigmoid(x: Array) -> Array:
    # tanh takes 1 to 5 % less time, forward and backward, than a quotient of exponentials
    return 0.5 + 0.5 * jnp.tanh(0.5 * x)
