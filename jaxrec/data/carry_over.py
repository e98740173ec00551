"""What a warm start carries over from the data of the run that it goes on from."""

from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from jaxtyping import Bool, Int

from jaxrec.data.columns import index_in
from jaxrec.data.graph import ITEM
from jaxrec.data.spec import TRIPLE_COLUMNS
from jaxrec.data.tables import Tables
from jaxrec.types import Catalog, KnowledgeGraph


@dataclass(frozen=True)
class Carried:
    """The data side of an earlier run."""

    catalog: Catalog
    trained: Bool[np.ndarray, " n"]  # items with a training event
    has_id: Bool[np.ndarray, " n"]  # items with an id of their own
    event_type_names: tuple[str, ...]
    since: int  # seconds since 1970; later events are new
    drop_items: bool  # leave out items that the new tables do not hold


def with_carried_items(tables: Tables, carried: Carried) -> Tables:
    """The tables with the earlier items that they lack, and the earlier edges of these.

    An item that only the events name has the columns that it had in the earlier table. New rows
    keep their order and come first.
    """
    items, earlier = tables.items, carried.catalog.items[1:]
    missing = earlier.join(items, on="item_id", how="anti", maintain_order="left")
    if carried.drop_items:
        missing = missing.clear()
    described = items.filter(pl.any_horizontal(pl.exclude("item_id").is_not_null()))
    ids = pl.concat([items.select("item_id"), missing.select("item_id")])
    restored = earlier.join(ids, on="item_id", how="semi").join(described, on="item_id", how="anti")
    if restored.is_empty():
        return tables
    known = pl.concat([described, _cast_like(restored, items)], how="diagonal_relaxed")
    merged = ids.join(known, on="item_id", how="left", maintain_order="left")
    ends = [(pl.col(f"{end}_type") == ITEM, pl.col(end)) for end in ("head", "tail")]
    restored_ids, all_ids = restored["item_id"].implode(), merged["item_id"].implode()
    edges = named_edges(carried.catalog.graph).filter(
        pl.any_horizontal(*(is_item & node.is_in(restored_ids) for is_item, node in ends)),
        *(~is_item | node.is_in(all_ids) for is_item, node in ends),
    )
    given = [] if tables.triples is None else [tables.triples.select(TRIPLE_COLUMNS)]
    triples = pl.concat([*given, edges]) if given or len(edges) else None
    notes = tables.notes
    if len(missing):
        notes = (*notes, f"Items of the base that the data lack, which stay: {len(missing):,}.")
    return replace(tables, items=merged, triples=triples, notes=notes)


def true_before(
    values: Bool[np.ndarray, " n"], item_ids: pl.Series, carried: Carried
) -> Bool[np.ndarray, " m"]:
    """Which items of a catalogue are true in values by item of the earlier run."""
    rows = old_rows(item_ids, carried.catalog.item_ids)
    return np.where(rows > 0, values[rows], False)


def old_rows(ids: pl.Series, earlier: pl.Series) -> Int[np.ndarray, " n"]:
    """The row of every id in an earlier list of ids; -1 for new ids. Null is row 0 of both.

    Of equal earlier ids, such as a brand that several shops have, the first one counts.
    """
    first = np.flatnonzero(earlier.is_first_distinct().to_numpy())
    places = index_in(ids, earlier.gather(first)).fill_null(-1).to_numpy()
    rows = np.where(places < 0, -1, first[places])
    rows[0] = 0
    return rows


def named_edges(graph: KnowledgeGraph) -> pl.DataFrame:
    """The edges between named nodes as triples."""
    names = pl.concat(
        pl.DataFrame({"id": node_type.ids}).with_columns(type=pl.lit(node_type.name))
        for node_type in graph.types
    )
    nodes = np.concatenate([t.offset + np.arange(t.count) for t in graph.types])
    place = np.zeros(graph.num_nodes, np.int64)
    place[nodes] = np.arange(len(nodes))
    heads, tails = names[place[graph.heads]], names[place[graph.tails]]
    relations = pl.Series(graph.relations, dtype=pl.String)
    triples = pl.DataFrame(
        {
            "head_type": heads["type"],
            "head": heads["id"],
            "relation": relations.gather(graph.edge_relations),
            "tail_type": tails["type"],
            "tail": tails["id"],
        }
    )
    return triples.drop_nulls()


def _cast_like(earlier: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    """Earlier rows in the column types of the new table; what does not convert becomes null."""

    def cast(column: pl.Series) -> pl.Series:
        dtype = items.schema.get(column.name, column.dtype)
        if dtype in (column.dtype, pl.Null):
            return column
        try:
            return column.cast(dtype, strict=False)
        except pl.exceptions.PolarsError:  # such as a list in place of text
            return pl.Series(column.name, [None] * len(column), dtype=dtype)

    return pl.DataFrame([cast(column) for column in earlier])
