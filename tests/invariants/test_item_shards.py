"""Devices along `items`: each has its share of the items, and no program gathers all of them."""

import math
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import polars as pl
import pytest
from flax import nnx
from helpers.graph import EDGES, NODES, make_graph
from helpers.paths import GOLDEN
from helpers.training import config

from jaxrec.data.dataset import prepare
from jaxrec.inference.encoding import encode_catalog
from jaxrec.models.graph import message_passing
from jaxrec.models.graph.neighbourhoods import Counts, neighbourhood_sampler
from jaxrec.models.graph.sampling import edge_sampler
from jaxrec.models.recommender import Model
from jaxrec.partitioning import on_mesh
from jaxrec.sharding import make_mesh, replicated
from jaxrec.training.context import TrainContext, make_context
from jaxrec.training.loop import make_train_step
from jaxrec.training.losses.base import LogitAdjustments
from jaxrec.training.losses.by_shop import ShopLoss
from jaxrec.training.losses.full_softmax import FullSoftmax
from jaxrec.training.plan.hlo import COLLECTIVES, Instruction, executed, read_computations
from jaxrec.training.prefetch import prefetch
from jaxrec.training.state import initial_state
from jaxrec.types import NEG_INF

MESHES = [1, 2, 4]  # devices along `items`, of four
ROWS, LENGTH, CANDIDATES, WIDTH = 4, 6, 13, 8


def on(mesh, function, *arguments):
    """The results of a function that is traced for a mesh."""

    def traced(*arguments):
        with on_mesh(mesh):
            return function(*arguments)

    return jax.jit(traced)(*jax.device_put(arguments, replicated(mesh)))


@pytest.mark.parametrize("item_shards", MESHES)
@pytest.mark.parametrize("loss", [FullSoftmax(16, 1), ShopLoss(FullSoftmax(16, 1), (0, 6))])
def test_the_loss_and_its_gradients_are_those_of_one_device(loss, item_shards):
    """With amounts, masks, a bias, padding, and candidates that the devices do not divide.

    The loss of several shops has no bias, as it takes no sample of the items.
    """
    random = np.random.default_rng(0)
    queries, candidates, bias = (
        jnp.asarray(random.normal(size=shape), jnp.float32)
        for shape in ((ROWS, LENGTH, WIDTH), (CANDIDATES, WIDTH), (CANDIDATES,))
    )
    targets = jnp.asarray(random.integers(1, CANDIDATES - 1, (ROWS, LENGTH)))
    weights = jnp.asarray(random.uniform(0.5, 2, (ROWS, LENGTH)), jnp.float32).at[0, -1].set(0)
    adjusted = jnp.asarray(random.integers(1, CANDIDATES, (ROWS, LENGTH, 3)))
    amounts = jnp.asarray(random.normal(size=adjusted.shape), jnp.float32)
    masked = (jnp.arange(3) == 1)[None, None] & (adjusted != targets[..., None])
    amounts = jnp.where(masked, NEG_INF, amounts)
    valid = (jnp.arange(CANDIDATES) > 0) & (jnp.arange(CANDIDATES) < CANDIDATES - 1)

    def value(queries, candidates, amounts):
        own_bias = bias if isinstance(loss, FullSoftmax) else None
        adjustments = LogitAdjustments(adjusted, amounts, own_bias)
        return loss(queries, candidates, targets, weights, valid, adjustments)

    both = jax.value_and_grad(value, (0, 1, 2))
    expected = both(queries, candidates, amounts)
    actual = on(make_mesh(item_shards), both, queries, candidates, amounts)
    for own, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("item_shards", MESHES[1:])
def test_neighbourhoods_are_those_of_one_device(item_shards):
    """Of twelve edges, which lie along `items`."""
    graph = make_graph(EDGES, 4)
    edges = edge_sampler(graph, 1, 0)
    around = neighbourhood_sampler(
        graph,
        edges,
        entities=np.zeros(0, int),
        num_items=3,
        num_nodes=NODES,
        hops=2,
        start=Counts(1, 1),
    )

    def draw(graph, edges):
        return around.sample(graph, edges, jnp.array([1]), jnp.array([4]), jax.random.key(0))

    own = on(make_mesh(item_shards), draw, graph, edges)
    jax.tree.map(np.testing.assert_array_equal, own, draw(graph, edges))


