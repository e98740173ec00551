"""The private step: what a user adds is clipped, and the noise is as large as planned."""

from dataclasses import replace

import jax
import numpy as np
import optax
import pytest
from helpers.training import config

from jaxrec.data.dataset import prepare
from jaxrec.training.context import make_context
from jaxrec.training.loop import make_train_step
from jaxrec.training.objective import StepInputs, objective
from jaxrec.training.privacy import run as private
from jaxrec.training.state import initial_state

pytestmark = pytest.mark.thorough
CLIP, NOISE = 0.05, 1e-3
OPTIONS = {
    "model.experts": ["id"],
    "train.batch_size": 16,
    "train.sequence_length": 8,
    "train.privacy.epsilon": 8.0,
    "train.privacy.clip": CLIP,
}


@pytest.fixture(scope="module")
def context(tables, tmp_path_factory):
    """A private training by gradient descent with rate 1 and little noise."""
    options = config(**OPTIONS)
    context = make_context(options, prepare(options, tables))
    budget = replace(context.budget, noise_multiplier=NOISE)
    own = replace(context, optimizer=optax.sgd(1.0), budget=budget)
    return private.keyed(own, tmp_path_factory.mktemp("run"), resume=False)


@pytest.fixture(scope="module")
def descend(context):
    """A function from a batch and a noise key to minus the gradient, as one vector."""
    step = make_train_step(context)

    def gradient(batch, noise_key=None):
        arrays = context.arrays
        if noise_key is not None:
            key = jax.device_put(np.array(noise_key, np.uint32), arrays.noise_key.sharding)
            arrays = replace(arrays, noise_key=key)
        before = flat(initial_state(context).params)
        state, metrics = step(initial_state(context), arrays, batch)
        return flat(state.params) - before, metrics

    return gradient


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def without(batch, row):
    """A batch without the user of a row."""
    empty = jax.tree.map(np.zeros_like, batch)
    return replaced(batch, empty, row)


def replaced(batch, other, row):
    """A batch with the row of another one."""
    chosen = np.arange(len(batch.items))[:, None] == row
    return jax.tree.map(lambda x, y: np.where(chosen, y, x), batch, other)


def test_the_gradient_is_the_sum_of_clipped_gradients_of_users(context, descend):
    batch, state = context.packing.batch(0, 0), initial_state(context)
    present = np.flatnonzero(batch.starts[:, 0])
    key = jax.random.fold_in(jax.random.key(context.config.train.seed), 0)

    @jax.jit
    def of_user(params, user):
        def loss(params):
            model = context.definition.merge(params)
            return objective(model, StepInputs(context.arrays, state.text, user, key))[0]

        return jax.grad(loss)(params)

    total, norms = 0.0, []
    for row in present:
        gradient = flat(of_user(state.params, jax.tree.map(lambda x, r=row: x[r : r + 1], batch)))
        norms.append(np.linalg.norm(gradient))
        total += gradient * min(1, CLIP / norms[-1])
    moved, metrics = descend(batch)
    mean = context.budget.mean_users
    np.testing.assert_allclose(moved, -total / mean, atol=6 * NOISE * CLIP / mean)
    assert int(metrics["users"]) == len(present)
    assert float(metrics["clipped_share"]) == np.mean(np.array(norms) > CLIP) > 0.5


def test_a_user_moves_the_gradient_by_the_clipping_norm_at_most(context, descend):
    batch, bound = context.packing.batch(0, 0), CLIP / context.budget.mean_users
    whole, _ = descend(batch)
    for row in np.flatnonzero(batch.starts[:, 0])[:4]:
        alone, _ = descend(without(batch, row))
        assert 0.5 * bound < np.linalg.norm(whole - alone) < 1.001 * bound
    # a user with other events, ten times the weight
    other_items = np.where(batch.items > 0, 3, 0).astype(batch.items.dtype)
    loud = replace(batch, weights=10 * batch.weights, items=other_items)
    other, _ = descend(replaced(batch, loud, row))
    assert np.linalg.norm(whole - other) < 2.001 * bound


def test_the_noise_has_the_planned_size_and_comes_from_the_key(context, descend):
    batch = context.packing.batch(0, 0)
    draws = [descend(batch, key)[0] for key in ([1, 2], [1, 3], [1, 2])]
    np.testing.assert_array_equal(draws[0], draws[2])
    noise = (draws[0] - draws[1]) / np.sqrt(2)
    planned = NOISE * CLIP / context.budget.mean_users
    # the difference of two parameters is rounded to float32
    assert noise.std() == pytest.approx(planned, rel=0.05)
    assert abs(noise.mean()) < 5 * planned / np.sqrt(len(noise))
    assert np.count_nonzero(noise) > 0.99 * len(noise)  # in all parameters
