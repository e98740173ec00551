"""A batch that is read in parts gives the update of the whole batch."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.objective import CONFIG, KEY, SIZES, make_arrays, make_batch

from jaxrec.config import TrainConfig
from jaxrec.errors import ConfigError
from jaxrec.models.recommender import Recommender, cast_products
from jaxrec.partitioning import on_mesh
from jaxrec.sharding import make_mesh, replicated
from jaxrec.training.micro_batches import MicroBatch
from jaxrec.training.objective import StepInputs
from jaxrec.training.step import losses_and_gradients
from jaxrec.training.tasks.masked_item import MaskedItem

WITHOUT_DROPOUT = replace(CONFIG.model, dropout=0.0, id_dropout=0.0)


def four_rows():
    """Rows with many targets, few, and none."""
    batch = make_batch()
    weights = np.concatenate([batch.weights, batch.weights * np.array([[0.0], [0.5]], np.float32)])
    rows = jax.tree.map(lambda x: np.concatenate([x, x]), batch)
    return replace(rows, weights=weights)


@pytest.fixture(scope="module")
def learn():
    """The loss, its parts and the gradients of a batch in so many parts on a mesh."""
    model = Recommender(WITHOUT_DROPOUT, SIZES, nnx.Rngs(0), masked_items=True)
    graphdef, params = nnx.split(model)
    arrays = make_arrays()
    criterion = arrays.tasks[0].criterion
    arrays = replace(arrays, tasks=(*arrays.tasks, MaskedItem(criterion, 0.5)))

    def results(parts, mesh=None, dtype=jnp.float32):
        def compute(params, arrays, batch):
            inputs = StepInputs(arrays, arrays.catalog.nodes.text, batch, KEY)
            model_of = lambda p: nnx.merge(graphdef, cast_products(p, dtype))  # noqa: E731
            if mesh is None:
                return losses_and_gradients(model_of, params, inputs, parts)
            with on_mesh(mesh):
                return losses_and_gradients(model_of, params, inputs, parts)

        arguments = (params, arrays, four_rows())
        arguments = arguments if mesh is None else jax.device_put(arguments, replicated(mesh))
        return jax.jit(compute)(*arguments)

    return results


@pytest.fixture(scope="module")
def expected(learn):
    return learn(1)


def check(actual, expected):
    (own, other), (gradients, others) = zip(actual, expected, strict=True)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), own, other)
    assert max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(others)) > 0.01
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-6), gradients, others)


@pytest.mark.thorough
def test_losses_and_gradients_are_those_of_the_whole_batch(learn, expected):
    check(learn(4), expected)


@pytest.mark.slow
@pytest.mark.parametrize("item_shards", [1, 2])
def test_they_are_on_a_mesh(learn, expected, item_shards):
    """Of two devices along `users`: a part has rows of each."""
    devices = jax.devices()[: 2 * item_shards]
    check(learn(2, make_mesh(item_shards, devices)), expected)


def test_the_parts_of_a_batch_are_all_of_it():
    rows = jnp.arange(24).reshape(8, 3)
    parts = [MicroBatch(number, 4).of(rows) for number in range(4)]
    np.testing.assert_array_equal(jnp.concatenate(parts), rows)
    with on_mesh(make_mesh(2)):  # two devices along `users` have four rows each
        parts = [MicroBatch(number, 2).of(rows) for number in range(2)]
    np.testing.assert_array_equal(parts[0], rows[jnp.array([0, 1, 4, 5])])
    np.testing.assert_array_equal(parts[1], rows[jnp.array([2, 3, 6, 7])])


def test_what_is_drawn_for_events_does_not_depend_on_the_parts():
    whole = MicroBatch().bernoulli(KEY, 0.5, (8, 3))
    parts = [MicroBatch(number, 2).bernoulli(KEY, 0.5, (4, 3)) for number in range(2)]
    np.testing.assert_array_equal(jnp.concatenate(parts), whole)
    assert 0 < whole.sum() < whole.size


def test_parts_that_are_not_equal_are_refused():
    with pytest.raises(ConfigError, match=r"accumulate: batch_size 6 .* 4 equal parts"):
        TrainConfig(batch_size=6, accumulate=4)
