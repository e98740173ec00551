from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.encoders import random_events
from helpers.graph import WIDTH

from jaxrec.config import ModelConfig
from jaxrec.models.sequence.blocks import Masks, StackedEncoder
from jaxrec.models.sequence.lstm import LSTM, BareLSTM, LSTMBlock, LSTMState

LAYERS, DECAYS = 2, 3
CONFIG = ModelConfig(hidden_size=WIDTH, num_layers=LAYERS, dropout=0.5, memory_decays=DECAYS)


@pytest.fixture(scope="module")
def encoder():
    """An encoder whose memory has an effect, as after some training."""
    made = StackedEncoder(LSTMBlock, CONFIG, nnx.Rngs(0))
    memory = made.memory
    assert memory is not None
    for number, weights in enumerate((memory.gates.kernel, memory.weights)):
        weights[...] = jax.random.normal(jax.random.key(number), weights.shape)
    return made


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_a_step_equals_a_hand_written_cell():
    lstm = LSTM(WIDTH, nnx.Rngs(0))
    bias = np.asarray(nnx.state(lstm)["input"]["bias"][...])
    random = np.random.default_rng(0)
    x, hidden, cell = random.normal(size=(3, 2, WIDTH)).astype(np.float32)
    gates = {}
    for number, name in enumerate(["input", "forget", "cell", "output"]):
        columns = slice(number * WIDTH, (number + 1) * WIDTH)
        gates[name] = (
            x @ np.asarray(lstm.input.kernel[...])[:, columns]
            + bias[columns]
            + hidden @ np.asarray(lstm.recurrent[...])[:, columns]
        )
    expected_cell = sigmoid(gates["forget"]) * cell
    expected_cell += sigmoid(gates["input"]) * np.tanh(gates["cell"])
    expected_hidden = sigmoid(gates["output"]) * np.tanh(expected_cell)
    outputs, (new_hidden, new_cell) = lstm.scan(
        jnp.asarray(x)[:, None],
        Masks(jnp.zeros((1, 2), bool), None),
        (jnp.asarray(hidden), jnp.asarray(cell)),
    )
    np.testing.assert_array_equal(outputs[:, 0], new_hidden)
    np.testing.assert_allclose(new_cell, expected_cell, atol=1e-5)
    np.testing.assert_allclose(new_hidden, expected_hidden, atol=1e-5)


def test_the_forget_gate_alone_begins_open():
    bias = nnx.state(LSTM(WIDTH, nnx.Rngs(0)))["input"]["bias"][...]
    np.testing.assert_array_equal(bias, np.repeat([0, 1, 0, 0], WIDTH))


def test_the_memory_is_a_decayed_sum(encoder):
    """Step by step from a state that is not empty; a new sequence starts at step 3."""
    memory = encoder.memory
    events = random_events(1, 5)
    starts = jnp.zeros((1, 5), bool).at[0, 3].set(True)
    before = jax.random.normal(jax.random.key(2), (1, DECAYS, WIDTH))
    readout, after = memory.scan(events, starts, None, before)
    decay, expected = sigmoid(np.asarray(memory.decay_logits[...])), np.asarray(before[0])
    for step, event in enumerate(np.asarray(events[0])):
        gates = 2 * sigmoid(event @ np.asarray(memory.gates.kernel[...]))
        expected = np.where(starts[0, step], 0, decay[:, None] * expected)
        expected = expected + gates[:, None] * event
        total = (np.asarray(memory.weights[...]) * expected).sum(0)
        np.testing.assert_allclose(readout[0, step], total, atol=1e-5)
    np.testing.assert_allclose(after[0], expected, atol=1e-5)


def test_an_untrained_memory_changes_nothing():
    configs = (replace(CONFIG, memory_decays=number) for number in (DECAYS, 0))
    with_memory, without = (StackedEncoder(LSTMBlock, c, nnx.Rngs(0)) for c in configs)
    outputs = [e.scan(e.initial_state(2), random_events(2, 3))[0] for e in (with_memory, without)]
    np.testing.assert_array_equal(*outputs)


def test_initial_state_is_empty_but_for_a_learned_output(encoder):
    state = encoder.initial_state(3)
    hidden, cell = state.layers
    assert hidden.shape == cell.shape == (3, LAYERS, WIDTH)
    assert not hidden.any() and not cell.any()
    assert state.memory.shape == (3, DECAYS, WIDTH) and not state.memory.any()
    interest, readout = np.split(state.output, 2, axis=1)
    np.testing.assert_array_equal(interest, np.tile(encoder.initial_output[...], (3, 1)))
    assert interest.any() and not readout.any()


def test_a_bare_layer_is_the_lstm_alone():
    layer, lstm = BareLSTM(WIDTH, 0.0, nnx.Rngs(0)), LSTM(WIDTH, nnx.Rngs(0))
    masks, state = Masks(jnp.zeros((3, 2), bool), None), LSTMState(*jnp.ones((2, 2, WIDTH)))
    inputs = random_events(2, 3), masks, state
    parts, expected = (jax.tree.leaves(part) for part in (layer(*inputs, None), lstm.scan(*inputs)))
    for part, expected_part in zip(parts, expected, strict=True):
        np.testing.assert_array_equal(part, expected_part)
