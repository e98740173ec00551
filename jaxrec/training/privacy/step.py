"""The training step whose gradients are clipped user by user and get noise."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxrec.config.options import Config
from jaxrec.models.recommender import ModelDef, cast_products
from jaxrec.training.finite import NOT_FINITE, first_not_finite
from jaxrec.training.objective import StepInputs, objective
from jaxrec.training.privacy.budget import Budget
from jaxrec.training.step import TrainState
from jaxrec.training.tasks.base import TrainArrays
from jaxrec.types import Batch


def build_private_step(
    config: Config,
    definition: ModelDef,
    optimizer: optax.GradientTransformation,
    budget: Budget,
    microbatch: int,
) -> Callable[[TrainState, TrainArrays, Batch], Any]:
    """The step `(state, arrays, batch) -> (state, metrics)`, to be jitted; a row is one user.

    The gradient of every user's own loss is clipped to `budget.clip`. Their sum gets Gaussian noise
    and is divided by the expected number of users, a constant. The optimizer sees nothing else. All
    users share the dropout of a step, so the items are encoded once. The metrics have no noise.

    Args:
        microbatch: users whose gradients are in memory at a time.
    """
    from jax_privacy.clipping import clipped_grad
    from jax_privacy.noise_addition import gaussian_privatizer

    train = config.train
    dtype = jnp.bfloat16 if train.bf16 else jnp.float32

    def step(state: TrainState, arrays: TrainArrays, batch: Batch):
        key = jax.random.fold_in(jax.random.key(train.seed), state.step)

        def loss_of(params: nnx.State, user: Batch):
            model = definition.merge(cast_products(params, dtype))
            return objective(model, StepInputs(arrays, state.text, user, key))

        gradient_of = clipped_grad(
            loss_of,
            has_aux=True,
            l2_clip_norm=budget.clip,
            normalize_by=float(budget.mean_users),
            return_values=True,
            return_grad_norms=True,
            microbatch_size=microbatch,
        )
        absent = ~jnp.asarray(batch.starts)[:, 0]
        clipped, of_users = gradient_of(state.params, batch, is_padding_example=absent)
        assert arrays.noise_key is not None  # a private run has one
        noise = gaussian_privatizer(
            stddev=budget.noise_multiplier * gradient_of.sensitivity(),
            prng_key=jax.random.fold_in(jax.random.wrap_key_data(arrays.noise_key), state.step),
        )
        gradient, _ = noise.update(clipped, noise.init(clipped))
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = _mean_metrics(of_users, absent, budget.clip)
        loss, norm = metrics["loss"], optax.tree.norm(gradient)
        not_finite = first_not_finite(loss, norm, state.params, gradient)
        metrics |= {"gradient_norm": norm, NOT_FINITE: not_finite}
        return TrainState(state.step + 1, params, opt_state, state.text), metrics

    return step


def _mean_metrics(of_users: Any, absent: Bool[Array, " B"], clip: float) -> dict[str, Array]:
    """The metrics of a batch, without noise.

    Args:
        of_users: the loss, its parts and the norm of the gradient of every row.
        absent: rows without a user.
    """
    count = (~absent).sum()

    def mean(values: Array) -> Float[Array, ""]:
        return jnp.where(absent, 0, values).sum() / jnp.maximum(count, 1)

    return {
        "loss": mean(of_users.values),
        "users": count,
        "clipped_share": mean(of_users.grad_norms > clip),
        **jax.tree.map(mean, of_users.aux),
    }
