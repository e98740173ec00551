import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrec.models.layers import dropout, unit_norm
from jaxrec.models.sequence.lstm import LSTM, LSTMEncoder

WIDTH, BLOCKS, TRACES = 4, 2, 3


@pytest.fixture(scope="module")
def encoder():
    """With memory that count, as they do after some training."""
    made = LSTMEncoder(WIDTH, BLOCKS, 0.5, nnx.Rngs(0), num_decays=TRACES)
    memory = made.memory
    assert memory is not None
    for number, weights in enumerate((memory.gates.kernel, memory.weights)):
        weights[...] = jax.random.normal(jax.random.key(number), weights.shape)
    return made


def random_events(rows: int, slots: int, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (rows, slots, WIDTH))


def assert_states_equal(state, expected):
    for part, expected_part in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(part, expected_part, atol=1e-5)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_a_slot_equals_a_hand_written_cell():
    lstm = LSTM(WIDTH, nnx.Rngs(0))
    bias = np.asarray(nnx.state(lstm)["input"]["bias"][...])
    random = np.random.default_rng(0)
    x, hidden, cell = random.normal(size=(3, 2, WIDTH)).astype(np.float32)
    gates = {}
    for number, name in enumerate(["input", "forget", "candidate", "output"]):
        columns = slice(number * WIDTH, (number + 1) * WIDTH)
        gates[name] = (
            x @ np.asarray(lstm.input.kernel[...])[:, columns]
            + bias[columns]
            + hidden @ np.asarray(lstm.recurrent[...])[:, columns]
        )
    expected_cell = sigmoid(gates["forget"]) * cell
    expected_cell += sigmoid(gates["input"]) * np.tanh(gates["candidate"])
    expected_hidden = sigmoid(gates["output"]) * np.tanh(expected_cell)
    outputs, new_hidden, new_cell = lstm.scan(
        jnp.asarray(x)[:, None],
        jnp.zeros((2, 1), bool),
        None,
        jnp.asarray(hidden),
        jnp.asarray(cell),
    )
    np.testing.assert_array_equal(outputs[:, 0], new_hidden)
    np.testing.assert_allclose(new_cell, expected_cell, atol=1e-5)
    np.testing.assert_allclose(new_hidden, expected_hidden, atol=1e-5)


def test_the_forget_gate_alone_begins_open():
    bias = nnx.state(LSTM(WIDTH, nnx.Rngs(0)))["input"]["bias"][...]
    np.testing.assert_array_equal(bias, np.repeat([0, 1, 0, 0], WIDTH))


def test_traces_are_sums_that_fade(encoder):
    """Slot by slot, from a state that is not empty, with a sequence that starts on the way."""
    memory = encoder.memory
    events = random_events(1, 5)
    starts = jnp.zeros((1, 5), bool).at[0, 3].set(True)
    before = jax.random.normal(jax.random.key(2), (1, TRACES, WIDTH))
    readout, after = memory.scan(events, starts, None, before)
    keep, expected = sigmoid(np.asarray(memory.decay_logits[...])), np.asarray(before[0])
    for slot, event in enumerate(np.asarray(events[0])):
        gates = 2 * sigmoid(event @ np.asarray(memory.gates.kernel[...]))
        expected = np.where(starts[0, slot], 0, keep[:, None] * expected)
        expected = expected + gates[:, None] * event
        total = (np.asarray(memory.weights[...]) * expected).sum(0)
        np.testing.assert_allclose(readout[0, slot], total, atol=1e-5)
    np.testing.assert_allclose(after[0], expected, atol=1e-5)


def test_traces_begin_by_recalling_nothing():
    with_traces, without = (
        LSTMEncoder(WIDTH, BLOCKS, 0.5, nnx.Rngs(0), num_decays=n) for n in (TRACES, 0)
    )
    outputs = [e.fold(e.initial_state(2), random_events(2, 3))[0] for e in (with_traces, without)]
    np.testing.assert_array_equal(*outputs)


