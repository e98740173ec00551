"""Update of a trained catalogue by today's items: new ones, and new columns of known ones."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Int

from jaxrec.data.carry_over import old_rows
from jaxrec.data.columns import as_type, index_in
from jaxrec.data.graph import ITEM, edge_numbers, item_triples, node_types
from jaxrec.data.spec import TRIPLE_COLUMNS
from jaxrec.data.tables import validate_items, validate_triples
from jaxrec.types import Catalog, KnowledgeGraph


@dataclass(frozen=True)
class Extension:
    """A catalogue with today's items, and the rows of its nodes in the tables of the model.

    Its graph is that of training, the same object, if no node and no edge has changed.
    """

    catalog: Catalog
    # rows of the entity table; a new node has the row of the unknown node
    entities: Int[np.ndarray, " entities"]
    num_old: int  # number of trained items, including row 0; new items follow them
    notes: tuple[str, ...]


def extend_catalog(
    catalog: Catalog, items: pl.DataFrame, triples: pl.DataFrame | None = None
) -> Extension:
    """Update a catalogue by today's table of items.

    New items and their edges are added. The columns of the table replace those of known items, and
    with them the edges that they make; other columns, and items that the table lacks, stay. Old
    nodes keep their order. Edges with a relation or a node type that training has not seen are
    dropped, as the model has no parameters for them.

    Args:
        catalog: the catalogue of training; an extended one cannot be extended again.
        items: an items table.
        triples: more edges between old or new nodes.

    Raises:
        DataError: a table is invalid (as in `validate_tables`), or a column cannot be cast to its
            type in the catalogue.
    """
    items, warnings, notes = validate_items(items, "new items")
    notes = warnings + notes
    items = items.with_columns(
        as_type(items[name], catalog.items.schema[name], "new items")
        for name in items.columns
        if name in catalog.items.columns and catalog.items.schema[name] != pl.Null
    )
    known = items["item_id"].is_in(catalog.item_ids.drop_nulls().implode())
    new_items, known_items = items.filter(~known), items.filter(known)
    if known.any():
        names = ", ".join(items.columns[1:]) or "none"
        notes.append(
            f"new items: {len(new_items):,}; {len(known_items):,} others are known, and the "
            f"columns of the table replace theirs: {names}."
        )
    updated = _updated(catalog.items, known_items)
    # relaxed, because a column that was all null in training takes the type of the new items
    table = pl.concat([updated, new_items], how="diagonal_relaxed")
    touched = pl.col("item_id").is_in(known_items["item_id"].implode())
    added, gone = _changed_triples(catalog.items.filter(touched), updated.filter(touched))
    edges = pl.concat([item_triples(new_items), added])
    if triples is not None:
        triples, triple_notes = validate_triples(triples, table["item_id"], "new triples", False)
        edges = pl.concat([edges, triples])
        notes += triple_notes
    edges, dropped_notes = representable(edges.unique(maintain_order=True), catalog.graph)
    notes += [f"new items: {note}" for note in dropped_notes]
    gone = representable(gone, catalog.graph)[0]
    graph = catalog.graph
    if len(new_items) or len(edges) or len(gone):
        graph = _grown(catalog.graph, table["item_id"], edges, gone)
    return Extension(
        catalog=Catalog(table, graph),
        entities=entity_rows(catalog.graph, graph),
        num_old=catalog.num_items,
        notes=tuple(notes),
    )


def _updated(items: pl.DataFrame, today: pl.DataFrame) -> pl.DataFrame:
    """A table of items whose rows have the values of today's table where that has the item."""
    rows = index_in(items["item_id"], today["item_id"])
    is_known = rows.is_not_null()
    columns = []
    for new in today.drop("item_id"):
        values = new.gather(rows)
        old = items[new.name] if new.name in items.columns else pl.lit(None)
        columns.append(pl.when(is_known).then(values).otherwise(old).alias(new.name))
    return items.with_columns(columns) if len(today) else items


def _changed_triples(
    before: pl.DataFrame, after: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The edges that the items of a table have gained, and those that they have lost."""
    old, new = item_triples(before), item_triples(after)
    # a parent of a category stays, because other items may be below it
    lost = old.filter(head_type=ITEM).join(new, on=TRIPLE_COLUMNS, how="anti")
    return new.join(old, on=TRIPLE_COLUMNS, how="anti", maintain_order="left"), lost


def representable(edges: pl.DataFrame, graph: KnowledgeGraph) -> tuple[pl.DataFrame, list[str]]:
    """The edges whose relation and node types are in the graph, and a note on the others."""
    types = [node_type.name for node_type in graph.types]
    known = pl.all_horizontal(
        pl.col("relation").is_in(list(graph.relations)),
        pl.col("head_type", "tail_type").is_in(types),
    )
    dropped = edges.filter(~known)["relation"]
    if dropped.is_empty():
        return edges, []
    relations = ", ".join(dropped.unique(maintain_order=True))
    note = (
        "edges left out because training has not seen their relation or node types: "
        f"{len(dropped):,} ({relations})."
    )
    return edges.filter(known), [note]


def _grown(
    graph: KnowledgeGraph, item_ids: pl.Series, edges: pl.DataFrame, gone: pl.DataFrame
) -> KnowledgeGraph:
    """The graph with all items of a longer list, new edges, and the entities at their ends.

    Args:
        gone: edges of the graph that it no longer has.
    """
    types = node_types(item_ids, edges, graph.types)
    new_ids = np.concatenate(
        [
            after.offset + np.arange(before.padded_size, dtype=np.int32)
            for before, after in zip(graph.types, types, strict=True)
        ]
    )
    old = (new_ids[graph.heads], graph.edge_relations, new_ids[graph.tails])
    new, left = (edge_numbers(types, graph.relations, part) for part in (edges, gone))
    names = ("head", "relation", "tail")
    old_edges, new_edges, left_edges = (
        pl.DataFrame(dict(zip(names, part, strict=True)), schema=dict.fromkeys(names, pl.Int32))
        for part in (old, new, left)
    )
    old_edges = old_edges.join(left_edges, on=names, how="anti", maintain_order="left")
    added = new_edges.join(old_edges, on=names, how="anti", maintain_order="left")
    columns = pl.concat([old_edges, added]).get_columns()
    return KnowledgeGraph(types, graph.relations, *(column.to_numpy() for column in columns))


def entity_rows(old: KnowledgeGraph, new: KnowledgeGraph) -> Int[np.ndarray, " entities"]:
    """The row in the old graph's entity table, for every entity of the new graph.

    It is that of the same name, or that of the unknown node of its type. Both graphs have the same
    node types in the same order.
    """
    old_items, new_items = old.types[0].padded_size, new.types[0].padded_size
    rows = np.zeros(new.num_nodes - new_items, np.int32)
    for before, after in zip(old.types[1:], new.types[1:], strict=True):
        start, unknown = after.offset - new_items, before.offset - old_items
        rows[start : start + after.padded_size] = unknown
        rows[start : start + after.count] += np.maximum(old_rows(after.ids, before.ids), 0)
    return rows
