"""Causality: a future event never changes an earlier state or output."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from helpers.encoders import random_events
from helpers.encoding import bundled, make_queries

from jaxrec.inference.encoding import encode_queries
from jaxrec.inference.history_rows import CHUNK
from jaxrec.models.transformer import TransformerBlock


def test_a_future_event_never_changes_an_earlier_output(sequence):
    length = 6
    state = sequence.initial_state(1)
    outputs = jax.jacobian(lambda events: sequence.scan(state, events)[0][0])
    jacobian = jax.jit(outputs)(random_events(1, length))
    influence = np.abs(jacobian[:, :, 0]).max((1, 3))  # [step of the output, step of the event]
    assert (influence[np.triu_indices(length, 1)] == 0).all()
    assert (influence[np.tril_indices(length)] > 1e-6).all()


def test_causal_pre_norm_block_has_no_gradient_from_the_future():
    length, width = 5, 8
    block = TransformerBlock(width, 2, 16, norm="pre", rngs=nnx.Rngs(0))
    causal = jnp.tril(jnp.ones((1, 1, length, length), bool))
    hidden = jax.random.normal(jax.random.key(0), (length, width))

    def outputs(hidden):  # [T], one number a position
        return jnp.sum(jnp.sin(block(hidden[None], causal)[0]), -1)

    gradient = jax.jit(jax.jacrev(outputs))(hidden)  # [T, T, D]
    depends = np.abs(gradient).max(-1) > 0
    np.testing.assert_array_equal(depends, np.tril(np.ones((length, length), bool)))


def test_events_after_a_query_do_not_change_its_vector(recommender, items, log, queries):
    longest = make_queries(log, [(2, 3), (2, 2 * CHUNK)])
    alone = make_queries(log, [(2, 3)])
    together = encode_queries(bundled(recommender), items, log, longest, users=2)
    np.testing.assert_allclose(
        encode_queries(bundled(recommender), items, log, alone, users=2)[0], together[0], atol=1e-4
    )
