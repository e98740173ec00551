"""Losses as pure functions of arrays: `cross_entropy`, and the same sum without its logits."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

NEG_INF = -1e30
MIN_BLOCK = 256  # positions


class LogitAdjustments(NamedTuple):
    """Some candidates of every position, and what is added to their logits."""

    candidates: Int[Array, "B T S"]
    amounts: Float[Array, "B T S"] | None  # NEG_INF leaves a candidate out; None: all of them


def cross_entropy(
    queries: Float[Array, "*positions D"],
    candidates: Float[Array, "K D"],
    targets: Int[Array, "*positions"],
    valid: Bool[Array, " K"],
) -> Float[Array, "*positions"]:
    """-log softmax(queries . candidates)[target] over the valid candidates, in float32."""
    logits = jnp.einsum("...d,kd->...k", queries, candidates, preferred_element_type=jnp.float32)
    logits = jnp.where(valid.reshape((1,) * targets.ndim + (-1,)), logits, NEG_INF)
    target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - target_logits


def blocked_cross_entropy(
    queries: Float[Array, "B T D"],
    candidates: Float[Array, "K D"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    valid: Bool[Array, " K"],
    block: int,
    adjusted: LogitAdjustments | None = None,
) -> Float[Array, ""]:
    """The weighted sum of `cross_entropy`, about `block` positions at a time.

    Products are of the queries' dtype, sums are float32.

    Memory is [block x K] whatever T. Blocks are cut along T, so a batch that is sharded along B
    stays so, and hold B positions at least. Weights get no gradient.
    """
    weights = jax.lax.stop_gradient(weights)
    places, amounts = adjusted or LogitAdjustments(jnp.zeros((*weights.shape, 0), jnp.int32), None)
    chosen = jnp.sum(queries * candidates[targets], -1, dtype=jnp.float32)
    if amounts is not None:
        chosen += jnp.where(places == targets[..., None], amounts, 0).sum(-1)
    rounded = candidates.astype(queries.dtype)
    log_z = _weighted_log_z(queries, rounded, amounts, weights, valid, places, block)
    return log_z - (chosen * weights).sum()


@partial(jax.custom_vjp, nondiff_argnums=(6,))
def _weighted_log_z(
    queries: Float[Array, "B T D"],
    candidates: Float[Array, "K D"],
    amounts: Float[Array, "B T S"] | None,
    weights: Float[Array, "B T"],
    valid: Bool[Array, " K"],
    places: Int[Array, "B T S"],
    block: int,
) -> Float[Array, ""]:
    """The weighted sum of log Z = log sum of exp(queries . candidates).

    As the weights are known, a block's gradient is formed while its logits are there, and
    nothing is recomputed (arXiv:2410.10989).
    """
    return _log_z_and_gradients(queries, candidates, amounts, weights, valid, places, block)[0]


def _log_z_and_gradients(queries, candidates, amounts, weights, valid, places, block):
    bias = jnp.where(valid, 0, NEG_INF)[None, None]

    @jax.vmap
    @jax.vmap
    def adjusted(logits, places, amounts):
        some = logits.at[places]
        return some.set(NEG_INF) if amounts is None else some.add(amounts)

    def one_block(grad_candidates, part):
        queries, weights, places, amounts = part
        logits = bias + jnp.einsum(
            "btd,kd->btk", queries, candidates, preferred_element_type=jnp.float32
        )
        logits = adjusted(logits, places, amounts)
        highest = logits.max(-1, keepdims=True)
        powers = jnp.exp(logits - highest)
        sums = powers.sum(-1, keepdims=True)
        powers = powers.astype(candidates.dtype)
        share = (weights[..., None] / sums).astype(candidates.dtype)
        # the products are scaled and not the powers, of which there are K / D times as many
        grad_queries = share * jnp.einsum("btk,kd->btd", powers, candidates)
        # [D, K], as [K, D] would have the powers transposed
        grad_candidates += jnp.einsum(
            "btd,btk->dk", share * queries, powers, preferred_element_type=jnp.float32
        )
        grad_amounts = None
        if amounts is not None:
            grad_amounts = (share * jnp.take_along_axis(powers, places, -1)).astype(amounts.dtype)
        log_z = (highest + jnp.log(sums))[..., 0]
        gradients = grad_queries.astype(queries.dtype), grad_amounts
        # a sum of each row, as the rows may be on several devices
        return grad_candidates, ((log_z * weights).sum(-1), gradients)

    grad_candidates, (log_z, gradients) = jax.lax.scan(
        one_block,
        jnp.zeros(candidates.shape[::-1]),
        _cut((queries, weights, places, amounts), block),
    )
    grad_queries, grad_amounts = jax.tree.map(
        lambda blocks, whole: jnp.moveaxis(blocks, 0, 1).reshape(whole.shape),
        gradients,
        (queries, amounts),
    )
    return log_z.sum(), (grad_queries, grad_candidates.T.astype(candidates.dtype), grad_amounts)


def _scale_gradients(block, gradients, cotangent):
    scaled = jax.tree.map(lambda g: g * cotangent.astype(g.dtype), gradients)
    return (*scaled, None, None, None)


_weighted_log_z.defvjp(_log_z_and_gradients, _scale_gradients)


def positions_at_a_time(candidates: int, logits: int) -> int:
    """The `block` that holds so many logits, and never so few that it is the candidates' vectors
    that are read and written most."""
    return max(logits // candidates, MIN_BLOCK)


def _cut(arrays: tuple[Array | None, ...], block: int) -> tuple[Array | None, ...]:
    """[B, T, ...] arrays as blocks [n, B, t, ...] of about `block` positions."""
    rows, slots = jax.tree.leaves(arrays)[0].shape[:2]
    width = _largest_divisor(slots, max(1, block // rows))
    return jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(rows, slots // width, width, *x.shape[2:]), 1, 0), arrays
    )


def weighted_mean(
    values: Float[Array, "*shape"], weights: Float[Array, "*shape"]
) -> Float[Array, ""]:
    """Sum of weighted values over the sum of weights; 0 if all weights are 0."""
    total = weights.sum()
    return jnp.where(total > 0, (values * weights).sum() / jnp.maximum(total, 1e-9), 0.0)


def _largest_divisor(number: int, limit: int) -> int:
    return next(d for d in range(min(number, limit), 0, -1) if number % d == 0)
