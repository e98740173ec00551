"""A small classification problem, and the dense loss."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxrec.training.losses.full_softmax import FullSoftmax
from jaxrec.types import NEG_INF

BATCH_SIZE, LENGTH, HIDDEN_SIZE, CANDIDATES = 2, 6, 3, 5
VALID = jnp.array([False, True, True, False, True])


def problem() -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Queries, candidates, targets and weights; one target is invalid, and its weight is 0."""
    random = np.random.default_rng(0)
    targets = random.choice(np.flatnonzero(VALID), (BATCH_SIZE, LENGTH))
    weights = random.uniform(0.5, 2, (BATCH_SIZE, LENGTH))
    targets[0, -1], weights[0, -1] = 0, 0
    queries = random.normal(size=(BATCH_SIZE, LENGTH, HIDDEN_SIZE))
    candidates = random.normal(size=(CANDIDATES, HIDDEN_SIZE))
    return (
        jnp.asarray(queries, jnp.float32),
        jnp.asarray(candidates, jnp.float32),
        jnp.asarray(targets, jnp.int32),
        jnp.asarray(weights, jnp.float32),
    )


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


def blocked_cross_entropy(queries, candidates, targets, weights, valid, block, adjustments=None):
    """The loss of the package with `block` positions at a time."""
    loss = FullSoftmax(block * len(candidates), min_positions=1)
    return loss(queries, candidates, targets, weights, valid, adjustments)
