"""The state of an earlier run in the shapes of a larger data set: rows move by id, not by place."""

import re
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import polars as pl
from flax import nnx
from jaxtyping import Array, Bool, Int

from jaxrec.artifacts.run_directory import RunArtifacts
from jaxrec.data.carry_over import old_rows
from jaxrec.errors import RunError
from jaxrec.models.items.encoder import ENTITY_TABLE
from jaxrec.models.items.id import ITEM_TABLE
from jaxrec.training.context import TrainContext
from jaxrec.training.state import begin, new_state
from jaxrec.training.step import TrainState
from jaxrec.types import KnowledgeGraph

Leaf = Array | jax.ShapeDtypeStruct
# paths of the parameters whose rows stand for something in the data, and what, axis by axis
AXES = (
    (ITEM_TABLE, ("ids",)),
    (ENTITY_TABLE, ("entities",)),
    (re.compile(r"\['(key_|value_)?message'\]\['(scale|shift)'\]"), ("relations",)),
    (re.compile(r"\['relation_table'\]"), ("relations",)),
    (re.compile(r"\['event_type_table'\]"), ("event_types",)),
    (re.compile(r"\['target_type_table'\]"), ("target_types",)),
    (re.compile(r"\['repeat_bias_table'\]"), ("target_types", "event_types")),
)


@dataclass(frozen=True)
class Rows:
    """Where the rows of a table come from, as row numbers of the earlier table.

    Attributes:
        same: the row of the same id; -1 for a new one. Its optimiser state moves along.
        start: the row that a new id starts from, such as that of the unknown item; -1: none, so
            that it starts as in a new model.
    """

    same: Int[np.ndarray, " n"]
    start: Int[np.ndarray, " n"]


def row_maps(earlier: RunArtifacts, context: TrainContext) -> dict[str, Rows]:
    """The origin of every row, by the names in `AXES`."""
    dataset = context.dataset
    graph, old_graph = dataset.catalog.graph, earlier.catalog.graph
    relations = _places(graph.relations, old_graph.relations)
    num_old = len(old_graph.relations)
    reverses = np.where(relations < 0, -1, relations + num_old)
    names = dataset.split.log.event_type_names
    event_types = _places(names, earlier.event_type_names)
    unknown_first = np.concatenate([[0], np.where(event_types < 0, -1, event_types + 1)])
    return {
        "ids": _id_rows(earlier, dataset.catalog.item_ids, context.id_rows),
        "entities": _entity_rows(old_graph, graph),
        # forward edges, reverse edges, padding
        "relations": _without_start(np.concatenate([relations, reverses, [2 * num_old]])),
        "event_types": _without_start(event_types),
        "target_types": _without_start(unknown_first),
    }


def grown_state(
    context: TrainContext, params: nnx.State, opt_state: optax.OptState, rows: dict[str, Rows]
) -> TrainState:
    """The state before the first step, with the parameters and moments of an earlier run.

    The learning rate starts its schedule again.

    Raises:
        RunError: the parameters are those of other options.
    """

    def build(text: Array, earlier: tuple[nnx.State, optax.OptState]) -> TrainState:
        fresh, (old_params, old_opt_state) = new_state(context, text), earlier
        opt_state = _grown(fresh.opt_state, old_opt_state, rows, starts=False)
        opt_state = jax.tree.map(
            lambda new, old: new if _is_schedule(new) else old,
            fresh.opt_state,
            opt_state,
            is_leaf=_is_schedule,
        )
        params = _grown(fresh.params, old_params, rows, starts=True)
        return TrainState(fresh.step, params, opt_state, fresh.text)

    return begin(context, build, (params, opt_state))


def moved_params(layout: nnx.State, params: nnx.State, rows: dict[str, Rows]) -> nnx.State:
    """The parameters of a model over data that hold no id, event type or relation of their own.

    Args:
        layout: shapes of the parameters to make.
        params: of the model that has all their rows.
    """
    padding = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), layout)
    return _grown(padding, params, rows, starts=True)


