"""The state that training changes: how it begins, and how it lies on a mesh."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jraph
from flax import nnx
from jaxtyping import Array, Float

from jaxrec.inference.encoding import encode_catalog
from jaxrec.models.build import build_model
from jaxrec.models.graph.link_sampling import LinkSampler, held_out_edges
from jaxrec.models.recommender import Model
from jaxrec.models.text.finetuned import FinetunedText
from jaxrec.partitioning import cut_rows, on_mesh
from jaxrec.sharding import process_copy, put, rows_by_item, shardings, without_rows_by_item
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


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EncodedState(TrainState):
    """A state on the devices of one process, which all processes have encoded the catalogue of.

    It has no optimizer state, no texts and no rows of tables: together they may be larger than the
    memory of the process's devices.
    """

    vectors: Float[Array, "rows F"]  # of all nodes if the run trains a decoder, else of the items
    without_links: Float[Array, "N F"] | None  # see `vectors_without_links`


def process_local(context: TrainContext, state: TrainState) -> tuple[TrainContext, TrainState]:
    """A context and a state on this process's devices alone, for work that no other takes part in.

    All processes must call it at the same time, and encode the catalogue together. A single process
    gets what it gives.
    """
    if jax.process_count() == 1:
        return context, state
    state = replace(state, opt_state=())
    if context.shops:  # each process takes the rows of every shop from the whole tables
        return context.on_process, process_copy(state, context.mesh)
    unseen = vectors_without_links(context, state)
    vectors = catalog_vectors(context, state)
    if not context.config.forecast.steps:
        with on_mesh(context.mesh):
            vectors = cut_rows(vectors, 0, context.sizes.num_items)
    small = process_copy(without_rows_by_item(state), context.mesh)
    vectors, unseen = process_copy((vectors, unseen), context.mesh, rows_by_item)
    return context.on_process, EncodedState(**vars(small), vectors=vectors, without_links=unseen)


def text_on_process(
    context: TrainContext, state: TrainState
) -> tuple[TrainState, FinetunedText | None]:
    """The texts and the text encoder of a state on this process's devices, and what it reads.

    The state has no optimizer state and no rows of tables. All processes must call it at the same
    time.
    """
    small = replace(state, params=without_rows_by_item(state.params), opt_state=())
    parts = small, context.arrays.finetuned_text
    return parts if jax.process_count() == 1 else process_copy(parts, context.mesh)


def catalog_vectors(context: TrainContext, state: TrainState) -> Float[Array, "N F"]:
    """Vectors of all nodes under a state, by row on the mesh of the context.

    An `EncodedState` may have those of the items alone.
    """
    if isinstance(state, EncodedState):
        return state.vectors
    return _encode(context, state, context.arrays.catalog.graph)


def vectors_without_links(context: TrainContext, state: TrainState) -> Float[Array, "N F"] | None:
    """Vectors of all nodes that do not know of the held-out edges; None without such edges."""
    if isinstance(state, EncodedState):
        return state.without_links
    sampler, seed = context.arrays.link_sampler, context.config.train.seed
    if sampler is None or not held_out_edges(context.dataset.catalog.graph, seed).size:
        return None
    return _encode(context, state, _without_held_out(sampler, context.arrays.catalog.graph))


@jax.jit
def _without_held_out(sampler: LinkSampler, graph: jraph.GraphsTuple) -> jraph.GraphsTuple:
    return sampler.visible(graph, sampler.held_out)


def _encode(
    context: TrainContext, state: TrainState, graph: jraph.GraphsTuple
) -> Float[Array, "N F"]:
    nodes = replace(context.arrays.catalog.nodes, text=state.text)
    arrays = replace(context.arrays.catalog, nodes=nodes, graph=graph)
    with on_mesh(context.mesh):
        return encode_catalog(Model(context.definition, state.params), arrays)
