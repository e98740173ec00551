"""The trained model at work: the catalogue to vectors, histories of any length to user vectors.

Evaluation, batch scoring and live serving call these functions, so their scores agree.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import jraph
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxrec.data.graph import graphs_tuple
from jaxrec.data.packing import event_gaps, ranges
from jaxrec.models.recommender import Events, ModelDef, Nodes, Params
from jaxrec.models.sequence.lstm import InterestState
from jaxrec.types import ANY_EVENT_TYPE, NO_GAP, Catalog, EventLog, Queries

CHUNK = 4  # slots folded at a time, or 1 where one is left, as it is of most live events
ROUNDS = 8  # histories in a row, one behind another, where their vectors are asked for
WORKERS = 3  # groups of rows in flight: some are folded while the events of others are gathered


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CatalogArrays:
    """A catalogue as the model's functions take it."""

    nodes: Nodes
    graph: jraph.GraphsTuple
    valid: Bool[Array, " I"]  # rows that are items: neither the unknown one nor unused capacity


def catalog_arrays(
    catalog: Catalog,
    text: Float[np.ndarray, "n Dt"],
    trained: Bool[np.ndarray, " n"],
    entities: Int[np.ndarray, " N-I"] | None = None,
) -> CatalogArrays:
    """Arrays padded to capacity.

    Args:
        text: whitened text vector of every item, row 0 included.
        trained: items whose own id was trained; the others go by the `unknown` id.
        entities: rows of the entity table, where the catalogue is not that of training.
    """
    block = catalog.graph.types[0]
    rows = np.arange(block.padded_size, dtype=np.int32)
    padding = block.padded_size - block.count
    if entities is None:
        entities = np.arange(catalog.graph.num_nodes - block.padded_size, dtype=np.int32)
    return CatalogArrays(
        nodes=Nodes(
            items=jnp.asarray(np.where(np.pad(trained, (0, padding)), rows, 0)),
            entities=jnp.asarray(entities),
            text=jnp.asarray(np.pad(text, ((0, padding), (0, 0)))),
        ),
        graph=jax.tree.map(jnp.asarray, graphs_tuple(catalog.graph)),
        valid=jnp.asarray(block.valid),
    )


@partial(jax.jit, static_argnums=0)
def encode_catalog(
    definition: ModelDef, params: Params, arrays: CatalogArrays
) -> Float[Array, "N 1+ED"]:
    """Vectors of all nodes, items first."""
    return definition.merge(params).encode_items(arrays.nodes, arrays.graph)


@partial(jax.jit, static_argnums=0)
def read_states(
    definition: ModelDef,
    params: Params,
    states: tuple[InterestState, ...],
    target_event_type: Int[Array, ""] | int,
    time_since_last: Int[Array | np.ndarray, " B"] | int = NO_GAP,
) -> Float[Array, "B 1+ED"]:
    """User vectors of states, for the event type that is asked for and the time since the last
    (s), if that is to be told."""
    model = definition.merge(params)
    outputs = model.last_outputs(states)
    target_event_types = jnp.full(len(outputs), target_event_type)
    return model.user_vectors(outputs, target_event_types, jnp.asarray(time_since_last))


def repeat_bias(
    definition: ModelDef, params: Params, target_event_type: int
) -> Float[np.ndarray, "event_types A"]:
    """What an event adds to the score of its item; see `Recommender.repeat_bias`."""
    return np.asarray(definition.merge(params).repeat_bias(target_event_type))


@partial(jax.jit, static_argnums=0)
def update_chunk(
    definition: ModelDef,
    params: Params,
    states: tuple[InterestState, ...],
    items: Float[Array, "I 1+ED"],
    events: Events,
    starts: Bool[Array | np.ndarray, "B T"],
    valid: Bool[Array | np.ndarray, "B T"],
    target_event_type: Int[Array, ""] | int,
) -> tuple[Float[Array, "B T 1+ED"], tuple[InterestState, ...]]:
    """User vectors after each of T events a row, and the states after all of them."""
    model = definition.merge(params)
    outputs, states = model.update(states, items, events, jnp.asarray(starts), jnp.asarray(valid))
    return model.user_vectors(outputs, jnp.broadcast_to(target_event_type, valid.shape)), states


