"""A small classification problem."""

import jax
import jax.numpy as jnp
import numpy as np

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
