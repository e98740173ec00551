from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import jraph
import numpy as np
import pytest
from flax import nnx

from jaxrec.config import Config, ModelConfig, TextConfig, TrainConfig
from jaxrec.inference.encoding import CatalogArrays
from jaxrec.inference.text_features import FinetunedText
from jaxrec.models.inputs import Nodes, Sizes
from jaxrec.models.recommender import (
    AGES,
    REPEAT_EVENTS,
    Recommender,
    cast_products,
    gap_buckets,
)
from jaxrec.models.text.bert import Bert, BertConfig
from jaxrec.models.text.finetuned import TextTower
from jaxrec.training.losses.full_softmax import FullSoftmax
from jaxrec.training.objective import finetuned_rows, objective
from jaxrec.training.tasks.base import ExpertBatch, TrainArrays
from jaxrec.training.tasks.first_item import FirstItem
from jaxrec.training.tasks.next_entity import NextEntity
from jaxrec.training.tasks.next_item import NextItem, history_adjustments
from jaxrec.types import ANY_EVENT_TYPE, NEG_INF, NO_GAP, Batch

# items 0-7: 0 is unknown and 7 is padding; nodes 8-11: brands, of which 9 and 10 exist
SIZES = Sizes(num_items=8, num_nodes=12, num_relations=1, num_event_types=2, text_width=3)
CONFIG = Config(
    model=ModelConfig(experts=("id+graph+text",), hidden_size=8, num_layers=1),
    text=TextConfig(finetune_items=4),
    train=TrainConfig(loss_logits=8),
)
CRITERION = FullSoftmax(CONFIG.train.loss_logits)
ITEM_TASKS = (NextItem(CRITERION), FirstItem(CONFIG.train.auxiliary_weight))
BRANDS = jnp.array([0, 1, 1, 1, 2, 2, 0, 0])
KEY = jax.random.key(0)
TEXT_SIZE, TOKENS = 4, 5


def make_arrays(finetuned_text: FinetunedText | None = None) -> TrainArrays:
    items = np.flatnonzero(BRANDS)
    brands = 8 + np.asarray(BRANDS)[items]
    by_receiver = np.argsort(np.concatenate([items, brands]), kind="stable")
    graph = jraph.GraphsTuple(
        nodes=None,
        edges=jnp.asarray(np.repeat([1, 0], len(items))[by_receiver]),
        senders=jnp.asarray(np.concatenate([brands, items])[by_receiver]),
        receivers=jnp.asarray(np.concatenate([items, brands])[by_receiver]),
        globals=None,
        n_node=jnp.array([12]),
        n_edge=jnp.array([2 * len(items)]),
    )
    text = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    valid = jnp.array([False, *[True] * 6, False])
    brand = NextEntity(
        name="next_brand",
        criterion=CRITERION,
        weight=CONFIG.train.auxiliary_weight,
        entity_of_item=BRANDS,
        nodes=jnp.arange(8, 12),
        valid=jnp.array([False, True, True, False]),
    )
    return TrainArrays(
        catalog=CatalogArrays(Nodes(jnp.arange(8), jnp.arange(4), jnp.asarray(text)), graph, valid),
        candidates=valid,
        tasks=(*ITEM_TASKS, brand),
        masked_event_types=jnp.array([False, False]),
        finetuned_text=finetuned_text,
        repeats=False,
    )


def make_batch() -> Batch:
    """Two rows of six steps: histories of 3 + 2 events and of 4; the other steps are padding."""
    used = np.array([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]])
    return Batch(
        users=np.array([[0, 0, 0, 1, 1, 0], [2, 2, 2, 2, 0, 0]]),
        items=np.array([[1, 2, 3, 4, 5, 0], [6, 1, 5, 2, 0, 0]]),
        event_types=np.array([[0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]]),
        gaps=np.where(used, 60, NO_GAP),
        starts=np.array([[1, 0, 0, 1, 0, 0], [1, 0, 0, 0, 0, 0]], bool),
        first_weights=np.array([[1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]], np.float32),
        targets=np.array([[2, 3, 6, 5, 1, 0], [1, 5, 2, 4, 0, 0]]),
        target_event_types=np.array([[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]]),
        target_gaps=np.full((2, 6), 60),
        weights=np.array([[1, 1, 0, 1, 2, 0], [1, 0, 1, 1, 0, 0]], np.float32),
    )


def expert_batch(expert, arrays, batch, items=None, event_types=None) -> ExpertBatch:
    """Inputs of a task that reads no user vectors."""
    vectors = jnp.zeros((8, CONFIG.model.hidden_size)) if items is None else items
    users = jnp.zeros((*batch.items.shape, CONFIG.model.hidden_size))
    event_types = jnp.asarray(batch.target_event_types) if event_types is None else event_types
    return ExpertBatch(expert, arrays, batch, vectors, users, event_types, KEY)


