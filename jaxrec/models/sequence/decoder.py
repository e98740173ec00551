"""The decoder of a forecast: from a user's interest now to the interest after further events."""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxrec.models.layers import Linear
from jaxrec.models.sequence.blocks import Masks
from jaxrec.models.sequence.lstm import LSTM, LSTMState
from jaxrec.types import STATIC


class InterestDecoder(nnx.Module):
    """An LSTM that starts from a user vector and reads the item vectors of further events.

    This is the decoder of a sequence-to-sequence model (Sutskever et al., arXiv:1409.3215). It
    sees the encoder through the user vector alone, so it works with every sequence encoder:

        state_1  = tanh(W Norm(u))
        state_k  = LSTM(state_k-1, item vector of event k - 1)
        u_1      = u
        u_k      = (1 + a(state_k)) u + B Norm(state_k)        k = 2, 3 ...

    u_k is a user vector: its products with item vectors are scores of event k. `a` and `B` begin
    at zero, so an untrained decoder says that the interest does not change.

    Args:
        width: of user vectors, F.
    """

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.user_norm = nnx.LayerNorm(width, rngs=rngs)
        self.first_state = Linear(width, 2 * width, rngs=rngs)
        self.lstm = LSTM(width, rngs)
        self.output_norm = nnx.LayerNorm(width, rngs=rngs)
        self.output = Linear(width, width + 1, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def start(self, users: Float[Array, "B F"]) -> LSTMState:
        """The state before the first further event."""
        hidden, cell = jnp.split(jnp.tanh(self.first_state(self.user_norm(users))), 2, -1)
        return LSTMState(hidden, cell)

    def read(
        self, users: Float[Array, "B F"], items: Float[Array, "B T F"], state: LSTMState
    ) -> tuple[Float[Array, "B T F"], LSTMState]:
        """User vectors after each of T further events, and the state after all of them.

        Args:
            users: the user vectors that `start` got.
            items: vectors of the events' items, or of what is expected in their place.
        """
        width = users.shape[-1]
        masks = Masks(jnp.zeros(items.shape[1::-1], bool), None)
        # item vectors have entries near 1 / sqrt(width); an LSTM expects entries near 1
        hidden, state = self.lstm.scan(items * width**0.5, masks, state)
        change, growth = jnp.split(self.output(self.output_norm(hidden)), [width], -1)
        return users[:, None] * (1 + growth) + change, state


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Decoder:
    """A decoder as jitted functions take it: two numbers, which are static, and its parameters."""

    width: int = field(metadata=STATIC)
    steps: int = field(metadata=STATIC)  # events that it was trained to forecast
    params: Any

    def merge(self) -> InterestDecoder:
        """The module with its parameters."""
        return nnx.merge(_definition(self.width), self.params)


def new_decoder(width: int, steps: int, seed: int) -> Decoder:
    """A decoder with initial parameters."""
    params = nnx.state(InterestDecoder(width, nnx.Rngs(seed)))
    return Decoder(width, steps, nnx.to_pure_dict(params))


def abstract_params(width: int) -> dict[str, Any]:
    """The shapes of a decoder's parameters."""
    return jax.eval_shape(lambda: new_decoder(width, 0, 0).params)


@cache
def _definition(width: int) -> nnx.GraphDef[InterestDecoder]:
    return nnx.graphdef(nnx.eval_shape(lambda: InterestDecoder(width, nnx.Rngs(0))))
