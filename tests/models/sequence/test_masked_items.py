"""The reader of masked items."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrec.config import ModelConfig
from jaxrec.errors import ConfigError
from jaxrec.models.sequence.masked_items import NO_SEQUENCE, MaskedItems, positions

WIDTH, STEPS = 8, 6
EVENTS = jax.random.normal(jax.random.key(1), (1, STEPS, WIDTH))
HIDDEN = jnp.array([[False, True, False, False, True, False]])
SEQUENCES = jnp.array([[1, 1, 1, 2, 2, NO_SEQUENCE]])


@pytest.fixture(scope="module")
def read():
    reader = MaskedItems(ModelConfig(hidden_size=WIDTH, num_layers=2), nnx.Rngs(0))
    return jax.jit(lambda events, hidden, sequences: reader(events, hidden, sequences))


def changed(read, step):
    """The steps whose outputs change with the event of a step."""
    other = EVENTS.at[0, step].set(EVENTS[0, (step + 1) % STEPS])
    difference = read(other, HIDDEN, SEQUENCES) - read(EVENTS, HIDDEN, SEQUENCES)
    return np.flatnonzero(np.abs(difference[0]).max(1) > 1e-4).tolist()


def test_no_step_reads_its_own_hidden_event(read):
    assert changed(read, 1) == changed(read, 4) == []


def test_a_step_reads_both_sides_of_its_sequence_and_nothing_else(read):
    assert changed(read, 0) == changed(read, 2) == [0, 1, 2]
    assert changed(read, 3) == [3, 4]
    assert changed(read, 5) == [5]


def test_packed_sequences_are_read_as_one_a_row(read):
    packed = read(EVENTS, HIDDEN, SEQUENCES)[0]
    second = jnp.pad(EVENTS[:, 3:5], ((0, 0), (0, 4), (0, 0)))
    hidden = jnp.pad(HIDDEN[:, 3:5], ((0, 0), (0, 4)))
    sequences = jnp.array([[1, 1, *[NO_SEQUENCE] * 4]])
    np.testing.assert_allclose(read(second, hidden, sequences)[0, :2], packed[3:5], atol=1e-5)
    assert positions(SEQUENCES).tolist() == [[0, 1, 2, 0, 1, 0]]


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ConfigError, match="heads"):
        MaskedItems(ModelConfig(hidden_size=WIDTH, sequence_heads=3), nnx.Rngs(0))
