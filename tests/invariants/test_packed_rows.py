"""Packing: several sequences in one row give the outputs of one sequence a row."""

import jax
import jax.numpy as jnp
import numpy as np
from helpers.encoders import random_events


def test_packed_sequences_equal_one_sequence_a_row(sequence):
    scan, lengths = jax.jit(sequence.scan), [3, 1, 4]
    begins = np.cumsum([0, *lengths[:-1]])
    events = random_events(1, 10)
    starts = jnp.zeros((1, 10), bool).at[0, begins].set(True)
    packed, _ = scan(sequence.initial_state(1), events, starts=starts)
    for begin, length in zip(begins, lengths, strict=True):
        part = slice(begin, begin + length)
        alone, _ = scan(sequence.initial_state(1), events[:, part])
        np.testing.assert_allclose(packed[:, part], alone, atol=1e-5)