def user_vectors(
    definition: ModelDef,
    params: Params,
    items: Float[Array, "I 1+ED"],
    log: EventLog,
    queries: Queries,
    *,
    history: int = 0,
    users: int = 512,
    target_event_type: int = ANY_EVENT_TYPE,
) -> Float[np.ndarray, "Q 1+ED"]:
    """User vectors of queries, each from all events of its user before the queried position.

    A query at a user's first event gets the vector of a user without events.

    Args:
        history: the newest events before a query to fold, 0 for all.
        users: users folded at a time.
        target_event_type: the event type that is asked for.
    """
    newcomer = initial_states(definition, params, 1)
    new_user = np.asarray(read_states(definition, params, newcomer, target_event_type))
    result = np.tile(new_user, (len(queries), 1))
    order = np.argsort(queries.positions, kind="stable")
    owners, positions = queries.users[order], queries.positions[order]
    begins = log.offsets[owners]
    # a fold from a user's first event on answers all queries that it is not too long for
    reach = history or len(log.items)
    alone = positions - begins > reach
    bounds = np.flatnonzero(alone | (np.diff(owners, prepend=-1) != 0))
    first, last = positions[bounds], positions[np.append(bounds[1:], len(order)) - 1]
    starts = np.maximum(begins[bounds], last - reach)
    newcomers = initial_states(definition, params, users)
    fold = partial(
        _update_with_events, definition, params, items, log, event_gaps(log), target_event_type
    )
    # like lengths together, the longest first, so that rows of several histories end together
    by_length = np.argsort(starts - last, kind="stable")

    def answer(group: Int[np.ndarray, " g"]) -> None:
        numbers, histories = in_rows(starts[group], last[group], users)
        used, next_position = numbers >= 0, numbers + 1
        # the vector after an event answers the query at the position behind it
        place = np.minimum(np.searchsorted(positions, next_position), len(order) - 1)
        asked = used & (next_position >= first[group][histories])
        asked &= positions[place] == next_position
        firsts = used & (numbers == starts[group][histories])
        states = newcomers
        for chunk in _chunks(numbers.shape[1]):
            vectors, states = fold(states, numbers[:, chunk], firsts[:, chunk])
            here = asked[:, chunk]
            if here.any():
                result[order[place[:, chunk][here]]] = np.asarray(vectors)[here]

    with ThreadPoolExecutor(WORKERS) as workers:
        list(workers.map(answer, _groups(by_length, ROUNDS * users)))
    return result


def user_states(
    definition: ModelDef,
    params: Params,
    items: Float[Array, "I 1+ED"],
    log: EventLog,
    *,
    history: int = 0,
    users: int = 512,
    before: tuple[InterestState, ...] | None = None,
    last_times: Int[np.ndarray, " U"] | None = None,
) -> tuple[InterestState, ...]:
    """The state of every user of a log after all their events (of the last `history`, if not 0).

    The arrays of the result are numpy's.

    Args:
        users: users folded at a time.
        before: their states before the events of the log; None if these are their first.
        last_times: when the events came that `before` has folded; see `event_gaps`.
    """
    ends = log.offsets[1:]
    starts = np.maximum(log.offsets[:-1], ends - history) if history else log.offsets[:-1]
    if before is None:
        newcomer = initial_states(definition, params, 1)
        before = jax.tree.map(
            lambda leaf: np.repeat(np.asarray(leaf), log.num_users, axis=0), newcomer
        )
    gaps, result = event_gaps(log, last_times), jax.tree.map(np.array, before)
    fold = partial(_update_with_events, definition, params, items, log, gaps, ANY_EVENT_TYPE)
    # users of like length together waste the fewest slots
    for group in _groups(np.argsort(ends - starts, kind="stable"), users):
        rows = np.pad(group, (0, users - len(group)))
        states = jax.tree.map(lambda leaf, rows=rows: leaf[rows], before)
        begins, lengths = starts[rows], ends[rows] - starts[rows]
        lengths[len(group) :] = 0  # the rows behind fold nothing
        for chunk in _chunks(lengths.max()):
            slots = np.arange(chunk.start, chunk.stop)
            events = np.where(slots < lengths[:, None], begins[:, None] + slots, -1)
            nowhere = np.zeros(events.shape, bool)
            _, states = fold(states, events, nowhere)

        def place(whole: np.ndarray, part: Array, group: np.ndarray = group) -> None:
            whole[group] = np.asarray(part)[: len(group)]

        jax.tree.map(place, result, states)
    return result