@pytest.fixture(scope="module")
def model():
    return Recommender(CONFIG.model, SIZES, nnx.Rngs(0))


@partial(jax.jit, static_argnums=0)
def jitted_objective(graphdef, params, arrays, batch):
    model = nnx.merge(graphdef, params)
    text = arrays.catalog.nodes.text
    return objective(model, arrays, text, batch, CONFIG.text.finetune_items, KEY)


@partial(jax.jit, static_argnums=(0, 4))
def loss_and_gradients(graphdef, params, arrays, batch, dtype=jnp.float32):
    def loss_of(params):
        return jitted_objective(graphdef, cast_products(params, dtype), arrays, batch)

    return jax.value_and_grad(loss_of, has_aux=True)(params)


def parts_of(model, arrays, batch):
    loss, parts = jitted_objective(*nnx.split(model), arrays, batch)
    return {"loss": float(loss), **{name: float(value) for name, value in parts.items()}}


def test_the_loss_is_the_weighted_sum_of_every_experts_parts():
    model = Recommender(replace(CONFIG.model, experts=("id", "text")), SIZES, nnx.Rngs(0))
    parts = parts_of(model, make_arrays(), make_batch())
    loss = parts.pop("loss")
    names = ("next_item", "first_item", "next_brand")
    assert set(parts) == {f"{name}/{expert}" for name in names for expert in (0, 1)}
    assert all(0 < value < 1e3 for value in parts.values())
    weights = {name: 1.0 if name.startswith("next_item") else 0.1 for name in parts}
    assert loss == pytest.approx(sum(weights[name] * parts[name] for name in parts), rel=1e-5)


def test_an_entity_type_named_like_a_task_has_its_own_weight():
    model = Recommender(CONFIG.model, SIZES, nnx.Rngs(0))
    arrays = make_arrays()
    renamed = replace(arrays.tasks[-1], name="next_item_type")
    expected = parts_of(model, arrays, make_batch())
    actual = parts_of(model, replace(arrays, tasks=(*ITEM_TASKS, renamed)), make_batch())
    assert actual["next_item_type/0"] == expected["next_brand/0"]
    assert actual["loss"] == pytest.approx(expected["loss"], rel=1e-6)


def test_first_items_train_the_vectors_of_their_event_type_and_of_any(model):
    """Requests may name an event type or none, so the gradient reaches both vectors."""
    batch, arrays = make_batch(), make_arrays()
    second = np.ones_like(batch.event_types)
    batch = replace(batch, first_weights=(batch.items > 0).astype(np.float32), event_types=second)
    expert = model.experts[0]
    graphdef, params = nnx.split(expert)
    items = jax.random.normal(KEY, (8, CONFIG.model.hidden_size))

    def loss(params):
        expert = nnx.merge(graphdef, params)
        return FirstItem(weight=1.0).loss(expert_batch(expert, arrays, batch, items))

    gradient = jax.grad(loss)(params)["target_type_table"][...]
    any_type, first_type, second_type = jnp.abs(gradient).sum(1) > 0
    assert any_type and second_type and not first_type


def test_padding_and_positions_without_weight_change_nothing(model):
    batch = make_batch()
    expected = parts_of(model, make_arrays(), batch)
    unused = np.array([[0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 1, 1]], bool)
    other = replace(
        batch,
        users=np.where(unused, 7, batch.users),
        items=np.where(unused, 3, batch.items),
        event_types=np.where(unused, 1, batch.event_types),
        gaps=np.where(unused, 5, batch.gaps),
        targets=np.where(batch.weights == 0, 4, batch.targets),
        target_event_types=np.where(batch.weights == 0, 1, batch.target_event_types),
    )
    assert parts_of(model, make_arrays(), other) == pytest.approx(expected, rel=1e-6)


def test_weights_are_relative(model):
    batch = make_batch()
    expected = parts_of(model, make_arrays(), batch)
    doubled = parts_of(model, make_arrays(), replace(batch, weights=2 * batch.weights))
    assert doubled == pytest.approx(expected, rel=1e-5)
    tilted = batch.weights * np.arange(1, 7, dtype=np.float32)
    assert parts_of(model, make_arrays(), replace(batch, weights=tilted)) != pytest.approx(
        expected, rel=1e-3
    )


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


