"""A small recommender, a log, and user vectors computed event by event."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from flax import nnx

from jaxrec.config import ModelConfig
from jaxrec.data.packing import event_gaps
from jaxrec.inference.history_rows import CHUNK
from jaxrec.models.inputs import Events, Sizes
from jaxrec.models.recommender import Model, Recommender, split
from jaxrec.types import ANY_EVENT_TYPE, EventLog, Queries

ITEMS, EVENT_TYPES = 9, 2
LENGTHS = np.array([1, 5, 2 * CHUNK + 5, CHUNK + 1, 3])


def make_recommender() -> Recommender:
    config = ModelConfig(experts=("id", "id"), hidden_size=4, num_layers=1)
    sizes = Sizes(ITEMS, ITEMS + 1, num_relations=0, num_event_types=EVENT_TYPES, text_width=1)
    model = Recommender(config, sizes, nnx.Rngs(0))
    random = np.random.default_rng(0)
    for expert in model.experts:
        for table in (expert.event_type_table, expert.gap_table, expert.target_type_table):
            table[...] = jnp.asarray(random.normal(size=table[...].shape), jnp.float32)
    return model


def bundled(recommender: Recommender) -> Model:
    return Model(*split(recommender))


def make_items() -> jax.Array:
    return jax.random.normal(jax.random.key(1), (ITEMS, 8))


def make_log(lengths: Sequence[int] | np.ndarray = LENGTHS) -> EventLog:
    random = np.random.default_rng(0)
    count = np.sum(lengths)
    return EventLog(
        user_ids=pl.Series([f"u{number}" for number in range(len(lengths))]),
        event_type_names=("view", "buy"),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        items=random.integers(1, ITEMS, count).astype(np.int32),
        event_types=random.integers(0, EVENT_TYPES, count).astype(np.int8),
        times=np.cumsum(random.integers(0, 10_000, count)),
        has_time=True,
    )


def make_queries(log: EventLog, places: list[tuple[int, int]]) -> Queries:
    """Queries at (user, position inside the user's history)."""
    users, inside = np.array(places).T
    return Queries(users, log.offsets[users] + inside)


def all_queries(log: EventLog) -> Queries:
    """Several queries a user, in no order; user 1 has none."""
    return make_queries(
        log, [(3, CHUNK), (2, 2 * CHUNK + 4), (4, 2), (2, 3), (2, CHUNK), (2, CHUNK + 1), (4, 1)]
    )


@partial(jax.jit, static_argnums=0)
def read_event(definition, params, state, items, event, target_event_type):
    model = definition.merge(params)
    output, state = model.update(state, items, event)
    return model.user_vectors(output[:, 0], target_event_type), state


def one_by_one(
    model, items, log, queries, first_events, target_event_type=ANY_EVENT_TYPE
) -> np.ndarray:
    """Vectors of queries, each computed alone, from its first event to the last before it."""
    numbers = np.arange(len(log.items))
    gaps, target = event_gaps(log, numbers, log.users_at(numbers)), jnp.array([target_event_type])
    vectors = []
    for first, position in zip(first_events, queries.positions, strict=True):
        state = model.initial_state(1)
        for number in range(first, position):
            columns = (log.items, log.event_types.astype(np.int32), gaps)
            event = Events(*(column[None, number : number + 1] for column in columns))
            vector, state = read_event(*split(model), state, items, event, target)
        vectors.append(vector[0])
    return np.stack(vectors)
