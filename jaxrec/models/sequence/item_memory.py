"""Sums of past events that fade, beside what the LSTM blocks remember of them."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxrec.models.layers import Linear

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
        self.gates = Linear(width, num_traces, kernel_init=nnx.initializers.zeros, rngs=rngs)
        self.weights = nnx.Param(jnp.zeros((num_traces, width)))

    def scan(
        self,
        x: Float[Array, "B T D"],
        starts: Bool[Array, "B T"],
        valid: Bool[Array, "B T"] | None,
        traces: Float[Array, "B H D"],
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B H D"]]:
        """What is recalled at every slot and the traces after the last; masks as in `LSTM.scan`."""
        keep = jnp.where(starts[..., None], 0, jax.nn.sigmoid(self.keep_logits[...])[None, None])
        gates = 2 * jax.nn.sigmoid(self.gates(x))
        if valid is not None:
            keep = jnp.where(valid[..., None], keep, 1)
            gates = jnp.where(valid[..., None], gates, 0)
        keep, gates = (jnp.transpose(part, (1, 2, 0)) for part in (keep, gates))
        recalled, traces = recall(self.weights[...], keep, gates, jnp.moveaxis(x, 1, 0), traces)
        return jnp.moveaxis(recalled, 0, 1), traces


@jax.custom_vjp
def recall(
    weights: Float[Array, "H D"],
    keep: Float[Array, "T H B"],
    gates: Float[Array, "T H B"],
    x: Float[Array, "T B D"],
    traces: Float[Array, "B H D"],
) -> tuple[Float[Array, "T B D"], Float[Array, "B H D"]]:
    """The weighted sum of traces at every slot, and the traces after the last.

    Inside, every trace is an array of its own, and the gradient is written by hand: together they
    halve the time of a scan over [B, H, D] with the automatic gradient.
    """
    return _forward(weights, keep, gates, x, traces, keep_traces=False)[0]


def _forward(weights, keep, gates, x, traces, *, keep_traces):
    def slot(before: tuple[Array, ...], inputs: tuple[Array, ...]) -> tuple[tuple, tuple]:
        after = _after(before, *inputs)
        recalled = sum(w * trace for w, trace in zip(by_trace, after, strict=True))
        return after, (recalled, before if keep_traces else None)

    by_trace = tuple(weights[:, None])
    traces, (recalled, befores) = jax.lax.scan(
        slot, tuple(jnp.moveaxis(traces, 1, 0)), (keep, gates, x)
    )
    return (recalled, jnp.stack(traces, 1)), (weights, keep, gates, x, befores)


def _after(before, keep, gates, x):
    kept = zip(before, keep[..., None], gates[..., None], strict=True)
    return tuple(keep * trace + gate * x for trace, keep, gate in kept)


def _backward(residuals, cotangents):
    weights, *inputs = residuals
    for_recalled, for_traces = cotangents
    by_trace = tuple(weights[:, None])

    def slot(carry: tuple[tuple, tuple], inputs: tuple) -> tuple[tuple, tuple]:
        for_traces, for_weights = carry
        (keep, gates, x, before), for_recalled = inputs
        after = _after(before, keep, gates, x)
        for_after = [t + w * for_recalled for t, w in zip(for_traces, by_trace, strict=True)]
        for_weights = tuple(
            w + trace * for_recalled for w, trace in zip(for_weights, after, strict=True)
        )
        for_x = sum(g * t for g, t in zip(gates[..., None], for_after, strict=True))
        for_gates = jnp.stack([(t * x).sum(-1) for t in for_after])
        for_keep = jnp.stack([(t * b).sum(-1) for t, b in zip(for_after, before, strict=True)])
        for_before = tuple(k * t for k, t in zip(keep[..., None], for_after, strict=True))
        return (for_before, for_weights), (for_keep, for_gates, for_x)

    last = tuple(jnp.moveaxis(for_traces, 1, 0))
    zeros = tuple(jnp.zeros(trace.shape, jnp.float32) for trace in last)
    (first, for_weights), for_inputs = jax.lax.scan(
        slot, (last, zeros), (tuple(inputs), for_recalled), reverse=True
    )
    total = jnp.stack([w.sum(0) for w in for_weights]).astype(weights.dtype)
    return total, *for_inputs, jnp.stack(first, 1)


recall.defvjp(partial(_forward, keep_traces=True), _backward)
