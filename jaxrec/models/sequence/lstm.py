"""A stack of LSTM layers over packed sequences; its state is the interest of a user."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxrec.config import ModelConfig
from jaxrec.models.layers import Linear, dropout
from jaxrec.models.sequence.item_memory import ItemMemory
from jaxrec.models.sequence.lstm_scan import Masks, Weights, scan_lstm, step_lstm
from jaxrec.models.transformer import MLP

LayerState = tuple[Float[Array, "B D"], Float[Array, "B D"]]
"""Hidden and cell state of one layer."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class InterestState:
    """The state of `LSTMEncoder` for B users: G layers and an item memory with C decay rates."""

    hidden: Float[Array, "B G D"]
    cell: Float[Array, "B G D"]
    memory: Float[Array, "B C D"]
    output: Float[Array, "B out"]  # after the last event


class LSTM(nnx.Module):
    """A long short-term memory layer (Hochreiter & Schmidhuber 1997) with a forget gate."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        # an open forget gate lets gradients through from the start (Jozefowicz et al. 2015)
        bias = jnp.zeros(4 * width).at[width : 2 * width].set(1.0)
        self.input = Linear(width, 4 * width, bias_init=nnx.initializers.constant(bias), rngs=rngs)
        self.recurrent = nnx.Param(nnx.initializers.orthogonal()(rngs.params(), (width, 4 * width)))

    def scan(
        self, x: Float[Array, "B T D"], masks: Masks, state: LayerState
    ) -> tuple[Float[Array, "B T D"], LayerState]:
        """Hidden states after every step, and the state after the last."""
        bias = self.input.bias
        assert bias is not None
        kernels = self.input.kernel[...], self.recurrent[...]
        hidden, cell = (part.T for part in state)
        if x.shape[1] == 1:
            first = jax.tree.map(lambda part: part[0], masks)
            hidden, cell = step_lstm(kernels, bias[...], x[:, 0].T, first, (hidden, cell))
            return hidden.T[:, None], (hidden.T, cell.T)
        outputs, (hidden, cell) = scan_lstm(
            Weights(jnp.concatenate(kernels), bias[...]),
            jnp.transpose(x, (1, 2, 0)),
            masks,
            (hidden, cell),
        )
        return jnp.transpose(outputs, (2, 0, 1)), (hidden.T, cell.T)


class LSTMBlock(nnx.Module):
    """x <- x + Drop(W LSTM(Norm x));  x <- x + Drop(FFN(Norm x))."""

    def __init__(self, width: int, rate: float, rngs: nnx.Rngs):
        self.lstm_norm = nnx.LayerNorm(width, rngs=rngs)
        self.lstm = LSTM(width, rngs)
        self.output = Linear(width, width, rngs=rngs)
        self.mlp_norm = nnx.LayerNorm(width, rngs=rngs)
        self.mlp = MLP(width, 4 * width, dtype=None, rngs=rngs)
        self.rate = rate

    def __call__(
        self, x: Float[Array, "B T D"], masks: Masks, state: LayerState, key: Array | None
    ) -> tuple[Float[Array, "B T D"], LayerState]:
        """The residual stream after the block, and the LSTM's state after the last step."""
        keys = (None, None) if key is None else jax.random.split(key)
        outputs, state = self.lstm.scan(self.lstm_norm(x), masks, state)
        x = x + dropout(self.output(outputs), self.rate, keys[0])
        x = x + dropout(self.mlp(self.mlp_norm(x)), self.rate, keys[1])
        return x, state


class BareLSTM(nnx.Module):
    """x <- Drop(LSTM(x)): an `LSTMBlock` without residuals, norms and FFN, for comparison."""

    def __init__(self, width: int, rate: float, rngs: nnx.Rngs):
        self.lstm = LSTM(width, rngs)
        self.rate = rate

    def __call__(
        self, x: Float[Array, "B T D"], masks: Masks, state: LayerState, key: Array | None
    ) -> tuple[Float[Array, "B T D"], LayerState]:
        """The LSTM's outputs after dropout, and its state after the last step."""
        outputs, state = self.lstm.scan(x, masks, state)
        return dropout(outputs, self.rate, key), state


class LSTMEncoder(nnx.Module):
    """A stack of layers that hold an LSTM, and an item memory that reads the same events."""

    def __init__(
        self, layer: type[LSTMBlock] | type[BareLSTM], config: ModelConfig, rngs: nnx.Rngs
    ):
        width = config.hidden_size
        layers = [layer(width, config.dropout, rngs) for _ in range(config.num_layers)]
        self.layers = nnx.List(layers)
        self.initial_output = nnx.Param(0.02 * jax.random.normal(rngs.params(), (width,)))
        self.num_decays = config.memory_decays
        self.memory = ItemMemory(width, self.num_decays, rngs) if self.num_decays else None

    def initial_state(self, batch_size: int) -> InterestState:
        """The empty state of users without events; their output is learned."""
        output = self.initial_output[...]
        zeros = jnp.zeros((batch_size, len(self.layers), len(output)), output.dtype)
        memory = jnp.zeros((batch_size, self.num_decays, len(output)), output.dtype)
        output = jnp.concatenate([output, jnp.zeros_like(output)])
        return InterestState(zeros, zeros, memory, jnp.tile(output, (batch_size, 1)))

    def scan(
        self,
        state: InterestState,
        events: Float[Array, "B T D"],
        starts: Bool[Array, "B T"] | None = None,
        valid: Bool[Array, "B T"] | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T 2*D"], InterestState]:
        """The output of the last layer and the memory readout; see `SequenceEncoder.scan`."""
        if starts is None:
            starts = jnp.zeros(events.shape[:2], bool)
        masks = Masks(starts.T, None if valid is None else valid.T)
        keys = None if key is None else jax.random.split(key, len(self.layers))
        x, states = events, []
        for number, layer in enumerate(self.layers):
            before = state.hidden[:, number], state.cell[:, number]
            x, after = layer(x, masks, before, None if keys is None else keys[number])
            states.append(after)
        readout, memory = jnp.zeros_like(x), state.memory
        if self.memory is not None:
            readout, memory = self.memory.scan(events, starts, valid, memory)
        outputs = jnp.concatenate([x, readout], -1)
        last = outputs[:, -1] if valid is None else _last_valid(outputs, valid, state.output)
        hidden, cell = (jnp.stack(parts, 1) for parts in zip(*states, strict=True))
        return outputs, InterestState(hidden, cell, memory, last)

    def last_output(self, state: InterestState) -> Float[Array, "B out"]:
        """The output after the last event; the learned one if there was no event."""
        return state.output


def _last_valid(
    x: Float[Array, "B T out"], valid: Bool[Array, "B T"], default: Float[Array, "B out"]
) -> Float[Array, "B out"]:
    count = valid.sum(1)
    last = jnp.take_along_axis(x, jnp.maximum(count - 1, 0)[:, None, None], axis=1)[:, 0]
    return jnp.where(count[:, None] > 0, last, default)
