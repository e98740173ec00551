"""The model as three programs of `jax.export`, which run without jaxrec on CPUs, GPUs and TPUs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array, Bool, Float, Int

from jaxrec.errors import ConfigError
from jaxrec.inference.encoding import state_rows, state_tree
from jaxrec.models.inputs import Events
from jaxrec.models.recommender import Model

PLATFORMS = ("cpu", "cuda", "tpu")
MISSING = "{} is not installed, which this format needs; pip install 'jaxrec[export]'"


def export_programs(model: Model, state_size: int, width: int) -> dict[str, bytes]:
    """Serialized programs by name; `jax.export.deserialize` reads them.

    * `update`: (state [B, S], item vectors [B, F], event types [B], gaps [B]) -> state [B, S].
      Each row reads one event; a gap is in seconds, -1 if unknown.
    * `update_many`: (state [B, S], item vectors [B, T, F], event types [B, T], gaps [B, T],
      valid [B, T]) -> state [B, S]. Each row reads its valid events in time order.
    * `user_vector`: (state [B, S], target event types [B], time since last [B]) -> [B, F]. Target
      -1 is any event type; the time is in seconds, -1 if unknown.

    Any number of users B and of events T fits. The parameters are constants of the programs.

    Raises:
        ConfigError: the package `flatbuffers` is missing.
    """
    try:
        import flatbuffers  # noqa: F401 (jax.export imports it late)
    except ImportError:
        raise ConfigError(MISSING.format("flatbuffers")) from None
    users, events = export.symbolic_shape("users, events")
    state = jax.ShapeDtypeStruct((users, state_size), jnp.float32)
    vector = jax.ShapeDtypeStruct((users, width), jnp.float32)
    number = jax.ShapeDtypeStruct((users,), jnp.int32)
    vectors = jax.ShapeDtypeStruct((users, events, width), jnp.float32)
    numbers = jax.ShapeDtypeStruct((users, events), jnp.int32)
    valid = jax.ShapeDtypeStruct((users, events), jnp.bool)
    update, user_vector = one_step(model)
    return {
        "update": _exported(update, state, vector, number, number),
        "update_many": _exported(in_order(update), state, vectors, numbers, numbers, valid),
        "user_vector": _exported(user_vector, state, number, number),
    }


def one_step(model: Model) -> tuple[Callable[..., Array], Callable[..., Array]]:
    """Functions that read one event of one user, and give the vector of one user."""
    # arrays of a mesh would tie the programs to its devices
    params = jax.tree.map(np.asarray, model.params)

    def merged():
        return model.definition.merge(jax.tree.map(jnp.asarray, params))

    def update(
        state: Float[Array, " S"],
        item_vector: Float[Array, " F"],
        event_type: Int[Array, ""],
        gap: Int[Array, ""],
    ) -> Float[Array, " S"]:
        recommender = merged()
        events = Events(jnp.zeros((1, 1), int), event_type[None, None], gap[None, None])
        before = state_tree(recommender, state[None])
        _, after = recommender.update(before, item_vector[None], events)
        return state_rows(after)[0]

    def user_vector(
        state: Float[Array, " S"],
        target_event_type: Int[Array, ""],
        time_since_last: Int[Array, ""],
    ) -> Float[Array, " F"]:
        recommender = merged()
        outputs = recommender.last_outputs(state_tree(recommender, state[None]))
        return recommender.user_vectors(outputs, target_event_type[None], time_since_last[None])[0]

    return update, user_vector


def in_order(update: Callable[..., Array]) -> Callable[..., Array]:
    """The function that reads T events of one user by a function that reads one."""

    def update_many(
        state: Float[Array, " S"],
        item_vectors: Float[Array, "T F"],
        event_types: Int[Array, " T"],
        gaps: Int[Array, " T"],
        valid: Bool[Array, " T"],
    ) -> Float[Array, " S"]:
        def step(
            before: Float[Array, " S"], inputs: tuple[Array, ...]
        ) -> tuple[Float[Array, " S"], None]:
            *event, is_event = inputs
            return jnp.where(is_event, update(before, *event), before), None

        after, _ = jax.lax.scan(step, state, (item_vectors, event_types, gaps, valid))
        return after

    return update_many


def _exported(function: Callable[..., Array], *arguments: Any) -> bytes:
    # `vmap` adds the open axis, so that the functions see sizes that are numbers
    exporter = export.export(jax.jit(jax.vmap(function)), platforms=PLATFORMS)
    return bytes(exporter(*arguments).serialize())
