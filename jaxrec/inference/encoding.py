"""Encodes a catalogue to vectors, and histories of any length to user vectors.

Evaluation, batch scoring and live serving call these functions, so their scores agree. A state is
one row of S numbers here, so that the states of users are one array to move and to store.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import jraph
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxrec.data.graph_arrays import graphs_tuple
from jaxrec.data.packing import event_gaps
from jaxrec.inference.history_rows import batches, chunk_steps, groups, in_rows
from jaxrec.models.graph.message_passing import divided
from jaxrec.models.inputs import Events, Nodes
from jaxrec.models.items.features import Features, padded_rows
from jaxrec.models.recommender import Model, Recommender
from jaxrec.models.sequence.encoder import State
from jaxrec.partitioning import on_mesh_of
from jaxrec.types import ANY_EVENT_TYPE, NO_GAP, Catalog, EventLog, Queries

ROUNDS = 8  # histories in a row, one after another, in `encode_queries`
WORKERS = 3  # groups of rows at a time: one is computed while events of the others are gathered


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CatalogArrays:
    """A catalogue as arrays."""

    nodes: Nodes
    graph: jraph.GraphsTuple
    valid: Bool[Array, " I"]  # rows that are items: neither the unknown item nor padding


def catalog_arrays(
    catalog: Catalog,
    text: Float[np.ndarray, "n text"],
    ids: Int[np.ndarray, " n"],
    entities: Int[np.ndarray, " entities"] | None = None,
    features: Features | None = None,
) -> CatalogArrays:
    """Arrays of a catalogue, padded.

    Args:
        text: whitened text vector of every item, row 0 included.
        ids: row of every item in the id tables, row 0 included; see `id_rows`.
        entities: rows of the entity table; None for the catalogue of training.
        features: of every item, row 0 included, as `catalog_features` gives them.
    """
    block = catalog.graph.types[0]
    padding = block.padded_size - block.count
    if entities is None:
        entities = np.arange(catalog.graph.num_nodes - block.padded_size, dtype=np.int32)
    return CatalogArrays(
        nodes=Nodes(
            items=jnp.asarray(np.pad(ids, (0, padding))),
            entities=jnp.asarray(entities),
            text=jnp.asarray(np.pad(text, ((0, padding), (0, 0)))),
            features=jax.tree.map(jnp.asarray, padded_rows(features or {}, block.padded_size)),
        ),
        graph=jax.tree.map(jnp.asarray, graphs_tuple(catalog.graph)),
        valid=jnp.asarray(block.valid),
    )


@jax.jit
def encode_catalog(model: Model, arrays: CatalogArrays) -> Float[Array, "N F"]:
    """Vectors of all nodes, items first."""
    return model.merge().encode_items(arrays.nodes, divided(arrays.graph))


@jax.jit
def user_vectors(
    model: Model,
    states: Float[Array | np.ndarray, "B S"],
    target_event_type: Int[Array, ""] | int,
    time_since_last: Int[Array | np.ndarray, " B"] | Int[Array, ""] | int = NO_GAP,
) -> Float[Array, "B F"]:
    """User vectors of states.

    Args:
        target_event_type: the event type to predict, or ANY_EVENT_TYPE.
        time_since_last: seconds since the last event, or NO_GAP for unknown.
    """
    recommender = model.merge()
    outputs = recommender.last_outputs(state_tree(recommender, states))
    target_types = jnp.full(len(outputs), target_event_type)
    return recommender.user_vectors(outputs, target_types, jnp.asarray(time_since_last))


@jax.jit
def link_queries(
    model: Model, heads: Float[Array | np.ndarray, "Q F"], relations: Int[Array | np.ndarray, " Q"]
) -> Float[Array, "Q F"]:
    """Vectors whose products with node vectors are the scores of edges; see `LinkDecoder`."""
    return model.merge().link_queries(jnp.asarray(heads), jnp.asarray(relations))


def repeat_bias(model: Model, target_event_type: int) -> Float[np.ndarray, "types A"]:
    """What an event adds to the score of its item; see `Recommender.repeat_bias`."""
    return np.asarray(model.merge().repeat_bias(target_event_type))


@partial(jax.jit, static_argnames="users")
def initial_states(model: Model, users: int) -> Float[Array, "B S"]:
    """The states of users without events."""
    return state_rows(model.merge().initial_state(users))


def state_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the arrays that a state consists of, in their order."""
    tree = jax.eval_shape(lambda: model.merge().initial_state(1))
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf.shape[1:] for path, leaf in leaves}


