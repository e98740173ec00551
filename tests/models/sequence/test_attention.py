import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrec.models.sequence.attention import ROTARY_BASE, WindowedAttention
from jaxrec.models.sequence.blocks import Masks

BATCH, STEPS, WIDTH, HEADS = 2, 11, 8, 2


def make_attention(window: int) -> WindowedAttention:
    return WindowedAttention(WIDTH, HEADS, window, rngs=nnx.Rngs(0))


def events(seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (BATCH, STEPS, WIDTH))


def by_head(x: jax.Array) -> np.ndarray:
    return np.asarray(x).reshape(BATCH, STEPS, HEADS, -1)


def rotated(x: jax.Array) -> np.ndarray:
    """Vectors by head as complex numbers, turned in proportion to their steps."""
    real, imaginary = np.split(by_head(x), 2, axis=-1)
    half = real.shape[-1]
    frequencies = ROTARY_BASE ** -(np.arange(half) / half)
    turns = np.exp(1j * np.arange(STEPS)[:, None] * frequencies)
    return (real + 1j * imaginary) * turns[None, :, None]


@pytest.mark.parametrize("window", [1, 4, STEPS, 2 * STEPS])
def test_an_event_attends_to_the_window_before_it_in_its_sequence(window):
    """In blocks or not; a new sequence starts at step 6 of row 1."""
    attention, x = make_attention(window), events()
    starts = np.zeros((STEPS, BATCH), bool)
    starts[6, 1] = True
    masks = Masks(jnp.asarray(starts), None)
    outputs, _ = attention.scan(x, masks, attention.initial_state(BATCH))
    queries, keys = rotated(attention.query(x)), rotated(attention.key(x))
    scores = np.einsum("bihd,bjhd->bhij", queries.conj(), keys).real / np.sqrt(WIDTH // HEADS)
    distances = np.arange(STEPS)[:, None] - np.arange(STEPS)
    seen = np.stack([(distances >= 0) & (distances <= window)] * BATCH)
    seen[1, 6:, :6] = False
    shares = jax.nn.softmax(np.where(seen[:, None], scores, -np.inf), axis=-1)
    attended = np.einsum("bhij,bjhd->bihd", shares, by_head(attention.value(x)))
    expected = attention.out(jnp.asarray(attended.reshape(x.shape), jnp.float32))
    np.testing.assert_allclose(outputs, expected, atol=1e-5)


def test_the_state_holds_the_window_of_the_present_sequence_alone():
    attention = make_attention(4)
    starts = jnp.zeros((STEPS, BATCH), bool).at[9, 0].set(True)
    _, state = attention.scan(events(), Masks(starts, None), attention.initial_state(BATCH))
    assert state.keys.shape == state.values.shape == (BATCH, 4, WIDTH)
    np.testing.assert_array_equal(state.filled, [[False, False, True, True], [True] * 4])
    assert not state.keys[0, :2].any() and not state.values[0, :2].any()
    np.testing.assert_allclose(state.keys[1], attention.key(events())[1, -4:], atol=1e-6)


def test_bfloat16_goes_in_and_comes_out():
    graphdef, params = nnx.split(make_attention(4))
    half = nnx.merge(graphdef, jax.tree.map(lambda p: p.astype(jnp.bfloat16), params))
    masks = Masks(jnp.zeros((STEPS, BATCH), bool), None)
    outputs, state = half.scan(events().astype(jnp.bfloat16), masks, half.initial_state(BATCH))
    assert {outputs.dtype, state.keys.dtype, state.values.dtype} == {jnp.dtype("bfloat16")}
    full = make_attention(4)
    expected, _ = full.scan(events(), masks, full.initial_state(BATCH))
    np.testing.assert_allclose(outputs.astype(jnp.float32), expected, atol=0.05)
