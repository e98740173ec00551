"""The state that training changes: how it begins, and how it lies on a mesh."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxrec.inference.encoding import encode_catalog
from jaxrec.models.build import build_model
from jaxrec.models.recommender import Model
from jaxrec.partitioning import on_mesh
from jaxrec.sharding import process_copy, put, shardings
from jaxrec.training.context import StepContext, TrainContext
from jaxrec.training.step import TrainState


def initial_state(context: TrainContext) -> TrainState:
    """The state before the first step, laid out on the mesh."""
    return begin(context, partial(new_state, context))


def begin(context: TrainContext, build: Callable[..., TrainState], *arguments: Any) -> TrainState:
    """The state that `build(text, *arguments)` makes, laid out on the mesh."""
    layout = state_layout(context)[1]
    text = put(context.padded_text, layout.text)
    return jax.jit(build, donate_argnums=0, out_shardings=layout)(text, *arguments)


def state_layout(context: StepContext) -> tuple[TrainState, TrainState]:
    """Shapes and shardings of a train state."""
    sizes = context.sizes
    text = jax.ShapeDtypeStruct((sizes.num_items, sizes.text_width), jnp.float32)
    shapes = jax.eval_shape(partial(new_state, context), text)
    return shapes, shardings(shapes, context.mesh)


def new_state(context: StepContext, text: Float[Array, "I text"]) -> TrainState:
    """The state before the first step, for `jax.jit` and `jax.eval_shape`."""
    model = build_model(context.config, context.sizes, context.tower)
    params = nnx.state(model)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=context.optimizer.init(params),
        text=text,
    )


def process_local(context: TrainContext, state: TrainState) -> tuple[TrainContext, TrainState]:
    """A context and a state on this process's devices alone, for work that no other takes part in.

    The state has no optimizer state then. All processes must call it at the same time. A single
    process gets what it gives.
    """
    if jax.process_count() == 1:
        return context, state
    return context.on_process, process_copy(replace(state, opt_state=()), context.mesh)


def catalog_vectors(context: TrainContext, state: TrainState) -> Float[Array, "N F"]:
    """Vectors of all nodes under a state, by row on the mesh of the context."""
    nodes = replace(context.arrays.catalog.nodes, text=state.text)
    arrays = replace(context.arrays.catalog, nodes=nodes)
    with on_mesh(context.mesh):
        return encode_catalog(Model(context.definition, state.params), arrays)