def state_rows(states: tuple[State, ...]) -> Float[Array, "B S"]:
    """States as rows; the inverse of `state_tree`."""
    leaves = jax.tree.leaves(states)
    rows = [leaf.reshape(len(leaf), -1).astype(jnp.float32) for leaf in leaves]
    return jnp.concatenate(rows, axis=1)


def state_tree(
    recommender: Recommender, rows: Float[Array | np.ndarray, "B S"]
) -> tuple[State, ...]:
    """Rows of states as the sequence encoders know them, one part an expert."""
    shapes = jax.eval_shape(lambda: recommender.initial_state(len(rows)))
    leaves, structure = jax.tree.flatten(shapes)
    bounds = np.cumsum([leaf.size // len(rows) for leaf in leaves])[:-1]
    parts = jnp.split(jnp.asarray(rows), bounds, axis=1)
    shaped = [
        part.reshape(leaf.shape).astype(leaf.dtype)
        for part, leaf in zip(parts, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, shaped)


@jax.jit
def update_chunk(
    model: Model,
    states: Float[Array | np.ndarray, "B S"],
    items: Float[Array, "I F"],
    events: Events,
    starts: Bool[Array | np.ndarray, "B T"],
    valid: Bool[Array | np.ndarray, "B T"],
    target_event_type: Int[Array, ""] | int,
) -> tuple[Float[Array, "B T F"], Float[Array, "B S"]]:
    """User vectors after each of T events a row, and the states after all of them."""
    recommender = model.merge()
    outputs, after = recommender.update(
        state_tree(recommender, states), items, events, jnp.asarray(starts), jnp.asarray(valid)
    )
    target_types = jnp.broadcast_to(target_event_type, valid.shape)
    return recommender.user_vectors(outputs, target_types), state_rows(after)


@jax.jit
def update_states(
    model: Model,
    states: Float[Array | np.ndarray, "B S"],
    items: Float[Array, "I F"],
    events: Events,
    valid: Bool[Array | np.ndarray, "B T"],
) -> Float[Array, "B S"]:
    """The states after T events a row, without the user vectors of `update_chunk`."""
    recommender = model.merge()
    before = state_tree(recommender, states)
    _, after = recommender.update(before, items, events, valid=jnp.asarray(valid))
    return state_rows(after)


@dataclass(frozen=True)
class HistoryReader:
    """Reads the events of a log into states."""

    model: Model
    items: Float[Array | np.ndarray, "I F"]  # NumPy: only the rows of the events are passed on
    log: EventLog
    target_event_type: int = ANY_EVENT_TYPE
    last_times: Int[np.ndarray, " U"] | None = None  # of events before the log; see `event_gaps`

    def update(
        self,
        states: Float[Array | np.ndarray, "B S"],
        numbers: Int[np.ndarray, "B T"],
        starts: Bool[np.ndarray, "B T"],
    ) -> tuple[Float[Array, "B T F"], Float[Array, "B S"]]:
        """`update_chunk` with the events of these numbers in the log, -1 for none."""
        valid, numbers = numbers >= 0, np.maximum(numbers, 0)
        gaps = event_gaps(self.log, numbers, self.log.users_at(numbers), self.last_times)
        events = Events(
            items=np.where(valid, self.log.items[numbers], 0),
            event_types=np.where(valid, self.log.event_types[numbers], 0).astype(np.int32),
            gaps=np.where(valid, gaps, NO_GAP),
        )
        items = self.items
        if isinstance(items, np.ndarray):  # rows may change, and their number too
            places = np.arange(valid.size, dtype=np.int32).reshape(valid.shape)
            items, events = items[events.items.ravel()], replace(events, items=places)
        with on_mesh_of(items):
            return update_chunk(
                self.model, states, items, events, starts, valid, self.target_event_type
            )


def encode_queries(
    model: Model,
    items: Float[Array | np.ndarray, "I F"],
    log: EventLog,
    queries: Queries,
    *,
    history: int = 0,
    users: int = 512,
    target_event_type: int = ANY_EVENT_TYPE,
) -> Float[np.ndarray, "Q F"]:
    """User vectors of queries, each from all events of its user before the queried position.

    A query at a user's first event gets the vector of a user without events.

    Args:
        history: number of newest events to read before a query, 0 for all.
        users: rows of a batch.
    """
    new_user = np.asarray(user_vectors(model, initial_states(model, 1), target_event_type))
    result = np.tile(new_user, (len(queries), 1))
    order = np.argsort(queries.positions, kind="stable")
    owners, positions = queries.users[order], queries.positions[order]
    begins = log.offsets[owners]
    # one pass from a user's first event answers all of the user's queries within reach
    reach = history or len(log.items)
    alone = positions - begins > reach
    bounds = np.flatnonzero(alone | (np.diff(owners, prepend=-1) != 0))
    first, last = positions[bounds], positions[np.append(bounds[1:], len(order)) - 1]
    starts = np.maximum(begins[bounds], last - reach)
    new_users = initial_states(model, users)
    reader = HistoryReader(model, items, log, target_event_type)
    # similar lengths together, the longest first, so that rows of several histories end together
    by_length = np.argsort(starts - last, kind="stable")
    chunk = chunk_steps(new_users.shape[1])

    def answer(group: Int[np.ndarray, " g"]) -> None:
        rows = in_rows(starts[group], last[group], users)
        next_position = rows.numbers + 1
        # the vector after an event answers the query at the next position
        place = np.minimum(np.searchsorted(positions, next_position), len(order) - 1)
        queried = next_position >= first[group][rows.histories]
        queried &= positions[place] == next_position
        firsts = rows.numbers == starts[group][rows.histories]
        states = new_users
        for width, steps in batches(rows.lengths, chunk):
            slots = rows.slots(width, steps)
            used = slots >= 0
            numbers = np.where(used, rows.numbers[slots], -1)
            vectors, states = reader.update(states[:width], numbers, used & firsts[slots])
            inside = used & queried[slots]
            if inside.any():
                result[order[place[slots[inside]]]] = np.asarray(vectors)[inside]

    with ThreadPoolExecutor(WORKERS) as workers:
        list(workers.map(answer, groups(by_length, ROUNDS * users)))
    return result


def encode_users(
    model: Model,
    items: Float[Array | np.ndarray, "I F"],
    log: EventLog,
    *,
    history: int = 0,
    users: int = 512,
    before: Float[np.ndarray, "U S"] | None = None,
    last_times: Int[np.ndarray, " U"] | None = None,
) -> Float[np.ndarray, "U S"]:
    """The state of every user of a log after all their events.

    Args:
        history: number of newest events to read, 0 for all.
        users: rows of a batch.
        before: the states before the events of the log; None: the states of new users.
        last_times: times of the last events before the log; see `event_gaps`.
    """
    ends = log.offsets[1:]
    starts = np.maximum(log.offsets[:-1], ends - history) if history else log.offsets[:-1]
    if before is None:
        new_user = np.asarray(initial_states(model, 1))
        before = np.broadcast_to(new_user, (log.num_users, new_user.shape[1]))
    result = before.copy()
    chunk = chunk_steps(result.shape[1])
    reader = HistoryReader(model, items, log, last_times=last_times)

    def read(group: Int[np.ndarray, " g"]) -> None:
        rows = np.pad(group, (0, users - len(group)))
        states: Float[Array | np.ndarray, "B S"] = before[rows]
        begins, lengths = starts[rows], ends[rows] - starts[rows]
        lengths[len(group) :] = 0  # rows of padding have no events
        for width, steps in batches(lengths, chunk):
            if width < len(states):  # the other rows have ended
                result[group[width : len(states)]] = np.asarray(states)[width : len(group)]
                states = states[:width]
            numbers = begins[:width, None] + np.arange(steps.start, steps.stop)
            numbers = np.where(numbers < (begins + lengths)[:width, None], numbers, -1)
            _, states = reader.update(states, numbers, np.zeros(numbers.shape, bool))
        result[group[: len(states)]] = np.asarray(states)[: len(group)]

    # users of similar lengths together waste the fewest time steps
    by_length = np.argsort(starts - ends, kind="stable")
    with ThreadPoolExecutor(WORKERS) as workers:
        list(workers.map(read, groups(by_length, users)))
    return result