def test_a_batch_without_targets_has_no_next_loss_and_finite_gradients(model):
    batch = make_batch()
    batch = replace(batch, weights=np.zeros_like(batch.weights))
    graphdef, params = nnx.split(model)
    arrays = make_arrays()
    parts = parts_of(model, arrays, batch)
    assert parts["next_item/0"] == parts["next_brand/0"] == 0
    _, gradients = loss_and_gradients(graphdef, params, arrays, batch)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_an_entity_task_adds_its_own_loss_only(model):
    arrays = make_arrays()
    without = parts_of(model, replace(arrays, tasks=ITEM_TASKS), make_batch())
    expected = parts_of(model, arrays, make_batch())
    assert set(expected) - set(without) == {"next_brand/0"}
    assert without["next_item/0"] == pytest.approx(expected["next_item/0"], rel=1e-6)


def test_targets_without_an_entity_do_not_count_in_its_loss(model):
    """The loss is as if their weight were 0: item 6 has no brand."""
    batch = make_batch()
    batch = replace(batch, targets=batch.targets.copy(), weights=batch.weights.copy())
    batch.targets[0, 0] = 6
    counted = parts_of(model, make_arrays(), batch)
    batch.weights[0, 0] = 0
    ignored = parts_of(model, make_arrays(), batch)
    assert counted["next_brand/0"] == pytest.approx(ignored["next_brand/0"], rel=1e-6)
    assert counted["next_item/0"] != pytest.approx(ignored["next_item/0"], rel=1e-3)


def test_bfloat16_is_near_float32(model):
    """Parameters are cast; losses and their gradients stay float32."""
    graphdef, params = nnx.split(model)
    arrays, batch = make_arrays(), make_batch()
    exact, _ = jitted_objective(graphdef, params, arrays, batch)
    (coarse, parts), gradients = loss_and_gradients(graphdef, params, arrays, batch, jnp.bfloat16)
    assert all(value.dtype == jnp.float32 for value in (coarse, *parts.values()))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(gradients))
    assert coarse == pytest.approx(float(exact), rel=0.03)
    assert coarse != exact


@pytest.fixture(scope="module")
def tower():
    config = BertConfig(
        vocab_size=10,
        hidden_size=TEXT_SIZE,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=TOKENS,
    )
    return TextTower(Bert(config, rngs=nnx.Rngs(1)), 1)


def make_finetuned_text() -> FinetunedText:
    random = np.random.default_rng(3)
    return FinetunedText(
        hidden=jnp.asarray(random.normal(size=(8, TOKENS, TEXT_SIZE)), jnp.float16),
        mask=jnp.ones((8, TOKENS), bool),
        mean=jnp.zeros(TEXT_SIZE),
        projection=jnp.asarray(random.normal(size=(TEXT_SIZE, 3)), jnp.float32),
    )


@pytest.mark.parametrize("count", [3, 7])
def test_only_some_rows_are_encoded_again(tower, count):
    text = make_arrays().catalog.nodes.text
    # targets are 1 and 2, and the row of the unknown item at padding
    batch = replace(make_batch(), targets=np.array([[1, 2, 2, 0, 0, 0], [2, 1, 0, 0, 0, 0]]))
    changed = jnp.any(
        finetuned_rows(tower, make_finetuned_text(), text, batch, count, KEY) != text, axis=1
    )
    assert changed.sum() == count
    assert changed[jnp.array([0, 1, 2])].all()


def test_a_count_above_the_number_of_items_encodes_every_item(tower):
    text, finetuned = make_arrays().catalog.nodes.text, make_finetuned_text()
    encoded = finetuned_rows(tower, finetuned, text, make_batch(), 100, KEY)
    expected = tower(finetuned.hidden.astype(jnp.float32), finetuned.mask) @ finetuned.projection
    np.testing.assert_allclose(encoded, expected, atol=1e-5)


def test_the_time_to_the_target_is_known_at_some_positions_and_hidden_at_others():
    model = Recommender(replace(CONFIG.model, time_since_last=True), SIZES, nnx.Rngs(0))
    _, gradients = loss_and_gradients(*nnx.split(model), make_arrays(), make_batch())
    table = np.abs(gradients["experts"][0]["time_since_last_table"][...]).max(1)
    unknown, minute = gap_buckets(np.array([NO_GAP, 60]))
    assert set(np.flatnonzero(table)) == {int(unknown), int(minute)}


def test_the_gradient_reaches_the_text_tower(tower):
    model = Recommender(CONFIG.model, SIZES, nnx.Rngs(0), tower)
    graphdef, params = nnx.split(model)
    arrays = make_arrays(make_finetuned_text())
    _, gradients = loss_and_gradients(graphdef, params, arrays, make_batch())
    up = gradients["text_tower"]["blocks"][0]["mlp"]["up"]["kernel"]
    assert jnp.abs(up[...]).max() > 1e-5