def test_a_future_event_never_moves_an_earlier_output(encoder):
    slots = 6
    state = encoder.initial_state(1)
    jacobian = jax.jacobian(lambda events: encoder.fold(state, events)[0][0])(
        random_events(1, slots)
    )
    influence = np.abs(jacobian[:, :, 0]).max((1, 3))  # [output slot, event slot]
    assert (influence[np.triu_indices(slots, 1)] == 0).all()
    assert (influence[np.tril_indices(slots)] > 1e-6).all()


def test_packed_sequences_equal_one_sequence_a_row(encoder):
    lengths = [3, 1, 4]
    begins = np.cumsum([0, *lengths[:-1]])
    events = random_events(1, 10)
    starts = jnp.zeros((1, 10), bool).at[0, begins].set(True)
    packed, _ = encoder.fold(encoder.initial_state(1), events, starts=starts)
    for begin, length in zip(begins, lengths, strict=True):
        sequence = slice(begin, begin + length)
        alone, _ = encoder.fold(encoder.initial_state(1), events[:, sequence])
        np.testing.assert_allclose(packed[:, sequence], alone, atol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 17])
@pytest.mark.parametrize("padding", [0, 3])
def test_folding_at_once_equals_folding_one_by_one(encoder, length, padding):
    events = random_events(2, length + padding)
    expected = encoder.initial_state(2)
    expected_outputs = []
    for slot in range(length):
        output, expected = encoder.fold(expected, events[:, slot : slot + 1])
        expected_outputs.append(output)
    valid = jnp.tile(jnp.arange(length + padding)[None] < length, (2, 1))
    outputs, state = encoder.fold(encoder.initial_state(2), events, valid=valid)
    assert_states_equal(state, expected)
    np.testing.assert_allclose(outputs[:, :length], jnp.concatenate(expected_outputs, 1), atol=1e-5)


def test_rows_of_any_length_are_folded_together(encoder):
    """Row 0 has no event in the second chunk, row 1 some, row 2 all; row 3 never has one."""
    lengths = np.array([2, 5, 6, 0])
    events = random_events(4, 6)
    state = encoder.initial_state(4)
    for chunk in (np.arange(0, 3), np.arange(3, 6)):
        valid = jnp.asarray(chunk[None] < lengths[:, None])
        _, state = encoder.fold(state, events[:, chunk], valid=valid)
    for row, length in enumerate(lengths):
        expected = encoder.initial_state(1)
        if length:
            _, expected = encoder.fold(expected, events[row : row + 1, :length])
        assert_states_equal(jax.tree.map(lambda part, r=row: part[r : r + 1], state), expected)


def test_initial_state_is_empty_but_for_a_learned_output(encoder):
    state = encoder.initial_state(3)
    assert state.hidden.shape == state.cell.shape == (3, BLOCKS, WIDTH)
    assert not state.hidden.any() and not state.cell.any()
    assert state.memory.shape == (3, TRACES, WIDTH) and not state.memory.any()
    interest, readout = np.split(state.output, 2, axis=1)
    np.testing.assert_array_equal(interest, np.tile(encoder.initial_output[...], (3, 1)))
    assert interest.any() and not readout.any()


def test_fold_drops_out_only_with_a_key(encoder):
    events, state = random_events(1, 5), encoder.initial_state(1)
    plain, again = (encoder.fold(state, events)[0] for _ in range(2))
    noisy = encoder.fold(state, events, key=jax.random.key(0))[0]
    np.testing.assert_array_equal(plain, again)
    assert jnp.abs(plain - noisy).max() > 1e-3


def test_dropout_zeroes_a_share_and_keeps_the_mean():
    dropped = np.asarray(dropout(jnp.ones((100, 100)), 0.25, jax.random.key(0)))
    np.testing.assert_allclose(np.unique(dropped), np.array([0, 4 / 3]), rtol=1e-6)
    assert abs(dropped.mean() - 1) < 0.03


def test_unit_norm_keeps_direction_and_the_zero_vector():
    vectors = unit_norm(jnp.array([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(vectors, np.array([[0.6, 0.8], [0, 0]]), atol=1e-6)
