"""Layers that hold a gated recurrent unit (GRU) or a plain recurrence (RNN)."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxrec.models.layers import Linear
from jaxrec.models.sequence.blocks import Masks, ResidualBlock
from jaxrec.partitioning import row_shards


class Recurrence(nnx.Module):
    """A layer whose only state is its hidden vector [D].

    `gates` is how many vectors [D] a step computes from the event and from the hidden vector.
    """

    gates: ClassVar[int]

    def __init__(self, width: int, rngs: nnx.Rngs):
        columns = self.gates * width
        self.input = Linear(width, columns, rngs=rngs)
        self.recurrent = nnx.Param(nnx.initializers.orthogonal()(rngs.params(), (width, columns)))

    def next_hidden(
        self,
        inputs: Float[Array, "B columns"],
        recurrent: Float[Array, "B columns"],
        hidden: Float[Array, "B D"],
    ) -> Float[Array, "B D"]:
        """The hidden vector after a step.

        Args:
            inputs: W x + b, where x is the event.
            recurrent: U h, where h is the hidden vector before the step.
        """
        raise NotImplementedError

    def scan(
        self, x: Float[Array, "B T D"], masks: Masks, hidden: Float[Array, "B D"]
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B D"]]:
        """Hidden vectors after every step, and the last of them."""
        kernel = self.recurrent[...]
        shards = row_shards(len(hidden))
        kernels = jnp.broadcast_to(kernel, (shards, *kernel.shape))

        def product(before: Float[Array, "B D"]) -> Float[Array, "B columns"]:
            if shards == 1:
                return before @ kernel
            by_shard = before.reshape(shards, -1, before.shape[1])
            return jnp.einsum("sbd,sdc->sbc", by_shard, kernels).reshape(len(before), -1)

        def step(hidden: Array, at_step: tuple[Array, Masks]) -> tuple[Array, Array]:
            inputs, masks = at_step
            before = jnp.where(masks.starts[:, None], 0, hidden)
            after = self.next_hidden(inputs, product(before), before).astype(hidden.dtype)
            if masks.valid is not None:
                after = jnp.where(masks.valid[:, None], after, before)
            return after, after

        hidden, outputs = jax.lax.scan(step, hidden, (jnp.moveaxis(self.input(x), 1, 0), masks))
        return jnp.moveaxis(outputs, 0, 1), hidden


class GRU(Recurrence):
    """A gated recurrent unit (Cho et al. 2014, arXiv:1406.1078), as cuDNN computes it.

    The reset gate acts after the product with the hidden vector, so a step has one product.
    """

    gates = 3

    def next_hidden(
        self,
        inputs: Float[Array, "B columns"],
        recurrent: Float[Array, "B columns"],
        hidden: Float[Array, "B D"],
    ) -> Float[Array, "B D"]:
        """z h + (1 - z) tanh(W x + r U h)."""
        input_parts = jnp.split(inputs, 3, axis=-1)
        hidden_parts = jnp.split(recurrent, 3, axis=-1)
        reset, update = (
            jax.nn.sigmoid(from_event + from_hidden)
            for from_event, from_hidden in zip(input_parts[:2], hidden_parts[:2], strict=True)
        )
        candidate = jnp.tanh(input_parts[2] + reset * hidden_parts[2])
        return candidate + update * (hidden - candidate)


class RNN(Recurrence):
    """The recurrent network of Elman (1990): h <- tanh(W x + U h + b)."""

    gates = 1

    def next_hidden(
        self,
        inputs: Float[Array, "B columns"],
        recurrent: Float[Array, "B columns"],
        hidden: Float[Array, "B D"],
    ) -> Float[Array, "B D"]:
        """tanh(W x + U h + b)."""
        return jnp.tanh(inputs + recurrent)


class RecurrentBlock(ResidualBlock):
    """A residual block whose events see earlier ones through a `Recurrence` and a linear layer."""

    def __init__(self, layer: type[Recurrence], width: int, rate: float, rngs: nnx.Rngs):
        self.recurrence_norm = nnx.LayerNorm(width, rngs=rngs)
        self.recurrence = layer(width, rngs)
        self.output = Linear(width, width, rngs=rngs)
        super().__init__(width, rate, rngs)

    def initial_state(self, batch_size: int) -> Float[Array, "B D"]:
        """Zeros."""
        kernel = self.recurrence.recurrent[...]
        return jnp.zeros((batch_size, len(kernel)), kernel.dtype)

    def mix(
        self, x: Float[Array, "B T D"], masks: Masks, state: Float[Array, "B D"]
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B D"]]:
        """W Recurrence(Norm x), and the hidden vector after the last step."""
        outputs, state = self.recurrence.scan(self.recurrence_norm(x), masks, state)
        return self.output(outputs), state
