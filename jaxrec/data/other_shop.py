"""The catalogue of another shop, in the node types and relations of a trained one."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Int

from jaxrec.data.extend import entity_rows, representable
from jaxrec.data.graph import UNKNOWN_ITEM, edge_numbers, item_triples, node_types
from jaxrec.data.tables import validate_items, validate_triples
from jaxrec.errors import DataError
from jaxrec.types import Catalog, KnowledgeGraph, NodeType


@dataclass(frozen=True)
class OtherShop:
    """A catalogue whose items no model was trained on.

    Attributes:
        catalog: its items and its graph; node types and relations are those of training.
        entities: the row of every entity in the entity table of the model: that of the same name,
            or that of the unknown node of its type.
        known: how many entities have a name that training has seen, of how many.
    """

    catalog: Catalog
    entities: Int[np.ndarray, " entities"]
    known: tuple[int, int]
    notes: tuple[str, ...]


def other_shop(
    trained: KnowledgeGraph, items: pl.DataFrame, triples: pl.DataFrame | None = None
) -> OtherShop:
    """The catalogue of another shop.

    Edges with a relation or a node type that training has not seen are left out, as the model has
    no parameters for them. An item id says nothing across shops: all items are new ones.

    Raises:
        DataError: a table is invalid (as in `validate_tables`), or holds no item.
    """
    items, warnings, notes = validate_items(items, "items")
    if items.is_empty():
        raise DataError("items: the table of the other shop has no rows")
    table = pl.concat([UNKNOWN_ITEM, items], how="diagonal")
    edges = item_triples(items)
    if triples is not None:
        triples, triple_notes = validate_triples(triples, table["item_id"], "triples", False)
        edges, notes = pl.concat([edges, triples]), notes + triple_notes
    edges, dropped_notes = representable(edges.unique(maintain_order=True), trained)
    no_nodes = pl.Series([None], dtype=pl.String)
    empty = [NodeType(node_type.name, no_nodes, 0) for node_type in trained.types]
    types = node_types(table["item_id"], edges, empty)
    numbers = edge_numbers(types, trained.relations, edges)
    graph = KnowledgeGraph(types, trained.relations, *numbers)
    known = _num_known(trained, graph), sum(node_type.count - 1 for node_type in types[1:])
    entities = entity_rows(trained, graph)
    return OtherShop(Catalog(table, graph), entities, known, (*warnings, *notes, *dropped_notes))


def _num_known(trained: KnowledgeGraph, graph: KnowledgeGraph) -> int:
    """How many entities have the name of a trained one of the same type."""
    pairs = zip(trained.types[1:], graph.types[1:], strict=True)
    return sum(int(after.ids[1:].is_in(before.ids.implode()).sum()) for before, after in pairs)
