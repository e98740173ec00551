"""The programs of training and scoring, lowered for a mesh from shapes alone."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from jaxrec.config import PlanConfig
from jaxrec.inference.encoding import (
    CatalogArrays,
    encode_catalog,
    initial_states,
    user_vectors,
)
from jaxrec.models.recommender import REPEAT_EVENTS, Model
from jaxrec.partitioning import on_mesh
from jaxrec.ranking.adjustments import exclude
from jaxrec.ranking.shard import BlockInputs, RankOptions, compiled_ranking
from jaxrec.ranking.top_k import MIN_PAIRS, block_rows, power_of_two
from jaxrec.sharding import (
    USERS,
    by_item,
    laid_out,
    replicated,
    shardings,
    without_rows_by_item,
)
from jaxrec.training.context import StepContext
from jaxrec.training.loop import make_train_step
from jaxrec.training.plan.shapes import batch_zeros, rows_of
from jaxrec.training.state import state_layout
from jaxrec.training.step import TrainState
from jaxrec.types import ANY_EVENT_TYPE

BLOCK = 4096  # users that `jaxrec recommend` reads at a time


@dataclass(frozen=True)
class Program:
    """A lowered program and what lies in the memory of a device while it runs.

    Attributes:
        parts: trees of shapes with shardings, by what they are.
        unused: those of them that are no arguments of the compiled program.
        rows: events (training) or users (scoring) of one call.
    """

    name: str
    lowered: jax.stages.Lowered
    parts: Mapping[str, Any]
    unused: Any
    rows: int = 0


def train_step(context: StepContext) -> Program:
    """The training step."""
    state = laid_out(*state_layout(context))
    arrays = laid_out(context.arrays, shardings(context.arrays, context.mesh))
    by_user = NamedSharding(context.mesh, PartitionSpec(USERS))
    batch = laid_out(jax.eval_shape(lambda: batch_zeros(context.config)), by_user)
    train = context.config.train
    step: Any = make_train_step(context)  # jitted, so it can be lowered
    return Program(
        "train step",
        step.lower(state, arrays, batch),
        parts={
            "parameters": state.params,
            "optimiser state": state.opt_state,
            "items and graph": (state.text, arrays),
            "batch": batch,
        },
        unused=(),
        rows=train.batch_size * train.sequence_length,
    )


def catalogue_encoding(context: StepContext) -> Program:
    """The vectors of all nodes, which validation needs after every epoch."""
    state = laid_out(*state_layout(context))
    arrays = laid_out(context.arrays, shardings(context.arrays, context.mesh))
    model = Model(context.definition, state.params)
    encode = jax.jit(encode_with_texts, keep_unused=True)
    with on_mesh(context.mesh):
        lowered = encode.lower(model, state.text, arrays.catalog)
    return Program(
        "encode items",
        lowered,
        parts={
            "parameters": state.params,
            "optimiser state": state.opt_state,
            "items and graph": (state.text, arrays),
        },
        unused=(
            (state.opt_state, arrays.tasks),
            (arrays.edge_sampler, arrays.link_sampler),
        ),
    )


def encode_with_texts(
    model: Model, text: Float[Array, "I text"], arrays: CatalogArrays
) -> Float[Array, "N F"]:
    """Vectors of all nodes of a catalogue whose texts the state of a training has."""
    return encode_catalog(model, replace(arrays, nodes=replace(arrays.nodes, text=text)))


def scoring(context: StepContext, plan: PlanConfig, k: int) -> Program:
    """User vectors of a block of states, and their k best items."""
    shapes, places = state_layout(context)
    model = Model(context.definition, laid_out(shapes.params, places.params))
    nodes = _node_vectors(context, shapes)
    ranking = lower_ranking(model, context.mesh, nodes.shape[1], plan, k)
    held = laid_out((nodes, shapes.text), by_item(context.mesh))
    return Program(
        "score users",
        ranking.lowered,
        parts={
            "parameters": model.params,
            "items and graph": (ranking.table, held),
            "batch": ranking.batch,
        },
        unused=held,
        rows=ranking.rows,
    )


def validation(context: StepContext, mesh: Mesh, plan: PlanConfig, k: int) -> Program:
    """As `scoring`, on the devices of one process beside the state of the training.

    Args:
        mesh: of these devices; that of the context if there is one process.
    """
    shapes, places = state_layout(context)
    state, alone = laid_out(shapes, places), mesh.size == context.mesh.size
    params = state.params
    if not alone:
        own = without_rows_by_item(shapes.params)
        params = laid_out(own, shardings(own, mesh))
    width = _node_vectors(context, shapes).shape[1]
    ranking = lower_ranking(Model(context.definition, params), mesh, width, plan, k)
    arrays = laid_out(context.arrays, shardings(context.arrays, context.mesh))
    table = jax.ShapeDtypeStruct((context.sizes.num_items, width), jnp.float32)
    held = state.text, arrays, laid_out(table, by_item(mesh))
    trained = () if alone else state.params
    return Program(
        "validate",
        ranking.lowered,
        parts={
            "parameters": (params, trained),
            "optimiser state": state.opt_state,
            "items and graph": (ranking.table, held),
            "batch": ranking.batch,
        },
        unused=(trained, state.opt_state, held),
        rows=ranking.rows,
    )


def _node_vectors(context: StepContext, state: TrainState) -> jax.ShapeDtypeStruct:
    model = Model(context.definition, state.params)
    return jax.eval_shape(encode_with_texts, model, state.text, context.arrays.catalog)


@dataclass(frozen=True)
class LoweredRanking:
    """A lowered ranking, and the shapes of what it takes beside the model."""

    lowered: jax.stages.Lowered
    table: Any
    batch: Any
    rows: int  # users of a block


def lower_ranking(model: Model, mesh: Mesh, width: int, plan: PlanConfig, k: int) -> LoweredRanking:
    """User vectors of a block of states, and their k best items, lowered for a mesh.

    A state is already up to date with its user's events. The items of up to `REPEAT_EVENTS` events
    of every user are left out or raised.

    Args:
        width: of the vectors of items.
    """
    num_items, layout = rows_of(plan.items), by_item(mesh)
    rows = block_rows(min(max(plan.users, 1), BLOCK), num_items, mesh, None)
    events = min(REPEAT_EVENTS, -(-plan.events // max(plan.users, 1)))
    states = laid_out(jax.eval_shape(lambda m: initial_states(m, rows), model), replicated(mesh))
    numbers = np.zeros(power_of_two(rows * events, MIN_PAIRS), np.int32)
    pairs = laid_out(exclude(numbers, numbers), replicated(mesh))
    table = jax.ShapeDtypeStruct((num_items, width + 1), jnp.float32, sharding=layout)
    valid = jax.ShapeDtypeStruct((num_items,), bool, sharding=layout)
    rank = compiled_ranking(mesh, RankOptions(k))

    def score(model, states, table, valid, pairs):
        queries = user_vectors(model, states, ANY_EVENT_TYPE)
        queries = jnp.pad(queries, ((0, 0), (0, 1)), constant_values=1)  # meets the bias
        return rank(queries, table, valid, BlockInputs(pairs))

    lowered = jax.jit(score, keep_unused=True).lower(model, states, table, valid, pairs)
    return LoweredRanking(lowered, (table, valid), (states, pairs), rows)
