"""A trained catalogue with items that training has not seen."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Int

from jaxrec.data.columns import DataError
from jaxrec.data.graph import ITEM, item_triples, node_ids
from jaxrec.data.tables import validate_items, validate_triples
from jaxrec.types import Catalog, KnowledgeGraph, NodeType


@dataclass(frozen=True)
class Extension:
    """A larger catalogue, and where its nodes stand in the tables of the model."""

    catalog: Catalog
    entities: Int[np.ndarray, " N-I"]  # rows of the entity table; new ones that of `unknown`
    num_old: int  # items of the trained catalogue, row 0 included; the others follow
    notes: tuple[str, ...]


def extend_catalog(
    catalog: Catalog, items: pl.DataFrame, triples: pl.DataFrame | None = None
) -> Extension:
    """Add the rows of an item table that the catalogue lacks, and their edges.

    Old nodes keep their order. The model has no parameters for types of node and relations that
    training has not seen, so edges that need them are left out.

    Args:
        items: as training reads it; items that are known already are left out.
        triples: edges of old or new nodes.

    Raises:
        DataError: a table cannot be used (as in `validate`), a column cannot be cast to the type
            it has in the catalogue, or all items are known already.
    """
    items, notes = validate_items(items, "new items")
    known = items["item_id"].is_in(catalog.item_ids.drop_nulls().implode())
    if known.all():
        raise DataError(
            f"new items: all {len(items):,} are in the trained catalogue; leave the table out"
        )
    if known.any():
        notes.append(f"new items: {known.sum():,} are known already and stay as in training.")
    fresh = _cast_alike(items.filter(~known), catalog.items)
    table = pl.concat([catalog.items, fresh], how="diagonal")
    edges = item_triples(fresh)
    if triples is not None:
        checked, more = validate_triples(triples, table["item_id"], "new triples", False)
        edges = pl.concat([edges, checked])
        notes += more
    edges, left_out = _representable(edges.unique(maintain_order=True), catalog.graph)
    if left_out:
        notes.append(
            f"new items: {left_out:,} edges of relations or node types that training has not "
            "seen are left out."
        )
    graph = _grown(catalog.graph, table["item_id"], edges)
    return Extension(
        catalog=Catalog(table, graph),
        entities=_entity_rows(catalog.graph, graph),
        num_old=catalog.num_items,
        notes=tuple(notes),
    )


def _cast_alike(items: pl.DataFrame, like: pl.DataFrame) -> pl.DataFrame:
    """The columns of both tables in the types of the second."""
    for name in set(items.columns) & set(like.columns):
        wanted = like.schema[name]
        try:
            items = items.with_columns(pl.col(name).cast(wanted))
        except pl.exceptions.PolarsError as error:
            raise DataError(
                f"new items, column {name!r}: {items.schema[name]} does not become {wanted}, the "
                f"type in training ({str(error).splitlines()[0]}). Convert it"
            ) from error
    return items


def _representable(edges: pl.DataFrame, graph: KnowledgeGraph) -> tuple[pl.DataFrame, int]:
    """The edges whose relation and types a graph has, and the number of the others."""
    types = [node_type.name for node_type in graph.types]
    kept = edges.filter(
        pl.col("relation").is_in(list(graph.relations))
        & pl.col("head_type").is_in(types)
        & pl.col("tail_type").is_in(types)
    )
    return kept, len(edges) - len(kept)


def _grown(graph: KnowledgeGraph, item_ids: pl.Series, edges: pl.DataFrame) -> KnowledgeGraph:
    """The graph with more items, the entities that new edges name, and these edges."""
    ends = pl.concat(
        edges.select(pl.col(f"{end}_type").alias("type"), pl.col(end).alias("id"))
        for end in ("head", "tail")
    ).unique(maintain_order=True)
    types: list[NodeType] = []
    for old in graph.types:
        ids = item_ids
        if old.name != ITEM:
            named = ends.filter(pl.col("type") == old.name)["id"]
            new = named.filter(~named.is_in(old.ids.drop_nulls().implode()))
            ids = pl.concat([old.ids, new.alias(old.ids.name)])
        offset = types[-1].offset + types[-1].capacity if types else 0
        types.append(NodeType(old.name, ids, offset))
    renumbered = np.zeros(graph.num_nodes, np.int32)
    for old, new_type in zip(graph.types, types, strict=True):
        rows = np.arange(old.count)
        renumbered[old.offset + rows] = new_type.offset + rows
    numbers = {name: number for number, name in enumerate(graph.relations)}
    all_edges = np.stack(
        [
            np.concatenate(
                [renumbered[graph.heads], node_ids(types, edges["head_type"], edges["head"])]
            ),
            np.concatenate([graph.edge_relations, [numbers[name] for name in edges["relation"]]]),
            np.concatenate(
                [renumbered[graph.tails], node_ids(types, edges["tail_type"], edges["tail"])]
            ),
        ]
    ).astype(np.int32)
    # an edge that training had already is not added again
    _, first = np.unique(all_edges, axis=1, return_index=True)
    heads, relations, tails = all_edges[:, np.union1d(first, np.arange(len(graph.heads)))]
    return KnowledgeGraph(tuple(types), graph.relations, heads, relations, tails)


def _entity_rows(old: KnowledgeGraph, new: KnowledgeGraph) -> Int[np.ndarray, " N-I"]:
    """Row of the old graph's entity table for every node of the new one behind its items."""
    old_items, new_items = old.types[0].capacity, new.types[0].capacity
    rows = np.zeros(new.num_nodes - new_items, np.int32)
    for before, after in zip(old.types[1:], new.types[1:], strict=True):
        local = np.arange(after.capacity)
        start = after.offset - new_items
        rows[start : start + after.capacity] = (
            before.offset - old_items + np.where(local < before.count, local, 0)
        )
    return rows
