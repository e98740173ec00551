"""Extension of a trained catalogue by new items."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Int

from jaxrec.data.columns import SHOWN_ROWS
from jaxrec.data.graph import item_triples, node_ids, node_types
from jaxrec.data.tables import validate_items, validate_triples
from jaxrec.errors import DataError
from jaxrec.types import Catalog, KnowledgeGraph, NodeType


@dataclass(frozen=True)
class Extension:
    """A catalogue with new items, and the rows of its nodes in the tables of the model."""

    catalog: Catalog
    entities: Int[
        np.ndarray, " entities"
    ]  # rows of the entity table; new nodes: the unknown node's
    num_old: int  # number of trained items, including row 0; new items follow them
    notes: tuple[str, ...]


def extend_catalog(
    catalog: Catalog, items: pl.DataFrame, triples: pl.DataFrame | None = None
) -> Extension:
    """Add new items and their edges to a catalogue.

    Old nodes keep their order. Edges with a relation or a node type that training has not seen are
    dropped, as the model has no parameters for them.

    Args:
        catalog: the catalogue of training. An extended catalogue cannot be extended again, as
            `entities` refers to the model's entity table.
        items: an items table; items of the catalogue are ignored.
        triples: edges between old or new nodes.

    Raises:
        DataError: a table is invalid (as in `validate_tables`), a column cannot be cast to its type
            in the catalogue, or the catalogue already has all items.
    """
    items, notes = validate_items(items, "new items")
    known = items["item_id"].is_in(catalog.item_ids.drop_nulls().implode())
    if known.all():
        raise DataError(
            f"new items: all {len(items):,} are in the trained catalogue; leave the table out"
        )
    if known.any():
        notes.append(f"new items: rows left out because training has these items: {known.sum():,}.")
    new_items = _cast_alike(items.filter(~known), catalog.items)
    # Relaxed, because a column that was all null in training takes the type of the new items.
    table = pl.concat([catalog.items, new_items], how="diagonal_relaxed")
    edges = item_triples(new_items)
    if triples is not None:
        triples, triple_notes = validate_triples(triples, table["item_id"], "new triples", False)
        edges = pl.concat([edges, triples])
        notes += triple_notes
    edges, dropped = _representable(edges.unique(maintain_order=True), catalog.graph)
    if len(dropped):
        relations = ", ".join(dropped["relation"].unique(maintain_order=True))
        notes.append(
            "new items: edges left out because training has not seen their relation or node "
            f"types: {len(dropped):,} ({relations})."
        )
    graph = _grown(catalog.graph, table["item_id"], edges)
    return Extension(
        catalog=Catalog(table, graph),
        entities=_entity_rows(catalog.graph, graph),
        num_old=catalog.num_items,
        notes=tuple(notes),
    )


def _cast_alike(items: pl.DataFrame, known_items: pl.DataFrame) -> pl.DataFrame:
    """New items with the column types of the known items, except for columns without values."""
    return items.with_columns(
        _cast_like(items[name], known_items[name])
        for name in items.columns
        if name in known_items.columns and known_items.schema[name] != pl.Null
    )


def _cast_like(column: pl.Series, known: pl.Series) -> pl.Series:
    """A column in the type of a known one; raises a DataError if it loses values or fractions."""
    place, dtype = f"new items, column {column.name!r}", known.dtype
    try:
        cast = column.cast(dtype)
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"{place}: {column.dtype} does not become {dtype}, the type in training "
            f"({str(error).splitlines()[0]}). Convert it"
        ) from error
    if column.dtype.is_float() and dtype.is_integer() and (cast != column).any():
        shown = ", ".join(map(str, column.filter(cast != column).head(SHOWN_ROWS)))
        raise DataError(
            f"{place}: values with a fraction ({shown}) in a column that is {dtype} in training. "
            "Round them, or train again"
        )
    return cast


def _representable(edges: pl.DataFrame, graph: KnowledgeGraph) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The edges whose relation and node types are in the graph, and the other edges."""
    types = [node_type.name for node_type in graph.types]
    kept = edges.select(
        pl.col("relation").is_in(list(graph.relations))
        & pl.col("head_type").is_in(types)
        & pl.col("tail_type").is_in(types)
    ).to_series()
    return edges.filter(kept), edges.filter(~kept)


def _grown(graph: KnowledgeGraph, item_ids: pl.Series, edges: pl.DataFrame) -> KnowledgeGraph:
    """The graph with all items of a longer list, new edges, and the entities at their ends."""
    types = node_types(item_ids, edges, graph.types)
    renumbered = _new_node_ids(graph.types, types)
    old = _edge_table(renumbered[graph.heads], graph.edge_relations, renumbered[graph.tails])
    numbers = {name: number for number, name in enumerate(graph.relations)}
    new = _edge_table(
        node_ids(types, edges["head_type"], edges["head"]),
        np.array([numbers[name] for name in edges["relation"]], np.int32),
        node_ids(types, edges["tail_type"], edges["tail"]),
    )
    added = new.join(old, on=new.columns, how="anti", maintain_order="left")
    heads, relations, tails = (column.to_numpy() for column in pl.concat([old, added]))
    return KnowledgeGraph(types, graph.relations, heads, relations, tails)


def _new_node_ids(old: Sequence[NodeType], new: Sequence[NodeType]) -> Int[np.ndarray, " N"]:
    """The new node id of every old node."""
    return np.concatenate(
        [
            after.offset + np.arange(before.padded_size, dtype=np.int32)
            for before, after in zip(old, new, strict=True)
        ]
    )


def _edge_table(
    heads: Int[np.ndarray, " E"], relations: Int[np.ndarray, " E"], tails: Int[np.ndarray, " E"]
) -> pl.DataFrame:
    columns = {"head": heads, "relation": relations, "tail": tails}
    return pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.Int32))


def _entity_rows(old: KnowledgeGraph, new: KnowledgeGraph) -> Int[np.ndarray, " entities"]:
    """Rows of the old graph's entity table, for every node of the new graph behind its items."""
    old_items, new_items = old.types[0].padded_size, new.types[0].padded_size
    rows = np.zeros(new.num_nodes - new_items, np.int32)
    for before, after in zip(old.types[1:], new.types[1:], strict=True):
        local = np.arange(after.padded_size)
        start = after.offset - new_items
        rows[start : start + after.padded_size] = (
            before.offset - old_items + np.where(local < before.count, local, 0)
        )
    return rows