@pytest.mark.parametrize("aggregate", ["sum", "mean", "max", "attention"])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_edges_that_devices_divide_give_the_same_messages(aggregate, is_weighted, monkeypatch):
    """Of twelve edges for four devices, three blocks of which the last is not full."""
    monkeypatch.setattr(message_passing, "edges_at_a_time", lambda: 5)
    graph = make_graph(EDGES, 4)
    if is_weighted:
        weights = jnp.linspace(0, 2, len(graph.receivers))
        graph = graph._replace(edges=message_passing.WeightedEdges(graph.edges, weights))
    nodes = jax.random.normal(jax.random.key(0), (NODES, 2, WIDTH))

    def message(relations, senders):
        factors = 1 + relations.reshape(-1, *[1] * (senders.ndim - 1))
        return (factors * senders,) * 2 if aggregate == "attention" else factors * senders

    def encode(nodes, graph):
        graph = message_passing.divided(graph)
        if aggregate == "attention":
            return message_passing.attend(nodes, nodes, graph, message=message)
        return message_passing.message_passing(
            nodes.reshape(NODES, -1),
            graph,
            message=message,
            update=jnp.add,
            aggregate=aggregate,
        )

    own = on(make_mesh(4), encode, nodes, graph)
    np.testing.assert_allclose(own, encode(nodes, graph), rtol=1e-5, atol=1e-6)


@pytest.mark.thorough
def test_the_encoding_of_items_gathers_no_edges(tables, monkeypatch):
    """Devices look up blocks of them."""
    monkeypatch.setattr(message_passing, "edges_at_a_time", lambda: 64)
    recipe = config(**{"model.experts": ["id+graph"], "train.item_shards": 4})
    context = make_context(recipe, prepare(recipe, tables))
    arrays = context.arrays.catalog
    model = Model(context.definition, initial_state(context).params)
    with on_mesh(context.mesh):
        compiled = encode_catalog.lower(model, arrays).compile()
    moved = [
        (op.opcode, shape.dims)
        for op in executed(read_computations(compiled.as_text()), "ENTRY")
        for shape in op.outputs
        if op.opcode in COLLECTIVES and shape.dtype == "s32"
    ]
    assert moved
    assert all(math.prod(dims) < len(arrays.graph.receivers) for _, dims in moved), moved


class Trained(NamedTuple):
    """What some steps of training did, and the instructions of the compiled step."""

    context: TrainContext
    metrics: list[dict[str, float]]
    params: nnx.State
    program: list[Instruction]


def trained(tables, item_shards, devices=4, **options) -> Trained:
    """Three steps of gradient descent, which does not divide gradients as Adam does.

    The experts are of all kinds, over 30 items of 256 rows and three times as many rows of other
    nodes. The loss has several blocks.
    """
    options = {"model.experts": ["id", "id+text+graph"], "train.item_shards": item_shards} | options
    recipe = config(**{"text.pretrained": str(GOLDEN / "tiny_bert")}, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FullSoftmax, "positions_per_block", lambda self, count: 16)
        patch.setattr(
            "jaxrec.training.context.make_mesh",
            lambda shards: make_mesh(shards, jax.devices()[:devices]),
        )
        context = make_context(recipe, prepare(recipe, tables))
        context = replace(context, optimizer=optax.sgd(0.1))
        state, arrays, metrics = initial_state(context), context.arrays, []
        batches = [batch for batch, _ in prefetch(context, 0, range(3))]
        step = make_train_step(context).lower(state, arrays, batches[0]).compile()
    for batch in batches:
        state, values = step(state, arrays, batch)
        metrics.append({name: float(value) for name, value in values.items()})
    program = list(executed(read_computations(step.as_text()), "ENTRY"))
    return Trained(context, metrics, state.params, program)


def check_loops(program):
    """No collective is inside of a loop."""
    assert any(op.loop for op in program)
    assert [op.text for op in program if op.opcode in COLLECTIVES and op.loop] == []


