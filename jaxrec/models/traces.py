"""Sums of past events that fade, beside what the LSTM blocks remember of them."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

SPAN_RATIO = 4  # of the initial spans: 1, 4, 16, 64 events
MIN_KEEP = 0.01


class Traces(nnx.Module):
    """trace <- keep * trace + gate(x) x, at H learned rates; recall = sum of weight * trace.

    Retention (Sun et al. 2023, arXiv:2307.08621) without queries and keys. As events are item
    vectors, the product of recall and an item is a sum of its similarities to what was touched,
    the newest first: a learned item-kNN, in which an item is most similar to itself.
    """

    def __init__(self, width: int, num_traces: int, rngs: nnx.Rngs):
        spans = float(SPAN_RATIO) ** jnp.arange(num_traces)
        keep = jnp.maximum(1 - 1 / spans, MIN_KEEP)
        self.keep_logits = nnx.Param(jnp.log(keep / (1 - keep)))
        self.gates = nnx.Linear(width, num_traces, kernel_init=nnx.initializers.zeros, rngs=rngs)
        self.weights = nnx.Param(jnp.zeros((num_traces, width)))

    def scan(
        self,
        x: Float[Array, "B T D"],
        starts: Bool[Array, "B T"],
        valid: Bool[Array, "B T"] | None,
        traces: Float[Array, "B H D"],
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B H D"]]:
        """What is recalled at every slot and the traces after the last; masks as in `LSTM.scan`."""
        keep = jax.nn.sigmoid(self.keep_logits[...])[None, :, None]
        weights = self.weights[...][None]
        if valid is None:
            valid = jnp.ones(x.shape[:2], bool)

        def slot(before: Array, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
            x, gates, starts, valid = inputs
            after = jnp.where(starts[:, None, None], 0, keep * before)
            after += gates[:, :, None] * x[:, None]
            after = jnp.where(valid[:, None, None], after, before)
            return after, (after * weights).sum(1)

        gates = 2 * jax.nn.sigmoid(self.gates(x))
        by_slot = [jnp.moveaxis(part, 1, 0) for part in (x, gates, starts, valid)]
        traces, recalled = jax.lax.scan(slot, traces, tuple(by_slot))
        return jnp.moveaxis(recalled, 0, 1), traces
