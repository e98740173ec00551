"""Rolls a decoder out: draws an item, reads it as if it had happened, and goes on."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt32

from jaxrec.inference.forecast_candidates import Candidates
from jaxrec.models.sequence.decoder import Decoder
from jaxrec.types import NEG_INF

QUANTILES = (0.1, 0.5, 0.9)


class Weights(NamedTuple):
    """Shares of interest at every step; 10, 50 and 90 % quantiles over the roll-outs."""

    mean: Float[Array | np.ndarray, "U steps P"]
    low: Float[Array | np.ndarray, "U steps P"]
    median: Float[Array | np.ndarray, "U steps P"]
    high: Float[Array | np.ndarray, "U steps P"]


@partial(jax.jit, static_argnames=("steps", "samples"))
def roll_out(
    decoder: Decoder,
    users: Float[Array | np.ndarray, "U F"],
    scale: Float[Array, ""] | float,
    followed: Sequence[tuple[Candidates, Float[Array | np.ndarray, "U P F"]]],
    keys: UInt32[Array | np.ndarray, " U"],
    *,
    steps: int,
    samples: int,
) -> tuple[Weights, ...]:
    """The weights of items, and of nodes of other types, for the next events of users.

    Args:
        scale: of the scores: the calibrated inverse temperature.
        followed: candidates and their vectors, first those of items.
        keys: seeds of the users' draws.
        samples: roll-outs of a user; 0: one, which reads the expected item in place of a drawn one.
    """

    def of_user(user, followed, key):
        items, *others = followed
        moved, added = _roll_out_user(decoder, user, scale, items, key, steps, samples)
        shares = [_log_shares(items, moved, added), *(_log_shares(n, moved) for n in others)]
        return tuple(_summary(jnp.exp(of)) for of in shares)

    return jax.vmap(of_user)(jnp.asarray(users), followed, jnp.asarray(keys))


def _roll_out_user(
    decoder: Decoder,
    user: Float[Array, " F"],
    scale: Float[Array, ""] | float,
    items: tuple[Candidates, Float[Array, "P F"]],
    key: UInt32[Array, ""],
    steps: int,
    samples: int,
) -> tuple[Float[Array, "steps samples F"], Float[Array, "steps samples P"]]:
    """How far the scaled user vector has moved from that of now, and what is added to the scores
    of the items, at every step of every roll-out."""
    module, (candidates, vectors) = decoder.merge(), items
    further = candidates.further
    users = jnp.tile(user, (max(samples, 1), 1))
    # draws belong to the items, so that their order does not matter
    item_keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(key)))(candidates.rows)

    def step(carry, number):
        moved, state, near, left_out = carry
        changes = [
            part - jnp.asarray(of.now)[None]
            for part, of in zip(near, further.neighbours, strict=True)
        ]
        added = sum(changes, left_out)
        log_shares = _log_shares(items, moved, added)
        if samples:
            keys = jax.vmap(lambda item_key: jax.random.fold_in(item_key, number))(item_keys)
            draws = jax.vmap(lambda draw: jax.random.gumbel(draw, (samples,)))(keys)
            read = jax.nn.one_hot(jnp.argmax(log_shares + draws.T, -1), len(vectors))
        else:
            read = jax.nn.softmax(log_shares)
        near = [
            of.decay * part + read @ of.by_event
            for part, of in zip(near, further.neighbours, strict=True)
        ]
        if further.are_masked:
            left_out += jnp.maximum(jnp.log1p(-read), NEG_INF)
        after, state = module.read(users, (read @ vectors)[:, None], state)
        return (scale * (after[:, 0] - users), state, near, left_out), (moved, added)

    none = jnp.zeros((len(users), len(vectors)))
    near = [none + jnp.asarray(of.now)[None] for of in further.neighbours]
    first = (jnp.zeros_like(users), module.start(users), near, none)
    return jax.lax.scan(step, first, jnp.arange(steps))[1]


def _log_shares(
    followed: tuple[Candidates, Float[Array, "P F"]],
    moved: Float[Array, "*shape F"],
    added: Float[Array, "*shape P"] | float = 0.0,
) -> Float[Array, "*shape P"]:
    """Log of the share of every candidate in the interest of a user whose vector has moved.

    Args:
        moved: how far the scaled vector has moved.
        added: to the scores.
    """
    candidates, vectors = followed
    changes = moved @ vectors.T + added
    scores = changes + jnp.broadcast_to(candidates.scores, changes.shape)
    log_z = jnp.logaddexp(jax.nn.logsumexp(scores, -1, keepdims=True), candidates.rest)
    return scores - log_z


def _summary(shares: Float[Array, "steps samples P"]) -> Weights:
    return Weights(shares.mean(1), *jnp.quantile(shares, jnp.array(QUANTILES), axis=1))
