from dataclasses import replace

import pytest
from flax import nnx
from helpers.objective import CONFIG, ITEM_TASKS, SIZES, make_arrays, make_batch, parts_of

from jaxrec.models.recommender import Recommender


def test_an_entity_type_named_like_a_task_has_its_own_weight():
    model = Recommender(CONFIG.model, SIZES, nnx.Rngs(0))
    arrays = make_arrays()
    renamed = replace(arrays.tasks[-1], name="next_item_type")
    expected = parts_of(model, arrays, make_batch())
    actual = parts_of(model, replace(arrays, tasks=(*ITEM_TASKS, renamed)), make_batch())
    assert actual["next_item_type/0"] == expected["next_brand/0"]
    assert actual["loss"] == pytest.approx(expected["loss"], rel=1e-6)


def test_an_entity_task_adds_its_own_loss_only(model):
    arrays = make_arrays()
    without = parts_of(model, replace(arrays, tasks=ITEM_TASKS), make_batch())
    expected = parts_of(model, arrays, make_batch())
    assert set(expected) - set(without) == {"next_brand/0"}
    assert without["next_item/0"] == pytest.approx(expected["next_item/0"], rel=1e-6)


def test_targets_without_an_entity_do_not_count_in_its_loss(model):
    """The loss equals that with weight 0: item 6 has no brand."""
    batch = make_batch()
    batch = replace(batch, targets=batch.targets.copy(), weights=batch.weights.copy())
    batch.targets[0, 0] = 6
    counted = parts_of(model, make_arrays(), batch)
    batch.weights[0, 0] = 0
    ignored = parts_of(model, make_arrays(), batch)
    assert counted["next_brand/0"] == pytest.approx(ignored["next_brand/0"], rel=1e-6)
    assert counted["next_item/0"] != pytest.approx(ignored["next_item/0"], rel=1e-3)
