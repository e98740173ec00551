"""A gated linear recurrence, which reads all steps of a long history at once in training."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxrec.models.layers import Linear
from jaxrec.models.sequence.blocks import Masks, ResidualBlock
from jaxrec.models.sequence.linear_scan import linear_scan

MIN_DECAY, MAX_DECAY = 0.8, 0.999  # initial decays: they remember 5 to 1,000 events
SHARPNESS = 8.0  # c below
TINY = 1e-6  # keeps the gradient of the square root finite


class LinearRecurrentUnit(nnx.Module):
    """h_t = a_t h_{t-1} + sqrt(1 - a_t^2) sigmoid(i_t) u_t;  y_t = gelu(g_t) h_t.

    The vectors u, i, r and g are linear in the event alone, and a_t = a^(c sigmoid(r_t)) with a
    learned decay a for every entry. So the recurrence is linear in h, and `linear_scan` computes
    all steps at once. It is the RG-LRU of De et al. (2024, arXiv:2402.19427) without a convolution,
    after the linear recurrent unit of Orvieto et al. (2023, arXiv:2303.06349); Yue et al. (2023,
    arXiv:2310.02367) recommend with the latter.
    """

    def __init__(self, width: int, rngs: nnx.Rngs):
        squares = jax.random.uniform(
            rngs.params(), (width,), minval=MIN_DECAY**2, maxval=MAX_DECAY**2
        )
        # a gate is 1/2 at the start, so a^(c/2) is the initial decay
        rate = -jnp.log(squares) / SHARPNESS  # = softplus(decay_logits) = -log a
        self.decay_logits = nnx.Param(jnp.log(jnp.expm1(rate)))
        self.input = Linear(width, 4 * width, rngs=rngs)

    def scan(
        self, x: Float[Array, "B T D"], masks: Masks, state: Float[Array, "B D"]
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B D"]]:
        """The outputs of every step, and the state after the last."""
        update, input_gate, decay_gate, output_gate = jnp.split(self.input(x), 4, axis=-1)
        # decays near 1 need more digits than bfloat16 has
        rate = jax.nn.softplus(self.decay_logits[...].astype(jnp.float32))
        gate = jax.nn.sigmoid(decay_gate.astype(jnp.float32))
        log_decay = -SHARPNESS * rate[None, None] * gate
        scale = jnp.sqrt(jnp.maximum(-jnp.expm1(2 * log_decay), TINY))
        inputs = scale * (jax.nn.sigmoid(input_gate) * update).astype(jnp.float32)
        decay = jnp.where(masks.starts.T[..., None], 0, jnp.exp(log_decay))
        if masks.valid is not None:
            valid = masks.valid.T[..., None]
            decay, inputs = jnp.where(valid, decay, 1), jnp.where(valid, inputs, 0)
        hidden = linear_scan(decay, inputs, state.astype(jnp.float32))
        outputs = jax.nn.gelu(output_gate) * hidden.astype(x.dtype)
        return outputs, hidden[:, -1].astype(state.dtype)


class LRUBlock(ResidualBlock):
    """A residual block whose events see earlier ones through a linear recurrence."""

    parallel = True

    def __init__(self, width: int, rate: float, rngs: nnx.Rngs):
        self.lru_norm = nnx.LayerNorm(width, rngs=rngs)
        self.lru = LinearRecurrentUnit(width, rngs)
        self.output = Linear(width, width, rngs=rngs)
        super().__init__(width, rate, rngs)

    def initial_state(self, batch_size: int) -> Float[Array, "B D"]:
        """Zeros."""
        logits = self.lru.decay_logits[...]
        return jnp.zeros((batch_size, len(logits)), logits.dtype)

    def mix(
        self, x: Float[Array, "B T D"], masks: Masks, state: Float[Array, "B D"]
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B D"]]:
        """W LRU(Norm x), and the state of the recurrence after the last step."""
        outputs, state = self.lru.scan(self.lru_norm(x), masks, state)
        return self.output(outputs), state
