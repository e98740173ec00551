"""LSTM blocks over packed sequences; their state after a user's events is the user's interest."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxrec.models.layers import Linear, dropout
from jaxrec.models.sequence.item_memory import ItemMemory
from jaxrec.models.sequence.lstm_scan import Masks, Weights, recur
from jaxrec.models.transformer import MLP


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class InterestState:
    """What an encoder of L blocks and H memory remembers of B users."""

    hidden: Float[Array, "B L D"]
    cell: Float[Array, "B L D"]
    memory: Float[Array, "B H D"]
    output: Float[Array, "B 2D"]  # after the last event; see `LSTMEncoder.fold`


class LSTM(nnx.Module):
    """A long short-term memory layer (Hochreiter & Schmidhuber 1997) with a forget gate."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        # an open forget gate lets gradients through from the start (Jozefowicz et al. 2015)
        bias = jnp.zeros(4 * width).at[width : 2 * width].set(1.0)
        self.input = Linear(width, 4 * width, bias_init=nnx.initializers.constant(bias), rngs=rngs)
        self.recurrent = nnx.Param(nnx.initializers.orthogonal()(rngs.params(), (width, 4 * width)))

    def scan(
        self,
        x: Float[Array, "B T D"],
        starts: Bool[Array, "B T"],
        valid: Bool[Array, "B T"] | None,
        hidden: Float[Array, "B D"],
        cell: Float[Array, "B D"],
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B D"], Float[Array, "B D"]]:
        """Outputs at every slot and the state after the last.

        The state returns to zero before a slot where a sequence starts; slots that are not
        `valid` leave it alone (None: every slot is).
        """
        bias = self.input.bias
        assert bias is not None
        combined = jnp.concatenate([self.input.kernel[...], self.recurrent[...]])
        weights = Weights(combined, bias[...])
        masks = Masks(starts.T, None if valid is None else valid.T)
        outputs, (hidden, cell) = recur(
            weights, jnp.transpose(x, (1, 2, 0)), masks, (hidden.T, cell.T)
        )
        return jnp.transpose(outputs, (2, 0, 1)), hidden.T, cell.T


class Block(nnx.Module):
    """x <- x + Drop(W LSTM(Norm x));  x <- x + Drop(FFN(Norm x))."""

    def __init__(self, width: int, rate: float, rngs: nnx.Rngs):
        self.lstm_norm = nnx.LayerNorm(width, rngs=rngs)
        self.lstm = LSTM(width, rngs)
        self.output = Linear(width, width, rngs=rngs)
        self.mlp_norm = nnx.LayerNorm(width, rngs=rngs)
        self.mlp = MLP(width, 4 * width, dtype=None, rngs=rngs)
        self.rate = rate

    def __call__(
        self,
        x: Float[Array, "B T D"],
        starts: Bool[Array, "B T"],
        valid: Bool[Array, "B T"] | None,
        hidden: Float[Array, "B D"],
        cell: Float[Array, "B D"],
        key: Array | None,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B D"], Float[Array, "B D"]]:
        """The residual stream after the block, and the LSTM's state after the last slot."""
        keys = (None, None) if key is None else jax.random.split(key)
        outputs, hidden, cell = self.lstm.scan(self.lstm_norm(x), starts, valid, hidden, cell)
        x = x + dropout(self.output(outputs), self.rate, keys[0])
        x = x + dropout(self.mlp(self.mlp_norm(x)), self.rate, keys[1])
        return x, hidden, cell


class LSTMEncoder(nnx.Module):
    """A stack of LSTM blocks, and memory beside it, that fold events into an InterestState."""

    def __init__(
        self, width: int, num_layers: int, rate: float, rngs: nnx.Rngs, num_decays: int = 0
    ):
        self.blocks = nnx.List([Block(width, rate, rngs) for _ in range(num_layers)])
        self.initial_output = nnx.Param(0.02 * jax.random.normal(rngs.params(), (width,)))
        self.num_decays = num_decays
        self.memory = ItemMemory(width, num_decays, rngs) if num_decays else None

    def initial_state(self, batch_size: int) -> InterestState:
        """The state of users without events; what it recommends is learned."""
        output = self.initial_output[...]
        zeros = jnp.zeros((batch_size, len(self.blocks), len(output)), output.dtype)
        memory = jnp.zeros((batch_size, self.num_decays, len(output)), output.dtype)
        output = jnp.concatenate([output, jnp.zeros_like(output)])
        return InterestState(zeros, zeros, memory, jnp.tile(output, (batch_size, 1)))

    def fold(
        self,
        state: InterestState,
        events: Float[Array, "B T D"],
        starts: Bool[Array, "B T"] | None = None,
        valid: Bool[Array, "B T"] | None = None,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T 2D"], InterestState]:
        """Read T events a row: outputs after each of them, and the state after all.

        An output is that of the last block and, behind it, what the memory recall. Folding T
        events at once or one by one gives the same state.

        Args:
            starts: slots before which the state is truncated (packed sequences).
            valid: slots that hold an event; the valid ones of a row come first.
            key: for dropout; None at inference.
        """
        if starts is None:
            starts = jnp.zeros(events.shape[:2], bool)
        keys: list[Array | None] = [None] * len(self.blocks)
        if key is not None:
            keys = list(jax.random.split(key, len(self.blocks)))
        x, hidden, cell = events, [], []
        for number, (block, block_key) in enumerate(zip(self.blocks, keys, strict=True)):
            x, h, c = block(
                x, starts, valid, state.hidden[:, number], state.cell[:, number], block_key
            )
            hidden.append(h)
            cell.append(c)
        readout, memory = jnp.zeros_like(x), state.memory
        if self.memory is not None:
            readout, memory = self.memory.scan(events, starts, valid, memory)
        outputs = jnp.concatenate([x, readout], -1)
        last = outputs[:, -1] if valid is None else _last_valid(outputs, valid, state.output)
        return outputs, InterestState(jnp.stack(hidden, 1), jnp.stack(cell, 1), memory, last)


def _last_valid(
    x: Float[Array, "B T D"], valid: Bool[Array, "B T"], default: Float[Array, "B D"]
) -> Float[Array, "B D"]:
    count = valid.sum(1)
    last = jnp.take_along_axis(x, jnp.maximum(count - 1, 0)[:, None, None], axis=1)[:, 0]
    return jnp.where(count[:, None] > 0, last, default)
