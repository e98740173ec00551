"""Softmax cross entropy over all candidates, in blocks that bound the number of logits."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxrec.partitioning import (
    BY_ITEM,
    BY_USER,
    WHOLE,
    by_row,
    divisible_rows,
    local_rows,
    look_up,
    on_devices,
    shards,
    total,
)
from jaxrec.sharding import ITEMS, USERS
from jaxrec.training.losses.base import LogitAdjustments
from jaxrec.types import NEG_INF


@dataclass(frozen=True)
class FullSoftmax:
    """-log softmax(queries . candidates)[target], for a block of positions at a time.

    Products have the dtype of the queries; sums are float32. Memory is [positions of a block, K]
    for any T. Blocks are cut along T, so a batch that is sharded along B stays sharded; a block
    holds B positions at least.

    On a mesh, a device computes the logits of its rows and of its share of the candidates, and the
    devices along `items` add up what they know of log Z (Shoeybi et al., arXiv:1909.08053, section
    3). They do so once, for all blocks together: no block waits for another device. So blocks are
    read twice there, for log Z and for the gradient.
    """

    max_logits: int  # of a block, over all devices
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
        rows, length = weights.shape
        steps = self.steps_per_block(rows, length, len(candidates))
        weights = lax.stop_gradient(weights)
        no_adjustments = LogitAdjustments(jnp.zeros((*weights.shape, 0), jnp.int32), None)
        adjusted, amounts, bias = adjustments or no_adjustments
        candidates, valid = by_row(divisible_rows(candidates)), divisible_rows(valid, fill=False)
        bias = jnp.zeros(len(valid)) if bias is None else divisible_rows(lax.stop_gradient(bias))
        target_logits = jnp.sum(queries * look_up(candidates, targets), -1, dtype=jnp.float32)
        target_logits += bias[targets]
        if amounts is not None:
            target_logits += jnp.where(adjusted == targets[..., None], amounts, 0).sum(-1)
        rounded = candidates.astype(queries.dtype)
        bias = jnp.where(valid, bias, NEG_INF)
        log_z = _weighted_log_z(queries, rounded, amounts, weights, bias, adjusted, steps)
        return log_z - (target_logits * weights).sum()

    def steps_per_block(self, rows: int, length: int, num_candidates: int) -> int:
        """Time steps whose logits are in memory at a time; a divisor of T."""
        limit = max(1, self.positions_per_block(num_candidates) // rows)
        return next(t for t in range(min(length, limit), 0, -1) if length % t == 0)

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
    steps: int,
) -> Float[Array, ""]:
    """The weighted sum of log Z = log sum of exp(queries . candidates).

    The weights are known in the forward pass, so each block forms its gradient while its logits
    are in memory, and the backward pass recomputes nothing (arXiv:2410.10989).
    """
    return _log_z_and_gradients(queries, candidates, amounts, weights, bias, adjusted, steps)[0]


def _log_z_and_gradients(queries, candidates, amounts, weights, bias, adjusted, steps):
    rows = WHOLE if len(queries) % shards(USERS) else BY_USER
    return on_devices(
        partial(_on_device, steps=steps, rows_apart=rows == BY_USER),
        (rows, BY_ITEM, BY_ITEM),
        (WHOLE, (rows, BY_ITEM, rows)),
    )((queries, weights, adjusted, amounts), candidates, bias)


def _on_device(batch, candidates, bias, *, steps, rows_apart):
    """The result, from the rows of the batch and the candidates of one device."""
    queries, weights, adjusted, amounts = batch
    blocks = _cut((queries, weights, local_rows(adjusted, candidates), amounts), steps)

    def logits_of(queries, adjusted, amounts):
        logits = bias[None, None] + jnp.einsum(
            "btd,kd->btk", queries, candidates, preferred_element_type=jnp.float32
        )
        return _adjust(logits, adjusted, amounts)

    def highest_and_sums(_, inputs):
        queries, _, adjusted, amounts = inputs
        logits = logits_of(queries, adjusted, amounts)
        highest = logits.max(-1, keepdims=True)
        return None, (highest, jnp.exp(logits - highest).sum(-1, keepdims=True))

    def one_block(grad_candidates, inputs):
        (queries, weights, adjusted, amounts), of_all = inputs
        logits = logits_of(queries, adjusted, amounts)
        highest = logits.max(-1, keepdims=True) if of_all is None else of_all[0]
        powers = jnp.exp(logits - highest)
        sums = powers.sum(-1, keepdims=True) if of_all is None else of_all[1]
        powers = powers.astype(candidates.dtype)
        scale = (weights[..., None] / sums).astype(candidates.dtype)
        # scale the products, because there are K / D times as many powers
        grad_queries = scale * jnp.einsum("btk,kd->btd", powers, candidates)
        # [D, K], because [K, D] would transpose the powers
        grad_candidates += jnp.einsum(
            "btd,btk->dk", scale * queries, powers, preferred_element_type=jnp.float32
        )
        grad_amounts = None
        if amounts is not None:
            own = jnp.take_along_axis(powers, adjusted, -1, mode="fill", fill_value=0)
            grad_amounts = (scale * own).astype(amounts.dtype)
        log_z = (highest + jnp.log(sums))[..., 0]
        gradients = grad_queries.astype(queries.dtype), grad_amounts
        return grad_candidates, ((log_z * weights).sum(-1), gradients)

    of_all = None
    if shards(ITEMS) > 1:
        _, (highest, sums) = lax.scan(highest_and_sums, None, blocks)
        peak = lax.pmax(highest, ITEMS)
        of_all = peak, lax.psum(sums * jnp.exp(highest - peak), ITEMS)
    zeros = jnp.zeros(candidates.shape[::-1])
    grad_candidates, (log_z, gradients) = lax.scan(one_block, zeros, (blocks, of_all))
    grad_queries, grad_amounts = jax.tree.map(
        lambda blocks, whole: total(jnp.moveaxis(blocks, 0, 1).reshape(whole.shape), ITEMS),
        gradients,
        (queries, amounts),
    )
    log_z, grad_candidates = log_z.sum(), grad_candidates.T
    if rows_apart:
        log_z, grad_candidates = total((log_z, grad_candidates), USERS)
    return log_z, (grad_queries, grad_candidates.astype(candidates.dtype), grad_amounts)


@jax.vmap
@jax.vmap
def _adjust(logits, adjusted, amounts):
    entries = logits.at[adjusted]
    return entries.set(NEG_INF) if amounts is None else entries.add(amounts)


def _scale_gradients(steps, gradients, cotangent):
    scaled = jax.tree.map(lambda g: g * cotangent.astype(g.dtype), gradients)
    return (*scaled, None, None, None)


_weighted_log_z.defvjp(_log_z_and_gradients, _scale_gradients)


def _cut(arrays: tuple[Array | None, ...], steps: int) -> tuple[Array | None, ...]:
    """[B, T, ...] arrays as blocks [n, B, t, ...] of some time steps each."""

    def cut(x: Array) -> Array:
        rows, length, *rest = x.shape
        return jnp.moveaxis(x.reshape(rows, length // steps, steps, *rest), 1, 0)

    return jax.tree.map(cut, arrays)
