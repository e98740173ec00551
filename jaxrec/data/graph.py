"""The typed knowledge graph of item columns and triples."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from jaxtyping import Int

from jaxrec.data.columns import as_labels, index_in
from jaxrec.data.item_columns import CATEGORY_SEPARATOR
from jaxrec.data.spec import TRIPLE_COLUMNS
from jaxrec.errors import DataError
from jaxrec.types import PADDING_MULTIPLE, KnowledgeGraph, NodeType

ITEM = "item"
# row 0 of an items table in index order
UNKNOWN_ITEM = pl.DataFrame({"item_id": [None]}, schema={"item_id": pl.String})
MAX_NUMBERS = 2**31 - 2 * PADDING_MULTIPLE  # as the numbers of nodes and edges are int32
# column of the items table -> (relation, node type); a list column links to each of its values
COLUMN_RELATIONS = {
    "brand": ("has_brand", "brand"),
    "merchant": ("sold_by", "merchant"),
    "category": ("in_category", "category"),
    "genres": ("has_genre", "genre"),
}


def item_triples(items: pl.DataFrame) -> pl.DataFrame:
    """Triples from the graph columns of an items table.

    `categories` holds a path from the root. Triples link the item to the leaf and every category to
    its parent, so the root is not linked to every item. Raises a DataError for nested values.
    """
    items = items.select(column for column in items if column.dtype != pl.Null)
    parts = [_no_triples()]
    for column, (relation, tail_type) in COLUMN_RELATIONS.items():
        if column in items.columns:
            parts.append(_column_triples(items, column, relation, tail_type))
    if "categories" in items.columns:
        parts += _path_triples(items)
    return pl.concat(parts)


def build_graph(
    items: pl.DataFrame, triples: pl.DataFrame | None, relations: Sequence[str] = ()
) -> KnowledgeGraph:
    """The knowledge graph of an items table and triples.

    The relations of item columns replace those of the same names in `triples`.

    Args:
        items: in index order; row 0 is the unknown item.
        relations: names of the relations to keep; all if empty.

    Raises:
        DataError: a name in `relations` does not occur.
    """
    derived = item_triples(items.filter(pl.col("item_id").is_not_null()))
    given = _no_triples() if triples is None else triples.select(TRIPLE_COLUMNS)
    given = given.filter(~pl.col("relation").is_in(derived["relation"].unique().to_list()))
    edges = pl.concat([derived, given]).unique(maintain_order=True)
    names = edges["relation"].unique(maintain_order=True).to_list()
    missing = [name for name in relations if name not in names]
    if missing:
        raise DataError(
            f"data.relations: the data have no {missing}; they have {', '.join(names) or 'none'}"
        )
    edges = edges.filter(pl.col("relation").is_in(list(relations or names)))
    types = node_types(items["item_id"], edges)
    check_size(types[-1].offset + types[-1].padded_size, len(edges))
    kept = tuple(edges["relation"].unique(maintain_order=True))
    return KnowledgeGraph(types, kept, *edge_numbers(types, kept, edges))


def check_size(num_nodes: int, num_edges: int) -> None:
    """Raise a DataError if nodes, or edges in both directions, are no numbers of 32 bits."""
    if max(num_nodes, 2 * num_edges) > MAX_NUMBERS:
        raise DataError(
            f"the graph has {num_nodes:,} nodes and {num_edges:,} edges; at most {MAX_NUMBERS:,} "
            f"nodes and {MAX_NUMBERS // 2:,} edges are possible. Name fewer in data.relations, or "
            "leave out items"
        )


def node_types(
    item_ids: pl.Series, edges: pl.DataFrame, known: Sequence[NodeType] = ()
) -> tuple[NodeType, ...]:
    """Node types of items and of the ends of edges; known types and their nodes come first."""
    ends = pl.concat(
        edges.select(pl.col(f"{end}_type").alias("type"), pl.col(end).alias("id"))
        for end in ("head", "tail")
    ).unique(maintain_order=True)
    known_ids = {node_type.name: node_type.ids for node_type in known}
    types: list[NodeType] = []
    for name in dict.fromkeys([ITEM, *known_ids, *ends["type"]]):
        ids = item_ids
        if name != ITEM:
            old = known_ids.get(name, pl.Series([None], dtype=pl.String))
            new = ends.filter(pl.col("type") == name)["id"]
            ids = pl.concat([old, new.filter(~new.is_in(old.drop_nulls().implode()))])
        offset = types[-1].offset + types[-1].padded_size if types else 0
        types.append(NodeType(name, ids, offset))
    return tuple(types)


def edge_numbers(
    types: Sequence[NodeType], relations: Sequence[str], edges: pl.DataFrame
) -> tuple[Int[np.ndarray, " E"], Int[np.ndarray, " E"], Int[np.ndarray, " E"]]:
    """Triples as numbers: head node, position in `relations`, tail node."""
    return (
        node_ids(types, edges["head_type"], edges["head"]),
        edges["relation"].cast(pl.Enum(relations)).to_physical().cast(pl.Int32).to_numpy(),
        node_ids(types, edges["tail_type"], edges["tail"]),
    )


def node_ids(
    types: Sequence[NodeType], type_names: pl.Series, ids: pl.Series
) -> Int[np.ndarray, " E"]:
    """Node ids of named entities; an unknown entity gets the unknown node of its type."""
    nodes = np.zeros(len(ids), np.int32)
    for node_type in types:
        of_type = type_names == node_type.name
        local_ids = index_in(ids.filter(of_type), node_type.ids).fill_null(0)
        nodes[of_type.to_numpy()] = node_type.offset + local_ids.to_numpy()
    return nodes


def _column_triples(
    items: pl.DataFrame, column: str, relation: str, tail_type: str
) -> pl.DataFrame:
    frame = items.select("item_id", as_labels(items[column], "items"))
    if isinstance(frame.schema[column], pl.List):
        frame = frame.explode(column, empty_as_null=False)
    not_blank = pl.col(column).str.strip_chars() != ""
    return _triples(frame.drop_nulls().filter(not_blank), ITEM, relation, tail_type)


def _path_triples(items: pl.DataFrame) -> list[pl.DataFrame]:
    """item -> leaf, and child -> parent for every prefix of the path."""
    path = pl.col("categories")
    items = items.filter(path.list.len() > 0)
    leaves = items.select("item_id", path.list.join(CATEGORY_SEPARATOR))
    triples = [_triples(leaves, ITEM, "in_category", "category")]
    for level in range(1, int(items["categories"].list.len().to_numpy().max(initial=0))):
        parents = items.filter(path.list.len() > level).select(
            child=path.list.head(level + 1).list.join(CATEGORY_SEPARATOR),
            parent=path.list.head(level).list.join(CATEGORY_SEPARATOR),
        )
        parents = parents.unique(maintain_order=True)
        triples.append(_triples(parents, "category", "child_of", "category"))
    return triples


def _triples(pairs: pl.DataFrame, head_type: str, relation: str, tail_type: str) -> pl.DataFrame:
    head, tail = pairs.columns
    return pairs.select(
        head_type=pl.lit(head_type),
        head=pl.col(head).cast(pl.String),
        relation=pl.lit(relation),
        tail_type=pl.lit(tail_type),
        tail=pl.col(tail).cast(pl.String),
    )


def _no_triples() -> pl.DataFrame:
    return pl.DataFrame(schema=dict.fromkeys(TRIPLE_COLUMNS, pl.String))
