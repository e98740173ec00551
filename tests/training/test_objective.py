from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.objective import (
    CONFIG,
    KEY,
    SIZES,
    jitted_objective,
    loss_and_gradients,
    make_arrays,
    make_batch,
    make_finetuned_text,
    parts_of,
)

from jaxrec.models.graph.sampling import edge_sampler
from jaxrec.models.recommender import Recommender, gap_buckets
from jaxrec.training.objective import finetuned_rows
from jaxrec.types import NO_GAP


def test_the_loss_is_the_weighted_sum_of_every_experts_parts():
    model = Recommender(replace(CONFIG.model, experts=("id", "text")), SIZES, nnx.Rngs(0))
    parts = parts_of(model, make_arrays(), make_batch())
    loss = parts.pop("loss")
    names = ("next_item", "first_item", "next_brand")
    assert set(parts) == {f"{name}/{expert}" for name in names for expert in (0, 1)}
    assert all(0 < value < 1e3 for value in parts.values())
    weights = {name: 1.0 if name.startswith("next_item") else 0.1 for name in parts}
    assert loss == pytest.approx(sum(weights[name] * parts[name] for name in parts), rel=1e-5)


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


def test_a_batch_without_targets_has_no_next_loss_and_finite_gradients(model):
    batch = make_batch()
    batch = replace(batch, weights=np.zeros_like(batch.weights))
    graphdef, params = nnx.split(model)
    arrays = make_arrays()
    parts = parts_of(model, arrays, batch)
    assert parts["next_item/0"] == parts["next_brand/0"] == 0
    _, gradients = loss_and_gradients(graphdef, params, arrays, batch)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


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


@pytest.mark.parametrize("count", [3, 7])
def test_only_a_sample_of_rows_is_encoded_again(tower, count):
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


def test_a_step_reads_a_sample_of_the_edges(model):
    """Brands have three items; with room for all of them, the sample is the graph."""
    arrays, batch = make_arrays(), make_batch()
    expected = parts_of(model, arrays, batch)
    graph = arrays.catalog.graph
    whole, few = (
        parts_of(model, replace(arrays, edge_sampler=edge_sampler(graph, count, 0)), batch)
        for count in (3, 1)
    )
    assert whole == pytest.approx(expected, rel=1e-5)
    assert few != pytest.approx(expected, rel=1e-3)
