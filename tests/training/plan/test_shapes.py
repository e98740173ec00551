"""The shapes of a plan are those of training."""

import jax
import pytest
from helpers.training import config

from jaxrec.config import PlanConfig, parse
from jaxrec.data.dataset import prepare
from jaxrec.errors import ConfigError, DataError
from jaxrec.training.context import make_context
from jaxrec.training.plan.shapes import batch_zeros, counted, plan_context, plan_experts


def layout(tree):
    """Structure, shapes and dtypes."""
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"train.link_weight": 0.5},
        {"evaluation.mask": ["none"]},
        {"model.min_events_for_id": 9},
        {"model.experts": ["id"], "train.link_weight": 0.5, "train.fan_out": 2},
    ],
    ids=str,
)
def test_counts_alone_give_the_arrays_of_training(tables, options):
    recipe = config(**options)
    dataset = prepare(recipe, tables)
    real = make_context(recipe, dataset)
    sizes = counted(dataset, recipe.model.min_events_for_id)
    planned = plan_context(recipe, sizes, real.mesh)
    assert planned.sizes == real.sizes
    assert planned.definition == real.definition
    assert layout(planned.arrays) == layout(real.arrays)
    batch = jax.eval_shape(lambda: batch_zeros(recipe))
    assert layout(batch) == layout(real.packing.batch(0, 0))


@pytest.mark.parametrize("links", [0.0, 0.5])
def test_planned_samplers_are_as_large_as_any_data_need(tables, links):
    options = {"train.loss": "sampled_softmax", "train.negatives": 4, "train.link_weight": links}
    recipe = config(**options, **{"train.fan_out": 2, "train.batch_size": 2})
    dataset = prepare(recipe, tables)
    real = make_context(recipe, dataset)
    planned, arrays = plan_context(recipe, counted(dataset), real.mesh).arrays, real.arrays
    for name in ("edge_sampler", "link_sampler", "item_sampler", "neighbourhoods"):
        parts = (jax.tree.leaves(getattr(part, name)) for part in (planned, arrays))
        assert all(bound.shape[0] >= array.shape[0] for bound, array in zip(*parts, strict=True))
    assert planned.item_sampler.size >= arrays.item_sampler.size
    for name in ("width", "num_edges"):
        assert getattr(planned.neighbourhoods, name) >= getattr(arrays.neighbourhoods, name)
    for bound, size in zip(planned.neighbourhoods.sizes, arrays.neighbourhoods.sizes, strict=True):
        assert bound >= size and bound.entities >= size.entities


def test_experts_without_a_source_are_left_out():
    recipe = parse(layers=[{"model.experts": ["id", "graph", "text"]}])
    assert plan_experts(recipe, PlanConfig(items=5)) == ("id", "text")
    assert plan_experts(recipe, PlanConfig(items=5, edges=3, relations=1)) == (
        "id",
        "graph",
        "text",
    )
    with pytest.raises(ConfigError, match="relations"):
        plan_experts(recipe, PlanConfig(items=5, edges=3))
    with pytest.raises(DataError, match="no source"):
        plan_experts(parse(layers=[{"model.experts": ["graph"]}]), PlanConfig(items=5))
    with pytest.raises(ConfigError, match="finetune"):
        plan_experts(parse(layers=[{"text.mode": "finetune"}]), PlanConfig(items=5))
