"""Losses as pure functions of arrays. They return unreduced values; `weighted_mean` reduces."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

MASKED = -1e30


def cross_entropy(
    queries: Float[Array, "*positions D"],
    candidates: Float[Array, "K D"],
    targets: Int[Array, "*positions"],
    valid: Bool[Array, " K"],
) -> Float[Array, "*positions"]:
    """-log softmax(queries . candidates)[target] over the valid candidates, in float32."""
    logits = jnp.einsum(
        "...d,kd->...k", queries, candidates, preferred_element_type=jnp.float32
    )
    logits = jnp.where(valid.reshape((1,) * targets.ndim + (-1,)), logits, MASKED)
    target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - target_logits


def blocked_cross_entropy(
    queries: Float[Array, "B T D"],
    candidates: Float[Array, "K D"],
    targets: Int[Array, "B T"],
    valid: Bool[Array, " K"],
    block: int,
) -> Float[Array, "B T"]:
    """`cross_entropy` of about `block` positions at a time, recomputed in the backward pass.

    Memory is [block x K] whatever the batch. Blocks are cut along T, so a batch that is sharded
    along B stays so.
    """
    rows, slots = targets.shape
    width = _largest_divisor(slots, max(1, block // rows))

    def cut(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(rows, slots // width, width, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def one_block(part: tuple[Array, Array]) -> Array:
        return cross_entropy(part[0], candidates, part[1], valid)

    losses = jax.lax.map(one_block, (cut(queries), cut(targets)))
    return jnp.moveaxis(losses, 0, 1).reshape(rows, slots)


def weighted_mean(
    values: Float[Array, "*shape"], weights: Float[Array, "*shape"]
) -> Float[Array, ""]:
    """Sum of weighted values over the sum of weights; 0 if all weights are 0."""
    total = weights.sum()
    return jnp.where(total > 0, (values * weights).sum() / jnp.maximum(total, 1e-9), 0.0)


def _largest_divisor(number: int, limit: int) -> int:
    return next(d for d in range(min(number, limit), 0, -1) if number % d == 0)