def check_program(context, program):
    """No collective moves a table or all item vectors, and none is inside of a loop."""
    check_loops(program)
    shards, width = context.mesh.shape["items"], context.config.model.hidden_size
    transfers = [op for op in program if op.opcode in COLLECTIVES]
    assert any(op.opcode == "all-reduce" for op in transfers)
    moved = dict.fromkeys(COLLECTIVES, 0)
    for op in transfers:
        moved[op.opcode] = max(moved[op.opcode], *(s.size for s in (*op.operands, *op.outputs)))
    # a device exchanges columns of its rows for rows of its columns
    assert moved.pop("all-to-all") <= context.sizes.num_nodes * width * 4 // shards
    assert max(moved.values()) <= context.sizes.num_items * width * 4 // shards, moved


def check_updates(actual, expected):
    for own, other in zip(actual.metrics, expected.metrics, strict=True):
        assert own == pytest.approx(other, rel=1e-5)
    pairs = (jax.tree.leaves(part.params) for part in (actual, expected))
    for own, other in zip(*pairs, strict=True):
        np.testing.assert_allclose(own, other, atol=1e-5)


@pytest.fixture(scope="module")
def on_one_device(tables):
    return trained(tables, 1, devices=1)


@pytest.fixture(scope="module")
def on_two_by_two(tables):
    return trained(tables, 2)


@pytest.mark.thorough
def test_no_step_gathers_a_table_or_all_item_vectors(on_two_by_two):
    """Neither in the forward pass nor for gradients."""
    check_program(on_two_by_two.context, on_two_by_two.program)


@pytest.mark.thorough
def test_four_devices_learn_what_one_learns(on_two_by_two, on_one_device):
    assert len(on_one_device.metrics) == 3
    check_updates(on_two_by_two, on_one_device)


@pytest.mark.slow
@pytest.mark.parametrize("item_shards", [1, 4])
def test_they_learn_the_same_on_any_mesh(tables, on_one_device, item_shards):
    own = trained(tables, item_shards)
    check_updates(own, on_one_device)
    if item_shards > 1:
        check_program(own.context, own.program)


SAMPLED = {"train.loss": "sampled_softmax", "train.negatives": 4, "train.fan_out": 2}


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"train.link_weight": 0.5, "model.graph_layer": "sage", "model.aggregate": "max"},
        {"model.graph_layer": "transformer", "train.masked_item_weight": 0.5},
        {"model.graph_layer": "residual", "model.num_graph_layers": 2, "train.fan_out": 2},
    ],
    ids=str,
)
def test_other_models_learn_the_same_without_gathering(tables, options):
    own, one = trained(tables, 2, **options), trained(tables, 1, devices=1, **options)
    check_updates(own, one)
    check_program(own.context, own.program)
    check_updates(trained(tables, 1, **options), one)


@pytest.mark.slow
@pytest.mark.parametrize("sparse_rows", [False, True])
def test_samples_of_the_items_train_the_same(tables, sparse_rows):
    """The sample is all items here, so that only loops are looked at."""
    options = SAMPLED | {"train.sparse_rows": sparse_rows}
    own, one = trained(tables, 2, **options), trained(tables, 1, devices=1, **options)
    check_updates(own, one)
    check_loops(own.program)


@pytest.mark.slow
@pytest.mark.parametrize("sparse_rows", [False, True])
def test_a_step_of_a_sample_gathers_no_table(tables, sparse_rows):
    """Of 2,000 items, of which a step takes 256: less than the share of a device."""
    names = [f"other{number}" for number in range(2000)]
    others = pl.DataFrame({"item_id": names, "title": names, "brand": names})
    items = pl.concat([tables.items, others], how="diagonal")
    options = {**SAMPLED, "train.auxiliary": [], "train.sparse_rows": sparse_rows}
    own = trained(replace(tables, items=items), 2, **options)
    assert own.context.arrays.item_sampler.size < own.context.sizes.num_items // 2
    check_loops(own.program)
    transfers = [op for op in own.program if op.opcode in COLLECTIVES]
    largest = max(shape.size for op in transfers for shape in (*op.operands, *op.outputs))
    table = own.context.sizes.num_items * own.context.config.model.hidden_size * 4
    assert largest < table // 2


@pytest.mark.slow
@pytest.mark.parametrize("sequence", ["lru", "transformer", "rnn"])
def test_no_loop_of_other_sequence_encoders_waits_for_devices(tables, sequence):
    check_loops(trained(tables, 2, **{"model.sequence": sequence}).program)
