"""What turns a softmax over a sample of the items into an estimate of that over all items.

A position knows two kinds of items. Those of its own window are in the sample for certain: the
target, the history, and what follows. They count once, as in the full softmax. Every other item j
is in the sample with a probability p_j, and counts 1 / p_j times if it is: log p_j is subtracted
from its logit (logQ correction: Bengio & Senecal 2008; Yi et al. 2019, "Sampling-bias-corrected
neural modeling"). The estimate of Z is then right on average. The target gets no correction,
because it is not drawn (arXiv:2507.09331).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrec.training.losses.base import LogitAdjustments
from jaxrec.types import NEG_INF

LARGEST_SHARE = 1 - 1e-6  # keeps the logarithm of the rest finite
SMALLEST_RATE = 1e-12


def log_probability(
    windows: Float[Array, " K"],
    in_batch: Int[Array, ""],
    in_epoch: int,
    draw: Float[Array, " K"],
    draws: int,
) -> Float[Array, " K"]:
    """log p_j: the logarithm of the probability that an item is in a sample without duplicates.

    It is the expected count of the item, as no item counts twice.

    Args:
        windows: the windows of an epoch that hold the item.
        in_batch, in_epoch: windows, without that of the position.
        draw: the probability that one random draw is this item.
        draws: the number of draws.
    """
    # windows are drawn without replacement; each that misses the item leaves fewer without it
    left = jnp.maximum(in_epoch - jnp.maximum(windows - 1, 0) / 2, 1)
    rate = -windows * jnp.log1p(-jnp.minimum(in_batch / left, LARGEST_SHARE))
    rate -= draws * jnp.log1p(-jnp.minimum(draw, LARGEST_SHARE))
    return jnp.log(-jnp.expm1(-jnp.maximum(rate, SMALLEST_RATE)))


def corrected(
    adjustments: LogitAdjustments,
    log_p: Float[Array, " K"],
    items: Int[Array, "B T"],
    targets: Int[Array, "B T"],
    starts: Bool[Array, "B T"],
) -> LogitAdjustments:
    """The adjustments with -log p for all items but those of the window of a position.

    Args:
        adjustments: with candidate 0, which cannot be predicted, where there is no adjustment.
        items, targets: positions in the sample.
        starts: the first time steps of windows.
    """
    candidates, amounts, _ = adjustments
    if amounts is None:
        amounts = jnp.where(candidates == 0, 0, NEG_INF)
    length = items.shape[1]
    window = jnp.cumsum(starts, 1)
    own, window_of = jnp.concatenate([items, targets], 1), jnp.concatenate([window, window], 1)
    equal = own[:, :, None] == own[:, None]
    equal &= window_of[:, :, None] == window_of[:, None]
    is_repeat = (equal & jnp.tri(2 * length, k=-1, dtype=bool)[None]).any(-1)
    counted = (window[:, :, None] == window_of[:, None]) & ~is_repeat[:, None]
    own = jnp.where(counted, own[:, None], 0)
    return LogitAdjustments(
        jnp.concatenate([candidates, own], -1),
        jnp.concatenate([amounts, jnp.where(own == 0, 0, log_p[own])], -1),
        -log_p,
    )


def cross_entropies(
    scores: Float[Array, "rows K"], log_p: Float[Array, " K"], valid: Bool[Array, " K"]
) -> Float[Array, "rows K"]:
    """-log softmax of every item as the target of a row; all others count 1 / p times."""
    logits = jnp.where(valid[None], scores - log_p[None], NEG_INF)
    padded = jnp.pad(logits, ((0, 0), (1, 1)), constant_values=NEG_INF)
    before = jax.lax.cumlogsumexp(padded, axis=1)[:, :-2]
    after = jax.lax.cumlogsumexp(padded, axis=1, reverse=True)[:, 2:]
    return jnp.logaddexp(jnp.logaddexp(before, after), scores) - scores
