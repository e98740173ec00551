import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from helpers.encoders import random_events
from helpers.graph import WIDTH

from jaxrec.models.sequence.blocks import Masks
from jaxrec.models.sequence.recurrent import GRU, RNN, Recurrence


def one_step(layer: Recurrence) -> tuple[np.ndarray, ...]:
    """A random event and hidden vector, their products by gate, and the next hidden vector."""
    x, hidden = random_events(2, 1), jax.random.normal(jax.random.key(1), (2, WIDTH))
    outputs, after = layer.scan(x, Masks(jnp.zeros((1, 2), bool), None), hidden)
    np.testing.assert_array_equal(outputs[:, 0], after)
    inputs = np.asarray(x[:, 0]) @ np.asarray(layer.input.kernel[...])
    recurrent = np.asarray(hidden) @ np.asarray(layer.recurrent[...])
    return np.asarray(hidden), inputs, recurrent, np.asarray(after)


def test_a_step_of_a_gru_equals_a_hand_written_one():
    hidden, inputs, recurrent, after = one_step(GRU(WIDTH, nnx.Rngs(0)))
    (x_reset, x_keep, x_candidate), (h_reset, h_keep, h_candidate) = (
        np.split(part, 3, axis=-1) for part in (inputs, recurrent)
    )
    reset, keep = (1 / (1 + np.exp(-part)) for part in (x_reset + h_reset, x_keep + h_keep))
    candidate = np.tanh(x_candidate + reset * h_candidate)
    np.testing.assert_allclose(after, keep * hidden + (1 - keep) * candidate, atol=1e-5)


def test_a_step_of_an_rnn_equals_a_hand_written_one():
    _, inputs, recurrent, after = one_step(RNN(WIDTH, nnx.Rngs(0)))
    np.testing.assert_allclose(after, np.tanh(inputs + recurrent), atol=1e-5)
