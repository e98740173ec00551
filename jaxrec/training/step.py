"""The training step: what it changes, and how.

A machine that has JAX, Flax, optax and jraph can run it; the tables that it learns from are read
elsewhere.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxrec.config.options import Config
from jaxrec.models.inputs import NodeVectors
from jaxrec.models.recommender import ModelDef, Recommender, cast_products
from jaxrec.training.finite import NOT_FINITE, first_not_finite
from jaxrec.training.micro_batches import MicroBatch
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

ITEMS = 0x6974656D  # of the random numbers that the items of a step are drawn with


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
        items = draw_items(arrays, batch, jax.random.fold_in(key, ITEMS))
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
    if parts == 1:
        return jax.value_and_grad(lambda p: objective(model_of(p), inputs), has_aux=True)(params)

    def gradients_of(number: Int[Array, ""]) -> Any:
        def losses(params: nnx.State, vectors: tuple[NodeVectors, ...]) -> Losses:
            part = MicroBatch(number, parts)
            model = model_of(params)
            return task_losses(expert_batches(model, vectors, links, inputs, part, totals))

        return jax.value_and_grad(losses, argnums=(0, 1), has_aux=True)(params, vectors)

    def add_part(sums: Any, number: Int[Array, ""]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, gradients_of(number)), None

    vectors, gradient_of_nodes, links = jax.vjp(
        lambda params: encode_nodes(model_of(params), inputs), params, has_aux=True
    )
    totals = total_weights(inputs, len(vectors))
    numbers = jnp.arange(parts)
    shapes = jax.eval_shape(gradients_of, numbers[0])
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    (value, (gradients, of_vectors)), _ = jax.lax.scan(add_part, zeros, numbers)
    return value, jax.tree.map(jnp.add, gradients, gradient_of_nodes(of_vectors)[0])
