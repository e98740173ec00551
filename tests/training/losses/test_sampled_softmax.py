"""The sampled softmax estimates the full softmax."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.losses import cross_entropy
from helpers.objective import make_batch

from jaxrec.training.item_sampling import LEVELS, ItemSampler
from jaxrec.training.losses.base import LogitAdjustments
from jaxrec.training.losses.full_softmax import FullSoftmax
from jaxrec.training.losses.sampled_softmax import corrected, cross_entropies, log_probability
from jaxrec.types import NEG_INF, Batch

ITEMS, LENGTH, WINDOWS, OTHERS, DRAWS, WIDTH = 24, 4, 16, 4, 5, 4
VALID = (jnp.arange(ITEMS) > 0) & (jnp.arange(ITEMS) < ITEMS - 1)


@pytest.fixture(scope="module")
def windows():
    """Items of sixteen windows of five events; the first items are the most frequent ones."""
    random = np.random.default_rng(1)
    return 1 + np.minimum(random.geometric(0.12, (WINDOWS, LENGTH + 1)), ITEMS - 3)


@pytest.fixture(scope="module")
def sampler(windows):
    holds = np.array([[item in window for item in range(ITEMS)] for window in windows])
    chances = np.arange(ITEMS) * np.asarray(VALID)
    levels = np.floor(np.cumsum(chances) / chances.sum() * (LEVELS - 1))
    return ItemSampler(
        windows=jnp.asarray(holds.sum(0), jnp.float32),
        levels=jnp.asarray(levels, jnp.uint32),
        num_windows=WINDOWS,
        negatives=DRAWS,
        size=ITEMS - 1,
        takes_all=False,
        encodes_all=False,
    )


def batch_of(events) -> Batch:
    """One window a row."""
    starts = jnp.zeros((len(events), LENGTH), bool).at[:, 0].set(True)
    zeros = jnp.zeros(starts.shape, int)
    fields = dict.fromkeys(("users", "event_types", "gaps", "target_event_types"), zeros)
    return Batch(
        **fields,
        items=events[:, :-1],
        targets=events[:, 1:],
        starts=starts,
        first_weights=jnp.zeros(starts.shape),
        target_gaps=zeros,
        weights=jnp.ones(starts.shape),
    )


def vectors():
    random = np.random.default_rng(0)
    queries = jnp.asarray(random.normal(size=(LENGTH, WIDTH)), jnp.float32)
    return queries, jnp.asarray(random.normal(size=(ITEMS, WIDTH)), jnp.float32)


@partial(jax.jit, static_argnums=(0,))
def draw_losses(size, sampler, windows, keys):
    """The losses of the positions of window 0 in random batches, by `FullSoftmax`."""
    queries, items = vectors()

    def one(key):
        key, own = jax.random.split(key)
        others = 1 + jax.random.choice(own, WINDOWS - 1, (OTHERS,), replace=False)
        batch = batch_of(jnp.concatenate([windows[:1], windows[others]]))
        sample = sampler.sample(batch, VALID, key)
        places = sample.places(batch.items), sample.places(batch.targets)
        nothing = LogitAdjustments(jnp.zeros((*batch.items.shape, 1), int), None)
        adjustments = corrected(nothing, sample.log_p, *places, batch.starts)
        users = jnp.broadcast_to(queries[None], (OTHERS + 1, LENGTH, WIDTH))

        def loss(weights):
            return FullSoftmax(size)(
                users, items[sample.rows], places[1], weights, sample.valid, adjustments
            )

        return jax.vmap(loss)(jnp.eye(LENGTH)[:, None] * jnp.eye(OTHERS + 1)[0][None, :, None])

    return jax.lax.map(one, keys, batch_size=500)


def test_the_estimate_of_z_is_right_on_average(windows, sampler):
    """Batches are random windows beside the own one; exp(loss) = Z / exp(score of the target)."""
    keys = jax.random.split(jax.random.key(0), 6000)
    losses = np.asarray(draw_losses(10**6, sampler, jnp.asarray(windows), keys), np.float64)
    queries, items = vectors()
    targets = jnp.asarray(windows[0, 1:])
    exact = np.asarray(cross_entropy(queries, items, targets, VALID), np.float64)
    estimates = np.exp(losses - exact)
    error = estimates.std(0) / len(keys) ** 0.5
    assert error.max() < 0.02
    np.testing.assert_array_less(np.abs(estimates.mean(0) - 1), 4 * error)
    # the loss itself is a little too low, as the logarithm is concave
    assert (losses.mean(0) < exact).all()
    np.testing.assert_allclose(losses.mean(0), exact, atol=0.25)


def test_probability_of_an_item_by_hand():
    """Half of 100 windows are in the batch, and there are three draws at .2 each."""
    windows, draw = jnp.array([0.0, 1.0, 2.0]), jnp.full(3, 0.2)
    actual = jnp.exp(log_probability(windows, jnp.int32(50), 100, draw, 3))
    missed = np.array([1, 0.5, 0.5 * 49 / 99]) * 0.8**3
    np.testing.assert_allclose(actual, 1 - missed, rtol=1e-4)
    certain = log_probability(windows, jnp.int32(100), 100, jnp.zeros(3), 0)
    np.testing.assert_allclose(certain[1:], [0, 0], atol=1e-5)


def test_items_of_the_own_window_count_once_and_others_by_their_probability():
    batch = make_batch()
    log_p = -jnp.arange(8.0)
    nothing = LogitAdjustments(jnp.zeros((2, 6, 1), int), None)
    arrays = map(jnp.asarray, (batch.items, batch.targets, batch.starts))
    adjustments = corrected(nothing, log_p, *arrays)
    added = np.zeros((2, 6, 8)) + np.asarray(adjustments.bias)
    for place in np.ndindex(2, 6):
        np.add.at(added[place], adjustments.candidates[place], adjustments.amounts[place])
    own = {(0, 0): {1, 2, 3, 6}, (0, 2): {1, 2, 3, 6}, (0, 4): {4, 5, 1}, (1, 1): {6, 1, 5, 2, 4}}
    for place, items in own.items():
        expected = [0 if item in items else item for item in range(8)]
        np.testing.assert_allclose(added[place], expected)


def test_masks_of_the_history_stay():
    batch = make_batch()
    masked = LogitAdjustments(jnp.asarray(batch.items)[..., None], None)
    arrays = map(jnp.asarray, (batch.items, batch.targets, batch.starts))
    adjustments = corrected(masked, jnp.zeros(8), *arrays)
    expected = np.where(batch.items > 0, np.float32(NEG_INF), 0)
    np.testing.assert_array_equal(adjustments.amounts[..., 0], expected)


def test_every_item_as_the_target_of_a_row():
    random = np.random.default_rng(0)
    scores, log_p = random.normal(size=(2, 6)), -random.random(6)
    valid = np.array([False, True, True, True, True, False])
    actual = cross_entropies(*map(jnp.float32, (scores, log_p)), jnp.asarray(valid))
    for target in np.flatnonzero(valid):
        others = valid & (np.arange(6) != target)
        z = np.exp(scores[:, target]) + np.exp(scores - log_p)[:, others].sum(1)
        np.testing.assert_allclose(actual[:, target], np.log(z) - scores[:, target], rtol=1e-5)
