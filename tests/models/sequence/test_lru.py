import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from helpers.encoders import random_events
from helpers.graph import WIDTH

from jaxrec.models.sequence.blocks import Masks
from jaxrec.models.sequence.lru import MAX_DECAY, MIN_DECAY, SHARPNESS, LinearRecurrentUnit

STEPS = 5


def no_masks(batch_size: int) -> Masks:
    return Masks(jnp.zeros((STEPS, batch_size), bool), None)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_the_steps_equal_hand_written_ones():
    unit = LinearRecurrentUnit(WIDTH, nnx.Rngs(0))
    x, before = random_events(2, STEPS), jax.random.normal(jax.random.key(1), (2, WIDTH))
    outputs, after = unit.scan(x, no_masks(2), before)
    update, input_gate, decay_gate, output_gate = np.split(np.asarray(unit.input(x)), 4, axis=-1)
    decay = sigmoid(-np.asarray(unit.decay_logits[...]))
    hidden = np.asarray(before)
    for step in range(STEPS):
        power = decay ** (SHARPNESS * sigmoid(decay_gate[:, step]))
        hidden = power * hidden
        hidden += np.sqrt(1 - power**2) * sigmoid(input_gate[:, step]) * update[:, step]
        expected = jax.nn.gelu(output_gate[:, step]) * hidden
        np.testing.assert_allclose(outputs[:, step], expected, atol=1e-5)
    np.testing.assert_allclose(after, hidden, atol=1e-5)


def test_initial_decays_remember_a_few_to_many_events():
    unit = LinearRecurrentUnit(256, nnx.Rngs(0))
    decay = sigmoid(-np.asarray(unit.decay_logits[...])) ** (SHARPNESS / 2)
    assert MIN_DECAY - 1e-4 <= decay.min() < MIN_DECAY + 0.02
    assert MAX_DECAY - 0.02 < decay.max() <= MAX_DECAY + 1e-4


def test_extreme_gates_keep_the_gradient_finite():
    """A gate that is shut keeps the state as it is, so that the square root is at zero."""
    unit = LinearRecurrentUnit(WIDTH, nnx.Rngs(0))
    x = random_events(1, STEPS)
    for scale in (1e4, -1e4):
        gradient = jax.grad(
            lambda x, s=scale: unit.scan(s * x, no_masks(1), jnp.ones((1, WIDTH)))[0].sum()
        )(x)
        assert jnp.isfinite(gradient).all()
