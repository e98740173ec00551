"""The task of masked items, its held-out loss, and a training that begins with its parameters."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx
from helpers.objective import CONFIG, CRITERION, SIZES, expert_batch, make_arrays, make_batch
from helpers.training import config, untrained_run

import jaxrec
from jaxrec.data.dataset import prepare
from jaxrec.errors import ConfigError
from jaxrec.models.recommender import Recommender
from jaxrec.training import pretrained
from jaxrec.training.context import make_context
from jaxrec.training.evaluator import Evaluator
from jaxrec.training.fit import fit
from jaxrec.training.loop import make_train_step
from jaxrec.training.masked_validation import masked_item_loss
from jaxrec.training.prefetch import prefetch
from jaxrec.training.state import initial_state
from jaxrec.training.tasks.base import Task
from jaxrec.training.tasks.masked_item import MaskedItem, event_weights, sequence_numbers

ALONE = {
    "train.next_item_weight": 0.0,
    "train.auxiliary_weight": 0.0,
    "train.masked_item_weight": 1.0,
}


@pytest.fixture(scope="module")
def loss():
    model = Recommender(CONFIG.model, SIZES, nnx.Rngs(0), masked_items=True)
    task = MaskedItem(CRITERION, 1.0)
    assert isinstance(task, Task)

    @jax.jit
    def of_batch(items, batch, arrays):
        return task.loss(expert_batch(model.experts[0], arrays, batch, items))

    return of_batch


def test_every_event_has_its_own_weight_as_a_target():
    batch = make_batch()
    expected = [[1, 1, 1, 0, 1, 2], [1, 1, 0, 1, 1, 0]]
    assert event_weights(batch).tolist() == expected
    assert sequence_numbers(batch).tolist() == [[1, 1, 1, 2, 2, -1], [1, 1, 1, 1, -1, -1]]


def test_unused_steps_and_targets_change_nothing_and_padding_is_no_candidate(loss):
    batch, arrays = make_batch(), make_arrays()
    items = jax.random.normal(jax.random.key(2), (8, CONFIG.model.hidden_size))
    expected = loss(items, batch, arrays)
    other = replace(batch, targets=np.zeros_like(batch.targets), users=batch.users + 1)
    assert loss(items, other, arrays) == pytest.approx(float(expected), rel=1e-6)
    assert loss(items.at[7].add(9), batch, arrays) == pytest.approx(float(expected), rel=1e-6)
    nothing = replace(batch, weights=0 * batch.weights, first_weights=0 * batch.first_weights)
    assert loss(items, nothing, arrays) == 0 < expected


@pytest.mark.thorough
def test_the_loss_of_held_out_items_falls(tables):
    options = config(**ALONE, **{"model.experts": ["id+graph"], "train.learning_rate": 0.01})
    context = make_context(options, prepare(options, tables))
    assert [task.name for task in context.arrays.tasks] == ["masked_item"]
    state, step = initial_state(context), make_train_step(context)
    before = held_out_loss(context, state)
    for epoch in range(10):
        for batch, _ in prefetch(context, epoch, range(context.packing.steps_per_epoch)):
            state, metrics = step(state, context.arrays, batch)
    assert set(metrics) == {"loss", "gradient_norm", "not_finite", "masked_item/0"}
    assert held_out_loss(context, state) < min(before, np.log(30))  # 30 items: by chance


def held_out_loss(context, state):
    evaluator = Evaluator(context, state)
    return masked_item_loss(context, evaluator.model, evaluator.items.vectors)["masked_item/loss"]


@pytest.mark.thorough
def test_a_training_that_begins_with_such_a_run_takes_its_item_side(tables, tmp_path):
    one = {"model.experts": ["id+graph"]}
    first = untrained_run(tmp_path / "first", tables, **ALONE, **one)
    options = config(**one, **{"train.init": str(first), "train.init_parts": ["graph", "ids"]})
    context = make_context(options, prepare(options, tables))
    state, notes = pretrained.start(context)
    assert "are taken (graph, ids)" in notes[0] and len(notes) == 1
    saved = jaxrec.load(first).model.params["experts"][0]
    own = nnx.to_pure_dict(state.params)["experts"][0]
    assert "masked_items" in saved and "masked_items" not in own
    rows = [part["item_encoder"]["sources"][0]["item_table"][:31] for part in (saved, own)]
    np.testing.assert_array_equal(*rows)


@pytest.mark.slow
def test_the_run_logs_the_held_out_loss_and_the_next_one_goes_on_from_it(tables, tmp_path):
    first = fit(config(**ALONE), tmp_path / "first", tables=tables)
    assert 0 < first["selected"]["masked_item/loss"] < 10
    options = config(**{"train.init": str(tmp_path / "first")})
    second = fit(options, tmp_path / "second", tables=tables)
    assert "masked_item/loss" not in second["selected"]
    assert jaxrec.load(tmp_path / "first").recommend(tables.events, k=1).height == 40


def test_options_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="nothing to learn"):
        config(**ALONE | {"train.masked_item_weight": 0.0})
    with pytest.raises(ConfigError, match="sequence_heads"):
        config(**ALONE | {"model.sequence_heads": 3})
