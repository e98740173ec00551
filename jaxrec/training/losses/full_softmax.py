"""Softmax cross entropy over all candidates, in blocks that bound the number of logits."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrec.sharding import row_shards, sums_by_shard
from jaxrec.training.losses.base import LogitAdjustments
from jaxrec.types import NEG_INF


@dataclass(frozen=True)
class FullSoftmax:
    """-log softmax(queries . candidates)[target], for a block of positions at a time.

    Products have the dtype of the queries; sums are float32. Memory is [positions of a block, K]
    for any T. Blocks are cut along T, so a batch that is sharded along B stays sharded; a block
    holds B positions at least.
    """

    max_logits: int  # of a block
    min_positions: int = 256  # of a block: fewer would mostly read and write candidates

    def __call__(
        self,
        queries: Float[Array, "B T D"],
        candidates: Float[Array, "K D"],
        targets: Int[Array, "B T"],
        weights: Float[Array, "B T"],
        valid: Bool[Array, " K"],
        adjustments: LogitAdjustments | None = None,
    ) -> Float[Array, ""]:
        """The weighted sum over all positions and the valid candidates; see `Loss`."""
        block = self.positions_per_block(len(candidates))
        weights = jax.lax.stop_gradient(weights)
        no_adjustments = LogitAdjustments(jnp.zeros((*weights.shape, 0), jnp.int32), None)
        adjusted, amounts, bias = adjustments or no_adjustments
        bias = jnp.zeros(len(candidates)) if bias is None else jax.lax.stop_gradient(bias)
        target_logits = jnp.sum(queries * candidates[targets], -1, dtype=jnp.float32)
        target_logits += bias[targets]
        if amounts is not None:
            target_logits += jnp.where(adjusted == targets[..., None], amounts, 0).sum(-1)
        rounded = candidates.astype(queries.dtype)
        bias = jnp.where(valid, bias, NEG_INF)
        log_z = _weighted_log_z(queries, rounded, amounts, weights, bias, adjusted, block)
        return log_z - (target_logits * weights).sum()

    def positions_per_block(self, num_candidates: int) -> int:
        """Positions whose logits are in memory at a time."""
        return max(self.max_logits // num_candidates, self.min_positions)


@partial(jax.custom_vjp, nondiff_argnums=(6,))
def _weighted_log_z(
    queries: Float[Array, "B T D"],
    candidates: Float[Array, "K D"],
    amounts: Float[Array, "B T X"] | None,
    weights: Float[Array, "B T"],
    bias: Float[Array, " K"],
    adjusted: Int[Array, "B T X"],
    block: int,
) -> Float[Array, ""]:
    """The weighted sum of log Z = log sum of exp(queries . candidates).

    The weights are known in the forward pass, so each block forms its gradient while its logits
    are in memory, and the backward pass recomputes nothing (arXiv:2410.10989).
    """
    return _log_z_and_gradients(queries, candidates, amounts, weights, bias, adjusted, block)[0]


def _log_z_and_gradients(queries, candidates, amounts, weights, bias, adjusted, block):
    rows = len(queries)
    shards = row_shards(rows)

    def by_shard(part: Float[Array, "B t n"]) -> Float[Array, "S B/S t n"]:
        return part.reshape(shards, rows // shards, *part.shape[1:])

    @jax.vmap
    @jax.vmap
    def adjust(logits, adjusted, amounts):
        entries = logits.at[adjusted]
        return entries.set(NEG_INF) if amounts is None else entries.add(amounts)

    def one_block(grad_candidates, inputs):
        queries, weights, adjusted, amounts = inputs
        logits = bias[None, None] + jnp.einsum(
            "btd,kd->btk", queries, candidates, preferred_element_type=jnp.float32
        )
        logits = adjust(logits, adjusted, amounts)
        highest = logits.max(-1, keepdims=True)
        powers = jnp.exp(logits - highest)
        sums = powers.sum(-1, keepdims=True)
        powers = powers.astype(candidates.dtype)
        scale = (weights[..., None] / sums).astype(candidates.dtype)
        # scale the products, because there are K / D times as many powers
        grad_queries = scale * jnp.einsum("btk,kd->btd", powers, candidates)
        # [D, K], because [K, D] would transpose the powers
        grad_candidates += jnp.einsum(
            "sbtd,sbtk->sdk",
            by_shard(scale * queries),
            by_shard(powers),
            preferred_element_type=jnp.float32,
        )
        grad_amounts = None
        if amounts is not None:
            grad_amounts = (scale * jnp.take_along_axis(powers, adjusted, -1)).astype(amounts.dtype)
        log_z = (highest + jnp.log(sums))[..., 0]
        gradients = grad_queries.astype(queries.dtype), grad_amounts
        # one sum per batch row, because the rows may lie on several devices
        return grad_candidates, ((log_z * weights).sum(-1), gradients)

    grad_candidates, (log_z, gradients) = jax.lax.scan(
        one_block,
        sums_by_shard(shards, *candidates.shape[::-1]),
        _cut((queries, weights, adjusted, amounts), block),
    )
    grad_queries, grad_amounts = jax.tree.map(
        lambda blocks, whole: jnp.moveaxis(blocks, 0, 1).reshape(whole.shape),
        gradients,
        (queries, amounts),
    )
    grad_candidates = grad_candidates.sum(0)
    return log_z.sum(), (grad_queries, grad_candidates.T.astype(candidates.dtype), grad_amounts)


def _scale_gradients(block, gradients, cotangent):
    scaled = jax.tree.map(lambda g: g * cotangent.astype(g.dtype), gradients)
    return (*scaled, None, None, None)


_weighted_log_z.defvjp(_log_z_and_gradients, _scale_gradients)


def _cut(arrays: tuple[Array | None, ...], block: int) -> tuple[Array | None, ...]:
    """[B, T, ...] arrays as blocks [n, B, t, ...] of about `block` positions each."""
    batch_size, length = jax.tree.leaves(arrays)[0].shape[:2]
    limit = max(1, block // batch_size)
    steps = next(t for t in range(min(length, limit), 0, -1) if length % t == 0)
    return jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(batch_size, length // steps, steps, *x.shape[2:]), 1, 0),
        arrays,
    )
