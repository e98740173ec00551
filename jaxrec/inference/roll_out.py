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


class RollOuts(NamedTuple):
    """How to roll out.

    Attributes:
        steps: further events.
        samples: roll-outs of a user; 0: one, which reads the expected item in place of a drawn one.
        read_once: whether an item that a roll-out has read is left out afterwards.
    """

    steps: int
    samples: int
    read_once: bool = False


@partial(jax.jit, static_argnames="options")
def roll_out(
    decoder: Decoder,
    users: Float[Array | np.ndarray, "U F"],
    scale: Float[Array, ""] | float,
    followed: Sequence[tuple[Candidates, Float[Array | np.ndarray, "U P F"]]],
    keys: UInt32[Array | np.ndarray, " U"],
    options: RollOuts,
) -> tuple[Weights, ...]:
    """The weights of items, and of nodes of other types, for the next events of users.

    Args:
        scale: of the scores: the calibrated inverse temperature.
        followed: candidates and their vectors, first those of items.
        keys: seeds of the users' draws.
    """

    def of_user(user, followed, key):
        items, *others = followed
        moved, left_out = _roll_out_user(decoder, user, scale, items, key, options)
        shares = [_log_shares(items, moved, left_out), *(_log_shares(n, moved) for n in others)]
        return tuple(_summary(jnp.exp(of)) for of in shares)

    return jax.vmap(of_user)(jnp.asarray(users), followed, jnp.asarray(keys))


def _roll_out_user(
    decoder: Decoder,
    user: Float[Array, " F"],
    scale: Float[Array, ""] | float,
    items: tuple[Candidates, Float[Array, "P F"]],
    key: UInt32[Array, ""],
    options: RollOuts,
) -> tuple[Float[Array, "steps samples F"], Float[Array, "steps samples P"]]:
    """How far the scaled user vector has moved from that of now, and what is added to the scores
    of the items, at every step of every roll-out."""
    module, (candidates, vectors) = decoder.merge(), items
    users = jnp.tile(user, (max(options.samples, 1), 1))
    # draws belong to the items, so that their order does not matter
    item_keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(key)))(candidates.rows)

    def step(carry, number):
        moved, state, left_out = carry
        log_shares = _log_shares(items, moved, left_out)
        if options.samples:
            keys = jax.vmap(lambda item_key: jax.random.fold_in(item_key, number))(item_keys)
            draws = jax.vmap(lambda draw: jax.random.gumbel(draw, (options.samples,)))(keys)
            read = jax.nn.one_hot(jnp.argmax(log_shares + draws.T, -1), len(vectors))
        else:
            read = jax.nn.softmax(log_shares)
        after, state = module.read(users, (read @ vectors)[:, None], state)
        later = left_out + jnp.maximum(jnp.log1p(-read), NEG_INF) if options.read_once else left_out
        return (scale * (after[:, 0] - users), state, later), (moved, left_out)

    none = jnp.zeros((len(users), len(vectors)))
    first = (jnp.zeros_like(users), module.start(users), none)
    return jax.lax.scan(step, first, jnp.arange(options.steps))[1]


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
