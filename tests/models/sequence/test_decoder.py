import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.graph import randomised

from jaxrec.models.sequence.decoder import InterestDecoder, new_decoder

WIDTH, STEPS = 4, 5
USERS = jax.random.normal(jax.random.key(0), (3, WIDTH))
ITEMS = jax.random.normal(jax.random.key(1), (3, STEPS, WIDTH))


@pytest.fixture(scope="module")
def decoder():
    return randomised(InterestDecoder(WIDTH, nnx.Rngs(0)))


def test_free_running_equals_teacher_forcing_where_it_reads_the_true_items(decoder):
    taught, last = decoder.read(USERS, ITEMS, decoder.start(USERS))
    state, free = decoder.start(USERS), []
    for step in range(STEPS):
        vectors, state = decoder.read(USERS, ITEMS[:, step : step + 1], state)
        free.append(vectors[:, 0])
    np.testing.assert_allclose(jnp.stack(free, 1), taught, atol=1e-5)
    np.testing.assert_allclose(state.cell, last.cell, atol=1e-5)


def test_an_event_changes_no_vector_before_it(decoder):
    def vectors(items):
        return decoder.read(USERS[:1], items, decoder.start(USERS[:1]))[0][0]

    influence = np.abs(jax.jacobian(vectors)(ITEMS[:1])[:, :, 0]).max((1, 3))
    assert (influence[np.triu_indices(STEPS, 1)] == 0).all()
    assert (influence[np.tril_indices(STEPS)] > 0).all()


def test_an_untrained_decoder_says_that_interest_stays():
    module = new_decoder(WIDTH, STEPS, seed=0).merge()
    vectors, _ = module.read(USERS, ITEMS, module.start(USERS))
    np.testing.assert_array_equal(vectors, np.broadcast_to(USERS[:, None], vectors.shape))
