"""Residual blocks with an item memory beside them: what all sequence encoders have in common."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxrec.config import ModelConfig
from jaxrec.models.layers import dropout
from jaxrec.models.sequence.item_memory import ItemMemory
from jaxrec.models.transformer import MLP

LayerState = Any  # a pytree of arrays [B, ...]; its layer alone looks inside


class Masks(NamedTuple):
    """What happens to the state at every step."""

    starts: Bool[Array, "T B"]  # where True, the state is reset to zero before the step
    valid: Bool[Array, "T B"] | None  # where False, the step keeps the state; None: all are True


class Layer(Protocol):
    """A layer of `StackedEncoder`; `parallel` layers compute all time steps at once."""

    parallel: bool

    def initial_state(self, batch_size: int) -> LayerState:
        """The state of users without events: all zeros."""
        ...

    def __call__(
        self, x: Float[Array, "B T D"], masks: Masks, state: LayerState, key: Array | None
    ) -> tuple[Float[Array, "B T D"], LayerState]:
        """The outputs of all steps, and the state after the last; `key` is for dropout."""
        ...


class ResidualBlock(nnx.Module):
    """x <- x + Drop(Mix(Norm x));  x <- x + Drop(FFN(Norm x)).

    `Mix` lets an event see the events before it. A subclass defines `mix`, which includes the norm,
    and `initial_state`; it makes its own parameters before those of this class.
    """

    parallel = False

    def __init__(self, width: int, rate: float, rngs: nnx.Rngs):
        self.mlp_norm = nnx.LayerNorm(width, rngs=rngs)
        self.mlp = MLP(width, 4 * width, dtype=None, rngs=rngs)
        self.rate = rate

    def mix(
        self, x: Float[Array, "B T D"], masks: Masks, state: LayerState
    ) -> tuple[Float[Array, "B T D"], LayerState]:
        """What is added to the residual stream, and the state after the last step."""
        raise NotImplementedError

    def __call__(
        self, x: Float[Array, "B T D"], masks: Masks, state: LayerState, key: Array | None
    ) -> tuple[Float[Array, "B T D"], LayerState]:
        """The residual stream after the block, and the state after the last step."""
        keys = (None, None) if key is None else jax.random.split(key)
        mixed, state = self.mix(x, masks, state)
        x = x + dropout(mixed, self.rate, keys[0])
        x = x + dropout(self.mlp(self.mlp_norm(x)), self.rate, keys[1])
        return x, state


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class InterestState:
    """The state of `StackedEncoder` for B users: G layers and an item memory with C decay rates."""

    layers: LayerState  # leaves [B, G, ...]
    memory: Float[Array, "B C D"]
    output: Float[Array, "B out"]  # after the last event


class StackedEncoder(nnx.Module):
    """A stack of equal layers, and an item memory that reads the same events."""

    def __init__(
        self, layer: Callable[[int, float, nnx.Rngs], Layer], config: ModelConfig, rngs: nnx.Rngs
    ):
        width = config.hidden_size
        layers = [layer(width, config.dropout, rngs) for _ in range(config.num_layers)]
        self.layers = nnx.List(layers)
        self.initial_output = nnx.Param(0.02 * jax.random.normal(rngs.params(), (width,)))
        self.num_decays = config.memory_decays
        parallel = layers[0].parallel
        self.memory = (
            ItemMemory(width, self.num_decays, rngs, parallel) if self.num_decays else None
        )

    def initial_state(self, batch_size: int) -> InterestState:
        """The empty state of users without events; their output is learned."""
        output = self.initial_output[...]
        memory = jnp.zeros((batch_size, self.num_decays, len(output)), output.dtype)
        layers = _stacked([layer.initial_state(batch_size) for layer in self.layers])
        output = jnp.concatenate([output, jnp.zeros_like(output)])
        return InterestState(layers, memory, jnp.tile(output, (batch_size, 1)))

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
            before = jax.tree.map(lambda part, n=number: part[:, n], state.layers)
            x, after = layer(x, masks, before, None if keys is None else keys[number])
            states.append(after)
        readout, memory = jnp.zeros_like(x), state.memory
        if self.memory is not None:
            readout, memory = self.memory.scan(events, starts, valid, memory)
        outputs = jnp.concatenate([x, readout], -1)
        last = outputs[:, -1] if valid is None else _last_valid(outputs, valid, state.output)
        return outputs, InterestState(_stacked(states), memory, last)

    def last_output(self, state: InterestState) -> Float[Array, "B out"]:
        """The output after the last event; the learned one if there was no event."""
        return state.output


def _stacked(states: list[LayerState]) -> LayerState:
    """The states of all layers as one, the layers along the second axis."""
    return jax.tree.map(lambda *parts: jnp.stack(parts, 1), *states)


def _last_valid(
    x: Float[Array, "B T out"], valid: Bool[Array, "B T"], default: Float[Array, "B out"]
) -> Float[Array, "B out"]:
    count = valid.sum(1)
    last = jnp.take_along_axis(x, jnp.maximum(count - 1, 0)[:, None, None], axis=1)[:, 0]
    return jnp.where(count[:, None] > 0, last, default)
