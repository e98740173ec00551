"""The item memory: decayed sums of past event vectors, beside the state of the LSTM."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxrec.models.forms import chosen_forms
from jaxrec.models.layers import Linear
from jaxrec.models.sequence.linear_scan import linear_scan

SPAN_RATIO = 4  # an initial decay rate remembers 1, 4, 16, 64 ... events
MIN_DECAY = 0.01
BLOCK = 128  # time steps that `scan_by_products` reads at a time


class ItemMemory(nnx.Module):
    """m_c <- decay_c m_c + gate_c(x) x for C learned decay rates;  readout = sum of w_c * m_c.

    This is retention (Sun et al. 2023, arXiv:2307.08621) without queries and keys. Events are item
    vectors, so the product of the readout and an item vector sums the item's similarities to past
    items, with the largest weights on the latest. It is a learned item-kNN, in which an item is
    most similar to itself.

    Args:
        parallel: compute all time steps at once, for encoders that do so too.
    """

    def __init__(self, width: int, num_decays: int, rngs: nnx.Rngs, parallel: bool = False):
        spans = float(SPAN_RATIO) ** jnp.arange(num_decays)
        decay = jnp.maximum(1 - 1 / spans, MIN_DECAY)
        self.decay_logits = nnx.Param(jnp.log(decay / (1 - decay)))
        self.gates = Linear(width, num_decays, kernel_init=nnx.initializers.zeros, rngs=rngs)
        self.weights = nnx.Param(jnp.zeros((num_decays, width)))
        self.parallel = parallel

    def scan(
        self,
        x: Float[Array, "B T D"],
        starts: Bool[Array, "B T"],
        valid: Bool[Array, "B T"] | None,
        memory: Float[Array, "B C D"],
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B C D"]]:
        """The readout after every step and the memory after the last.

        Masks as in `SequenceEncoder.scan`.
        """
        gates = 2 * jax.nn.sigmoid(self.gates(x))
        if chosen_forms().memory_by_products and not self.parallel:
            logits = self.decay_logits[...]
            return scan_by_products(self.weights[...], logits, gates, x, (starts, valid), memory)
        decay = jnp.where(starts[..., None], 0, jax.nn.sigmoid(self.decay_logits[...])[None, None])
        if valid is not None:
            decay = jnp.where(valid[..., None], decay, 1)
            gates = jnp.where(valid[..., None], gates, 0)
        if self.parallel:
            return scan_in_parallel(self.weights[...], decay, gates, x, memory)
        decay, gates = (jnp.transpose(part, (1, 2, 0)) for part in (decay, gates))
        x = jnp.moveaxis(x, 1, 0)
        readout, memory = scan_memory(self.weights[...], decay, gates, x, memory)
        return jnp.moveaxis(readout, 0, 1), memory


def scan_by_products(
    weights: Float[Array, "C D"],
    decay_logits: Float[Array, " C"],
    gates: Float[Array, "B T C"],
    x: Float[Array, "B T D"],
    masks: tuple[Bool[Array, "B T"], Bool[Array, "B T"] | None],
    memory: Float[Array, "B C D"],
) -> tuple[Float[Array, "B T D"], Float[Array, "B C D"]]:
    """What `scan_memory` gives, by matrix products over blocks of time steps.

    A memory is the sum of decay^(t - s) gate_s x_s over the steps s <= t of its sequence: a product
    with a triangular matrix, one for each decay rate. Such products suit accelerators.

    Args:
        masks: starts and valid steps, as in `SequenceEncoder.scan`.
    """
    starts, valid = masks
    valid = jnp.ones_like(starts) if valid is None else valid
    log_rates = jax.nn.log_sigmoid(decay_logits.astype(jnp.float32))
    before, readouts = memory.astype(jnp.float32), []
    for begin in range(0, x.shape[1], BLOCK):
        inputs = (part[:, begin : begin + BLOCK] for part in (gates, x, starts, valid))
        readout, before = _block(weights, log_rates, *inputs, before)
        readouts.append(readout.astype(x.dtype))
    return jnp.concatenate(readouts, 1), before.astype(memory.dtype)


def _block(weights, log_rates, gates, x, starts, valid, memory):
    """The readout [B, T, D] and the memory after the last step, in float32."""
    sequences, counts = jnp.cumsum(starts & valid, 1), jnp.cumsum(valid, 1)
    same = sequences[:, :, None] == sequences[:, None]
    seen = same & np.tri(x.shape[1], dtype=bool)[None]
    ages = jnp.maximum(counts[:, :, None] - counts[:, None], 0)
    gates = jnp.where(valid[..., None], gates, 0).astype(jnp.float32)
    readout, after = jnp.zeros(x.shape, jnp.float32), []
    for rate, (log_rate, weight) in enumerate(zip(log_rates, weights, strict=True)):
        shares = jnp.where(seen, jnp.exp(log_rate * ages), 0) * gates[:, None, :, rate]
        memories = jnp.matmul(shares.astype(x.dtype), x, preferred_element_type=jnp.float32)
        kept = jnp.where(sequences == 0, jnp.exp(log_rate * counts), 0)
        memories += kept[..., None] * memory[:, None, rate]
        readout += weight[None, None] * memories
        after.append(memories[:, -1])
    return readout, jnp.stack(after, 1)


def scan_in_parallel(
    weights: Float[Array, "C D"],
    decay: Float[Array, "B T C"],
    gates: Float[Array, "B T C"],
    x: Float[Array, "B T D"],
    memory: Float[Array, "B C D"],
) -> tuple[Float[Array, "B T D"], Float[Array, "B C D"]]:
    """What `scan_memory` gives, with all time steps at once; computed in float32."""
    exact = (part.astype(jnp.float32) for part in (decay, gates, x, memory))
    decay, gates, inputs, before = exact
    readout, after = jnp.zeros_like(inputs), []
    for rate, weight in enumerate(weights):
        part = slice(rate, rate + 1)
        memories = linear_scan(decay[..., part], gates[..., part] * inputs, before[:, rate])
        readout += weight[None, None] * memories
        after.append(memories[:, -1])
    return readout.astype(x.dtype), jnp.stack(after, 1).astype(memory.dtype)


@jax.custom_vjp
def scan_memory(
    weights: Float[Array, "C D"],
    decay: Float[Array, "T C B"],
    gates: Float[Array, "T C B"],
    x: Float[Array, "T B D"],
    memory: Float[Array, "B C D"],
) -> tuple[Float[Array, "T B D"], Float[Array, "B C D"]]:
    """The readout after every step and the memory after the last.

    The scan carries C arrays [B, D], one for each decay rate, and the gradient is written by hand.
    Together they take half the time of a scan over [B, C, D] with the automatic gradient.
    """
    return _forward(weights, decay, gates, x, memory, keep_residuals=False)[0]


def _forward(weights, decay, gates, x, memory, *, keep_residuals):
    def step(before: tuple[Array, ...], inputs: tuple[Array, ...]) -> tuple[tuple, tuple]:
        after = _update(before, *inputs)
        readout = sum(w * m for w, m in zip(weight_of_rate, after, strict=True))
        return after, (readout, before if keep_residuals else None)

    weight_of_rate = tuple(weights[:, None])
    memory, (readouts, befores) = jax.lax.scan(
        step, tuple(jnp.moveaxis(memory, 1, 0)), (decay, gates, x)
    )
    return (readouts, jnp.stack(memory, 1)), (weights, decay, gates, x, befores)


def _update(before, decay, gates, x):
    """decay * m + gate * x for every decay rate."""
    rates = zip(before, decay[..., None], gates[..., None], strict=True)
    return tuple(decay * m + gate * x for m, decay, gate in rates)


def _backward(residuals, cotangents):
    weights, *inputs = residuals
    grad_readouts, grad_memory = cotangents
    weight_of_rate = tuple(weights[:, None])

    def step(carry: tuple[tuple, tuple], inputs: tuple) -> tuple[tuple, tuple]:
        grad_memory, grad_weights = carry
        (decay, gates, x, before), grad_readout = inputs
        after = _update(before, decay, gates, x)
        grad_after = [
            grad + w * grad_readout for grad, w in zip(grad_memory, weight_of_rate, strict=True)
        ]
        grad_weights = tuple(
            grad + m * grad_readout for grad, m in zip(grad_weights, after, strict=True)
        )
        grad_x = sum(g * grad for g, grad in zip(gates[..., None], grad_after, strict=True))
        grad_gates = jnp.stack([(grad * x).sum(-1) for grad in grad_after])
        grad_decay = jnp.stack(
            [(grad * m).sum(-1) for grad, m in zip(grad_after, before, strict=True)]
        )
        grad_before = tuple(d * grad for d, grad in zip(decay[..., None], grad_after, strict=True))
        return (grad_before, grad_weights), (grad_decay, grad_gates, grad_x)

    grad_last = tuple(jnp.moveaxis(grad_memory, 1, 0))
    zeros = tuple(jnp.zeros(grad.shape, jnp.float32) for grad in grad_last)
    (grad_first, grad_weights), grad_inputs = jax.lax.scan(
        step, (grad_last, zeros), (tuple(inputs), grad_readouts), reverse=True
    )
    total = jnp.stack([grad.sum(0) for grad in grad_weights]).astype(weights.dtype)
    return total, *grad_inputs, jnp.stack(grad_first, 1)


scan_memory.defvjp(partial(_forward, keep_residuals=True), _backward)
