"""Layers that hold a long short-term memory (LSTM)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxrec.models.forms import chosen_forms
from jaxrec.models.layers import Linear, dropout
from jaxrec.models.sequence.blocks import Masks, ResidualBlock
from jaxrec.models.sequence.lstm_kernel import kernel_lstm
from jaxrec.models.sequence.lstm_scan import Weights, scan_lstm, step_lstm
from jaxrec.partitioning import devices_are_known


class LSTMState(NamedTuple):
    """The state of one layer."""

    hidden: Float[Array, "B *G D"]
    cell: Float[Array, "B *G D"]


class LSTM(nnx.Module):
    """A long short-term memory layer (Hochreiter & Schmidhuber 1997) with a forget gate."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        # an open forget gate lets gradients through from the start (Jozefowicz et al. 2015)
        bias = jnp.zeros(4 * width).at[width : 2 * width].set(1.0)
        self.input = Linear(width, 4 * width, bias_init=nnx.initializers.constant(bias), rngs=rngs)
        self.recurrent = nnx.Param(nnx.initializers.orthogonal()(rngs.params(), (width, 4 * width)))

    def initial_state(self, batch_size: int) -> LSTMState:
        """Zeros."""
        kernel = self.recurrent[...]
        zeros = jnp.zeros((batch_size, len(kernel)), kernel.dtype)
        return LSTMState(zeros, zeros)

    def scan(
        self,
        x: Float[Array, "B T D"],
        masks: Masks,
        state: tuple[Float[Array, "B D"], Float[Array, "B D"]],
    ) -> tuple[Float[Array, "B T D"], LSTMState]:
        """Hidden states after every step, and the state after the last."""
        bias = self.input.bias
        assert bias is not None
        kernels = self.input.kernel[...], self.recurrent[...]
        if x.shape[1] == 1:
            hidden, cell = (part.T for part in state)
            first = jax.tree.map(lambda part: part[0], masks)
            hidden, cell = step_lstm(kernels, bias[...], x[:, 0].T, first, (hidden, cell))
            return hidden.T[:, None], LSTMState(hidden.T, cell.T)
        return scan_rows(Weights(jnp.concatenate(kernels), bias[...]), x, masks, state)


def scan_rows(
    weights: Weights,
    x: Float[Array, "B T D"],
    masks: Masks,
    state: tuple[Float[Array, "B D"], Float[Array, "B D"]],
) -> tuple[Float[Array, "B T D"], LSTMState]:
    """What `LSTM.scan` gives, in the form that the platform gets."""
    hidden, cell = state
    if chosen_forms().lstm_kernel and devices_are_known():
        outputs, after = kernel_lstm(weights, jnp.swapaxes(x, 0, 1), masks, (hidden, cell))
        return jnp.swapaxes(outputs, 0, 1), LSTMState(*after)
    x = jnp.transpose(x, (1, 2, 0))
    outputs, (hidden, cell) = scan_lstm(weights, x, masks, (hidden.T, cell.T))
    return jnp.transpose(outputs, (2, 0, 1)), LSTMState(hidden.T, cell.T)


class LSTMBlock(ResidualBlock):
    """A residual block whose events see earlier ones through an LSTM and a linear layer."""

    def __init__(self, width: int, rate: float, rngs: nnx.Rngs):
        self.lstm_norm = nnx.LayerNorm(width, rngs=rngs)
        self.lstm = LSTM(width, rngs)
        self.output = Linear(width, width, rngs=rngs)
        super().__init__(width, rate, rngs)

    def initial_state(self, batch_size: int) -> LSTMState:
        """Zeros."""
        return self.lstm.initial_state(batch_size)

    def mix(
        self, x: Float[Array, "B T D"], masks: Masks, state: LSTMState
    ) -> tuple[Float[Array, "B T D"], LSTMState]:
        """W LSTM(Norm x), and the LSTM's state after the last step."""
        outputs, state = self.lstm.scan(self.lstm_norm(x), masks, state)
        return self.output(outputs), state


class BareLSTM(nnx.Module):
    """x <- Drop(LSTM(x)): an `LSTMBlock` without residuals, norms and FFN, for comparison."""

    parallel = False

    def __init__(self, width: int, rate: float, rngs: nnx.Rngs):
        self.lstm = LSTM(width, rngs)
        self.rate = rate

    def initial_state(self, batch_size: int) -> LSTMState:
        """Zeros."""
        return self.lstm.initial_state(batch_size)

    def __call__(
        self, x: Float[Array, "B T D"], masks: Masks, state: LSTMState, key: Array | None
    ) -> tuple[Float[Array, "B T D"], LSTMState]:
        """The LSTM's outputs after dropout, and its state after the last step."""
        outputs, state = self.lstm.scan(x, masks, state)
        return dropout(outputs, self.rate, key), state