def flat_states(states: tuple[InterestState, ...]) -> Float[np.ndarray, "B S"]:
    """The leaves of B users' states, one after another."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(states)]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


@partial(jax.jit, static_argnums=(0, 2))
def initial_states(definition: ModelDef, params: Params, users: int) -> tuple[InterestState, ...]:
    """The states of users without events."""
    return definition.merge(params).initial_state(users)


def in_rows(
    begins: Int[np.ndarray, " n"], ends: Int[np.ndarray, " n"], rows: int
) -> tuple[Int[np.ndarray, "B T"], Int[np.ndarray, "B T"]]:
    """Histories in rows, one behind another: the event in every slot, and whose history it is of.

    Up to B histories have a row each, in their order. Behind the last event of a row is -1. Rows
    are about equally long if longer histories come first.
    """
    lengths = ends - begins
    row, slot = np.empty((2, len(lengths)), np.int64)
    filled = np.zeros(rows, np.int64)
    for begin in range(0, len(lengths), rows):
        part = slice(begin, begin + rows)
        emptiest = np.argsort(filled, kind="stable")[: len(lengths[part])]
        row[part], slot[part] = emptiest, filled[emptiest]
        filled[emptiest] += lengths[part]
    numbers, histories = np.full((2, rows, _whole_chunks(filled.max())), -1)
    place = np.repeat(row, lengths), ranges(slot, lengths)
    numbers[place] = ranges(begins, lengths)
    histories[place] = np.repeat(np.arange(len(lengths)), lengths)
    return numbers, histories


def _groups(members: Int[np.ndarray, " n"], size: int) -> list[Int[np.ndarray, " g"]]:
    """The members in their order, in the fewest groups of about equal size."""
    return np.array_split(members, -(-len(members) // size)) if len(members) else []


def _whole_chunks(slots: int) -> int:
    return slots if slots % CHUNK == 1 else slots + -slots % CHUNK


def _chunks(slots: int) -> list[slice]:
    """So many slots, or a few more, as chunks of the two sizes that are compiled."""
    whole = _whole_chunks(slots)
    return [slice(begin, min(begin + CHUNK, whole)) for begin in range(0, whole, CHUNK)]


def _update_with_events(
    definition: ModelDef,
    params: Params,
    items: Float[Array, "I 1+ED"],
    log: EventLog,
    gaps: Int[np.ndarray, " M"],
    target_event_type: int,
    states: tuple[InterestState, ...],
    numbers: Int[np.ndarray, "B T"],
    starts: Bool[np.ndarray, "B T"],
) -> tuple[Float[Array, "B T 1+ED"], tuple[InterestState, ...]]:
    """`update_chunk` of the events with these numbers in the log, -1 for none."""
    valid = numbers >= 0
    events = Events(
        items=np.where(valid, log.items[numbers], 0),
        event_types=np.where(valid, log.event_types[numbers], 0).astype(np.int32),
        gaps=np.where(valid, gaps[numbers], NO_GAP),
    )
    return update_chunk(definition, params, states, items, events, starts, valid, target_event_type)
