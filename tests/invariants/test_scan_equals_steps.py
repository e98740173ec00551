"""Scan: scanning a whole history equals updating the state event by event."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.encoders import assert_states_equal, random_events
from helpers.encoding import bundled, one_by_one
from helpers.graph import WIDTH

from jaxrec.inference.encoding import encode_queries
from jaxrec.types import ANY_EVENT_TYPE


@pytest.fixture(scope="module")
def scan(sequence):
    """One function for all tests, so that they share what it compiles."""
    return jax.jit(sequence.scan)


@pytest.mark.parametrize("length", [1, 2, 17])
@pytest.mark.parametrize("padding", [0, 3])
def test_a_scan_equals_steps_one_by_one(sequence, scan, length, padding):
    events = random_events(2, length + padding)
    expected = sequence.initial_state(2)
    expected_outputs = []
    for step in range(length):
        output, expected = scan(expected, events[:, step : step + 1])
        expected_outputs.append(output)
    valid = jnp.tile(jnp.arange(length + padding)[None] < length, (2, 1))
    outputs, state = scan(sequence.initial_state(2), events, valid=valid)
    assert outputs.shape == (2, length + padding, 2 * WIDTH)
    assert_states_equal(state, expected)
    # outputs are sums of terms near 10
    np.testing.assert_allclose(
        outputs[:, :length], jnp.concatenate(expected_outputs, 1), rtol=1e-5, atol=1e-4
    )
    np.testing.assert_allclose(sequence.last_output(state), outputs[:, length - 1], atol=1e-5)


def test_rows_of_any_length_are_scanned_together(sequence, scan):
    """Row 0 has no event in the second chunk, row 1 some, row 2 all; row 3 never has one."""
    lengths = np.array([2, 5, 6, 0])
    events = random_events(4, 6)
    state = sequence.initial_state(4)
    for chunk in (np.arange(0, 3), np.arange(3, 6)):
        valid = jnp.asarray(chunk[None] < lengths[:, None])
        _, state = scan(state, events[:, chunk], valid=valid)
    for row, length in enumerate(lengths):
        expected = sequence.initial_state(1)
        if length:
            _, expected = scan(expected, events[row : row + 1, :length])
        assert_states_equal(jax.tree.map(lambda part, r=row: part[r : r + 1], state), expected)


def test_a_carried_state_continues_a_scan(sequence, scan):
    """A history in chunks, longer than the window of attention; a sequence starts in the middle."""
    sizes, length = (5, 1, 11), 17
    events = random_events(2, length)
    starts = jnp.zeros((2, length), bool).at[1, 7].set(True)
    expected, last = scan(sequence.initial_state(2), events, starts)
    state, outputs = sequence.initial_state(2), []
    for end, size in zip(np.cumsum(sizes), sizes, strict=True):
        part = slice(end - size, end)
        output, state = scan(state, events[:, part], starts[:, part])
        outputs.append(output)
    np.testing.assert_allclose(jnp.concatenate(outputs, 1), expected, rtol=1e-5, atol=1e-4)
    assert_states_equal(state, last)


def test_steps_without_events_leave_the_state_alone(sequence, scan):
    _, state = scan(sequence.initial_state(2), random_events(2, 6))
    _, after = scan(state, random_events(2, 3), valid=jnp.zeros((2, 3), bool))
    for part, expected in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(part, expected)


@pytest.mark.parametrize("target_event_type", [ANY_EVENT_TYPE, 1])
def test_user_vectors_equal_one_user_and_one_event_at_a_time(
    recommender, items, log, queries, target_event_type
):
    vectors = encode_queries(
        bundled(recommender), items, log, queries, users=2, target_event_type=target_event_type
    )
    first_events = log.offsets[queries.users]
    expected = one_by_one(recommender, items, log, queries, first_events, target_event_type)
    np.testing.assert_allclose(vectors, expected, atol=1e-4)
