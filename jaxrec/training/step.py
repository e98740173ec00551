"""The training step: what it changes, and how.

A machine that has JAX, Flax, optax and jraph can run it; the tables that it learns from are read
elsewhere.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxrec.config.options import Config
from jaxrec.models.forms import chosen_forms
from jaxrec.models.graph.link_sampling import Links
from jaxrec.models.inputs import NodeVectors
from jaxrec.models.recommender import ModelDef, Recommender, cast_products
from jaxrec.partitioning import each_device, shards
from jaxrec.sharding import ITEMS, USERS
from jaxrec.training.finite import NOT_FINITE, first_not_finite
from jaxrec.training.micro_batches import WHOLE_BATCH, MicroBatch
from jaxrec.training.objective import (
    Losses,
    StepInputs,
    draw_items,
    encode_nodes,
    expert_batches,
    objective,
    task_losses,
    total_weights,
)
from jaxrec.training.sparse_rows import places_of_ids, rows_of, with_rows
from jaxrec.training.tasks.base import TrainArrays
from jaxrec.types import Batch

ITEM_DRAWS = 0x6974656D  # of the random numbers that the items of a step are drawn with


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that training changes."""

    step: Int[Array, ""]  # finished steps of the whole run
    params: nnx.State
    opt_state: optax.OptState
    text: Float[Array, "I text"]  # whitened text vectors of the items


def build_step(
    config: Config, definition: ModelDef, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, TrainArrays, Batch], Any]:
    """The step `(state, arrays, batch) -> (state, metrics)`, to be jitted.

    All randomness depends on the seed and the number of the step.
    """
    train, finetune_items = config.train, config.text.finetune_items
    dtype = jnp.bfloat16 if train.bf16 else jnp.float32

    def step(state: TrainState, arrays: TrainArrays, batch: Batch):
        key = jax.random.fold_in(jax.random.key(train.seed), state.step)
        items = draw_items(arrays, batch, jax.random.fold_in(key, ITEM_DRAWS))
        params, opt_state = state.params, state.opt_state
        ids = None
        if train.sparse_rows and items is not None:
            ids = items.ids
            params, opt_state = rows_of((params, opt_state), ids)
            items = replace(items, ids=places_of_ids(ids), own_ids=True)
        inputs = StepInputs(arrays, state.text, batch, key, items, finetune_items)
        (loss, parts), gradients = losses_and_gradients(
            lambda params: definition.merge(cast_products(params, dtype)),
            params,
            inputs,
            train.accumulate,
        )
        norm = optax.tree.norm(gradients)
        not_finite = first_not_finite(loss, norm, params, gradients)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        params = optax.apply_updates(params, updates)
        if ids is not None:
            whole = (state.params, state.opt_state)
            params, opt_state = with_rows(whole, ids, (params, opt_state))
        metrics = {"loss": loss, "gradient_norm": norm, NOT_FINITE: not_finite, **parts}
        return TrainState(state.step + 1, params, opt_state, state.text), metrics

    return step


def losses_and_gradients(
    model_of: Callable[[nnx.State], Recommender], params: nnx.State, inputs: StepInputs, parts: int
) -> tuple[Losses, nnx.State]:
    """The loss of a batch, its parts by task, and the gradient, with which everything is float32.

    Args:
        model_of: the model of parameters, which may round them.
        parts: micro-batches that the batch is read in. The nodes are encoded once for all of them.
    """
    as_one = _adds_up_as_one(len(inputs.batch.items), parts)
    if parts == 1 and not as_one:
        return jax.value_and_grad(lambda p: objective(model_of(p), inputs), has_aux=True)(params)
    vectors, gradient_of_nodes, links = jax.vjp(
        lambda params: encode_nodes(model_of(params), inputs), params, has_aux=True
    )
    batch, *rest = inputs.batch, inputs.arrays, inputs.text, inputs.key, inputs.items
    read = ((params, vectors), links, total_weights(inputs, len(vectors)), rest)

    def of_rows(part: MicroBatch, batch: Batch, *read: Any) -> Any:
        return gradients_of_rows(model_of, part, batch, *read)

    if as_one:
        sums = each_device(partial(of_rows, WHOLE_BATCH))(batch, *read)
    else:
        sums = sum_of_parts(lambda part: of_rows(part, batch, *read), parts)
    value, (gradients, of_vectors) = sums
    return value, jax.tree.map(jnp.add, gradients, gradient_of_nodes(of_vectors)[0])


def _adds_up_as_one(rows: int, parts: int) -> bool:
    """Whether each device computes the gradient of its rows, and one message adds them up."""
    devices = shards(USERS)
    fits = shards(ITEMS) == 1 < devices and rows % devices == 0 and parts == 1
    return fits and chosen_forms().gradients_as_one


def gradients_of_rows(
    model_of: Callable[[nnx.State], Recommender],
    part: MicroBatch,
    batch: Batch,
    changed: tuple[nnx.State, tuple[NodeVectors, ...]],
    links: tuple[Links | None, ...],
    totals: list[dict[str, Float[Array, ""]]],
    rest: list[Any],
) -> tuple[Losses, tuple[nnx.State, tuple[NodeVectors, ...]]]:
    """What a part of the rows of a batch adds to the losses and to their gradients.

    Args:
        changed: parameters and vectors of nodes, which have gradients.
        rest: the other fields of `StepInputs`.
    """
    arrays, text, key, items = rest
    inputs = StepInputs(arrays, text, batch, key, items)

    def losses(changed: tuple[nnx.State, tuple[NodeVectors, ...]]) -> Losses:
        params, vectors = changed
        batches = expert_batches(model_of(params), vectors, links, inputs, part, totals)
        return task_losses(batches)

    return jax.value_and_grad(losses, has_aux=True)(changed)


def sum_of_parts(gradients_of: Callable[[MicroBatch], Any], count: int) -> Any:
    """The sum over `count` micro-batches, which are read one after another."""

    def add_part(sums: Any, number: Int[Array, ""]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, gradients_of(MicroBatch(number, count))), None

    numbers = jnp.arange(count)
    shapes = jax.eval_shape(lambda number: gradients_of(MicroBatch(number, count)), numbers[0])
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(add_part, zeros, numbers)[0]