def _grown(fresh, earlier, rows: dict[str, Rows], *, starts: bool):
    """A tree with the rows of the earlier one, and fresh rows elsewhere."""
    old_leaves = leaves(earlier)

    def grow(path, new: Array) -> Array:
        name = jax.tree_util.keystr(path)
        if name not in old_leaves:  # the earlier graph had no entities
            return new
        old = old_leaves[name]
        if not fits(new, old, name):
            raise RunError(
                f"the parameter {name} of the base has shape {old.shape}, not {new.shape}; train "
                "without --from"
            )
        return moved(name, new, old, rows, starts=starts)

    return jax.tree_util.tree_map_with_path(grow, fresh)


def leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree of parameters, or of their shapes, by path."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in flat}


def axes_of(path: str) -> tuple[str, ...]:
    """What the first axes of a parameter stand for; none if it does not grow with the data."""
    return next((axes for pattern, axes in AXES if pattern.search(path)), ())


def fits(new: Leaf, old: Leaf, path: str) -> bool:
    """Whether two parameters have the same shape, apart from the axes that grow with the data."""
    axes = len(axes_of(path))
    return new.ndim == old.ndim and new.shape[axes:] == old.shape[axes:]


def moved(path: str, new: Array, old: Array, rows: dict[str, Rows], *, starts: bool) -> Array:
    """A parameter with the rows of an earlier one.

    Args:
        path: of the new parameter.
        new: the values of rows without an origin.
        rows: from `row_maps`.
        starts: whether new ids take the rows that they start from.
    """
    axes = axes_of(path)
    known: Bool[np.ndarray, "..."] = np.ones((), bool)
    for axis, kind in enumerate(axes):
        size = new.shape[axis]
        same, start = (
            np.pad(part[:size], (0, max(size - len(part), 0)), constant_values=-1)
            for part in (rows[kind].same, rows[kind].start)
        )
        origin = np.where((same < 0) & starts, start, same)
        old = jnp.take(old, jnp.asarray(np.maximum(origin, 0)), axis=axis)
        known = known[..., None] & (origin >= 0)
    mask = known.reshape(known.shape + (1,) * (new.ndim - len(axes)))
    return jnp.where(jnp.asarray(mask), old, new).astype(new.dtype)


def _id_rows(earlier: RunArtifacts, item_ids: pl.Series, ids: Int[np.ndarray, " n"]) -> Rows:
    """An id that the earlier run has not trained starts as that of the unknown item.

    Args:
        ids: the row of every item in the new id tables.
    """
    rows = old_rows(item_ids, earlier.catalog.item_ids)
    before = np.where(rows < 0, 0, earlier.id_rows[rows])
    known = (before > 0) & (ids > 0)
    same = np.full(len(ids), -1)
    same[0], same[ids[known]] = 0, before[known]
    return Rows(same, np.where(same < 0, 0, -1))


def _entity_rows(old: KnowledgeGraph, new: KnowledgeGraph) -> Rows:
    """A new entity of a known type starts as the unknown entity of that type."""
    first = new.types[0].padded_size
    same, start = np.full((2, new.num_nodes - first), -1)
    earlier = {node_type.name: node_type for node_type in old.types[1:]}
    for node_type in new.types[1:]:
        if node_type.name not in earlier:
            continue
        before = earlier[node_type.name]
        offset = before.offset - old.types[0].padded_size
        rows = old_rows(node_type.ids, before.ids)
        block = slice(node_type.offset - first, node_type.offset - first + node_type.count)
        same[block] = np.where(rows < 0, -1, rows + offset)
        start[block] = offset
    return Rows(same, start)


def _places(names: tuple[str, ...], earlier: tuple[str, ...]) -> Int[np.ndarray, " n"]:
    place = {name: number for number, name in enumerate(earlier)}
    return np.array([place.get(name, -1) for name in names], np.int64)


def _without_start(same: Int[np.ndarray, " n"]) -> Rows:
    return Rows(same, np.full(len(same), -1))


def _is_schedule(part: object) -> bool:
    return isinstance(part, optax.ScaleByScheduleState)
