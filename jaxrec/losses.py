"""Losses as pure functions of arrays. They return unreduced values; `weighted_mean` reduces."""

from functools import partial

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
    logits = jnp.einsum("...d,kd->...k", queries, candidates, preferred_element_type=jnp.float32)
    logits = jnp.where(valid.reshape((1,) * targets.ndim + (-1,)), logits, MASKED)
    target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - target_logits


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def blocked_cross_entropy(
    queries: Float[Array, "B T D"],
    candidates: Float[Array, "K D"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    valid: Bool[Array, " K"],
    block: int,
) -> Float[Array, ""]:
    """The weighted sum of `cross_entropy`, about `block` positions at a time.

    Memory is [block x K] whatever the batch. As the weights are known, a block's gradient is
    formed while its logits are there, and nothing is recomputed (arXiv:2410.10989). Blocks are
    cut along T, so a batch that is sharded along B stays so. Weights get no gradient.
    """

    def one_block(part: tuple[Array, Array, Array]) -> Array:
        block_queries, block_targets, block_weights = part
        return (
            cross_entropy(block_queries, candidates, block_targets, valid) * block_weights
        ).sum()

    return jax.lax.map(one_block, _cut((queries, targets, weights), block)).sum()


def _loss_and_gradients(queries, candidates, targets, weights, valid, block):
    def one_block(candidate_gradient, part):
        block_queries, block_targets, block_weights = part

        def weighted_sum(q: Array, c: Array) -> Array:
            return (cross_entropy(q, c, block_targets, valid) * block_weights).sum()

        loss, (for_queries, for_candidates) = jax.value_and_grad(weighted_sum, (0, 1))(
            block_queries, candidates
        )
        return candidate_gradient + for_candidates, (loss, for_queries)

    candidate_gradient, (losses, gradients) = jax.lax.scan(
        one_block, jnp.zeros_like(candidates), _cut((queries, targets, weights), block)
    )
    query_gradient = jnp.moveaxis(gradients, 0, 1).reshape(queries.shape)
    return losses.sum(), (query_gradient, candidate_gradient)


def _scale_gradients(block, gradients, cotangent):
    scaled = [gradient * cotangent.astype(gradient.dtype) for gradient in gradients]
    return (*scaled, None, None, None)


blocked_cross_entropy.defvjp(_loss_and_gradients, _scale_gradients)


def _cut(arrays: tuple[Array, ...], block: int) -> tuple[Array, ...]:
    """[B, T, ...] arrays as blocks [n, B, t, ...] of about `block` positions."""
    rows, slots = arrays[0].shape[:2]
    width = _largest_divisor(slots, max(1, block // rows))
    return tuple(
        jnp.moveaxis(x.reshape(rows, slots // width, width, *x.shape[2:]), 1, 0) for x in arrays
    )


def weighted_mean(
    values: Float[Array, "*shape"], weights: Float[Array, "*shape"]
) -> Float[Array, ""]:
    """Sum of weighted values over the sum of weights; 0 if all weights are 0."""
    total = weights.sum()
    return jnp.where(total > 0, (values * weights).sum() / jnp.maximum(total, 1e-9), 0.0)


def _largest_divisor(number: int, limit: int) -> int:
    return next(d for d in range(min(number, limit), 0, -1) if number % d == 0)
