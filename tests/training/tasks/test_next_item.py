from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from flax import nnx
from helpers.objective import expert_batch, make_arrays, make_batch, parts_of

from jaxrec.models.recommender import AGES, REPEAT_EVENTS
from jaxrec.training.tasks.next_item import history_adjustments
from jaxrec.types import ANY_EVENT_TYPE, NEG_INF


def test_items_so_far_are_masked_by_event_type_except_the_target(model):
    batch = make_batch()
    batch = replace(batch, targets=np.where(batch.items == 4, 4, batch.targets))

    def masked(*event_types):
        arrays = replace(make_arrays(), masked_event_types=jnp.array(event_types))
        adjustments = history_adjustments(expert_batch(model.experts[0], arrays, batch))
        assert adjustments.amounts is None
        return adjustments.candidates

    expected = [  # step 3 starts another sequence, and its target is its own item
        [1, 0, 0, 0, 0, 0],
        [1, 2, 0, 0, 0, 0],
        [1, 2, 3, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 4, 5, 0],
        [0, 0, 0, 4, 5, 0],
    ]
    np.testing.assert_array_equal(masked(True, True)[0], expected)
    second = masked(False, True)
    assert set(np.unique(second[0])) == {0, 2} and set(np.unique(second[1])) == {0, 5}
    assert not masked(False, False).any()


def test_unmasked_items_get_a_repeat_bias_by_event_type_and_age(model):
    expert, batch = model.experts[0], make_batch()
    table = np.arange(2 * 3 * AGES, dtype=np.float32).reshape(3, 2, AGES)
    expert = nnx.clone(expert)
    expert.repeat_bias_table[...] = jnp.asarray(table)
    arrays = replace(make_arrays(), masked_event_types=jnp.array([False, True]), repeats=True)
    target_types = jnp.full(batch.items.shape, ANY_EVENT_TYPE).at[0, 2].set(1)
    inputs = expert_batch(expert, arrays, batch, target_event_types=target_types)
    adjustments = history_adjustments(inputs)
    scale = np.exp(expert.log_scale[...])
    np.testing.assert_array_equal(adjustments.candidates[0, 2], [1, 2, 3, 0, 0, 0])
    # two events ago and the last one have event type 0; the one between is masked
    expected = [scale * table[2, 0, 2], NEG_INF, scale * table[2, 0, 0]]
    np.testing.assert_allclose(adjustments.amounts[0, 2, :3], expected, rtol=1e-6)
    np.testing.assert_allclose(adjustments.amounts[0, 0, 0], scale * table[0, 0, 0], rtol=1e-6)
    # a target of a masked event type is not masked, and no repeat bias reveals it
    batch = replace(batch, targets=np.full((2, 6), 2))
    assert history_adjustments(replace(inputs, batch=batch)).amounts[0, 2, 1] == 0
    whole = nnx.clone(model)
    whole.experts[0].repeat_bias_table[...] = jnp.asarray(table)
    by_age = whole.repeat_bias(1)
    assert by_age.shape == (2, REPEAT_EVENTS)
    np.testing.assert_allclose(by_age[0, :4], scale * table[2, 0, [0, 1, 2, 2]], rtol=1e-6)
    np.testing.assert_allclose(by_age[1, -1], scale * table[2, 1, -1], rtol=1e-6)


def test_events_long_ago_have_no_repeat_bias(model):
    expert = nnx.clone(model.experts[0])
    expert.repeat_bias_table[...] = jnp.ones((3, 2, AGES))
    ages = jnp.array([0, REPEAT_EVENTS - 1, REPEAT_EVENTS, 10 * REPEAT_EVENTS])
    bias = expert.repeat_bias(jnp.zeros(4, int), jnp.zeros(4, int), ages)
    np.testing.assert_array_equal(bias > 0, [True, True, False, False])


def test_the_softmax_masks_what_a_ranking_masks(model):
    """The loss decreases with the number of masked items."""
    batch, arrays = make_batch(), make_arrays()
    losses = [
        parts_of(model, replace(arrays, masked_event_types=jnp.array(event_types)), batch)[
            "next_item/0"
        ]
        for event_types in ([False, False], [False, True], [True, True])
    ]
    assert losses[0] > losses[1] > losses[2]
