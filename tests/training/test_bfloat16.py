"""With `train.bf16`, products read bfloat16; parameters, gradients and moments stay float32."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from helpers.paths import GOLDEN
from helpers.training import config

from jaxrec.data.dataset import prepare
from jaxrec.training.context import make_context
from jaxrec.training.state import state_layout
from jaxrec.training.step import build_step

ALL_TASKS = {"train.link_weight": 0.5, "train.masked_item_weight": 0.5}


def equations(jaxpr) -> Iterator[Any]:
    """Those of a program and of all programs inside of it."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


@pytest.mark.parametrize(
    "options",
    [
        ALL_TASKS,
        pytest.param(
            {
                "model.sequence": "transformer",
                "model.graph_layer": "transformer",
                "model.context": "after",
                "train.accumulate": 2,
            },
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"model.sequence": "gru", "model.graph_layer": "sage"}, marks=pytest.mark.slow
        ),
        pytest.param({"model.sequence": "lru", "train.sparse_rows": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_products_read_bfloat16_and_the_state_stays_float32(tables, options):
    if "train.sparse_rows" in options:
        options = {"train.loss": "sampled_softmax", "train.fan_out": 2} | options
    experts = {"model.experts": ["id+text+graph"], "text.pretrained": str(GOLDEN / "tiny_bert")}
    recipe = config(**experts, **{"train.bf16": True}, **options)
    context = make_context(recipe, prepare(recipe, tables))
    step = build_step(context.config, context.definition, context.optimizer)
    before, batch = state_layout(context)[0], context.packing.batch(0, 0)
    program, (after, metrics) = jax.make_jaxpr(step, return_shape=True)(
        before, context.arrays, batch
    )
    products = [op for op in equations(program.jaxpr) if op.primitive.name == "dot_general"]
    assert len(products) > 40
    # the gradient of a float32 result, such as logits, is float32 beside the bfloat16 operand
    dtypes = [{operand.aval.dtype.name for operand in op.invars} for op in products]
    assert [kinds for kinds in dtypes if "bfloat16" not in kinds] == []
    assert sum(kinds == {"bfloat16"} for kinds in dtypes) > 0.9 * len(products)
    layout = [
        {leaf.dtype for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)}
        for tree in (before.params, before.opt_state, after.params, after.opt_state, metrics)
    ]
    assert layout == [{jnp.dtype(jnp.float32)}] * 5
