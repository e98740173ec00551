"""The typed knowledge graph of item columns and triples."""

from collections.abc import Sequence
from typing import NamedTuple

import jraph
import numpy as np
import polars as pl
from jaxtyping import Int
from scipy.sparse import csr_array

from jaxrec.data.columns import as_labels, index_in
from jaxrec.data.item_columns import CATEGORY_SEPARATOR
from jaxrec.data.opener import TRIPLE_COLUMNS
from jaxrec.errors import DataError
from jaxrec.types import KnowledgeGraph, NodeType, padded_size

ITEM = "item"
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
    kept = tuple(edges["relation"].unique(maintain_order=True))
    return KnowledgeGraph(types, kept, *edge_numbers(types, kept, edges))


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


class Edges(NamedTuple):
    """Messages to nodes: the receiver, the relation and the sender of each."""

    receivers: Int[np.ndarray, " E"]
    relations: Int[np.ndarray, " E"]
    senders: Int[np.ndarray, " E"]


def graphs_tuple(graph: KnowledgeGraph) -> jraph.GraphsTuple:
    """Edges in both directions as of `padded_graph`.

    Relation ids are r for a forward edge, R + r for its reverse, 2 R for padding.
    """
    num_relations = len(graph.relations)
    edges = Edges(
        receivers=np.concatenate([graph.tails, graph.heads]),
        relations=np.concatenate([graph.edge_relations, graph.edge_relations + num_relations]),
        senders=np.concatenate([graph.heads, graph.tails]),
    )
    return padded_graph(
        edges,
        node_degrees(graph)[edges.senders],
        num_nodes=graph.num_nodes,
        size=padded_size(len(edges.senders) + 1),
        padding_relation=2 * num_relations,
    )


def padded_graph(
    edges: Edges,
    degrees: Int[np.ndarray, " E"],
    *,
    num_nodes: int,
    size: int,
    padding_relation: int,
) -> jraph.GraphsTuple:
    """Edges sorted by receiver and padded, without node features; `edges` holds relation ids.

    Padding edges go from the last node, which is always unused, to itself. Of the edges of a
    receiver, those from senders with few edges come first, as they tell most of it.

    Args:
        degrees: of the senders.
        size: number of edges with the padding.
    """
    order, last = np.lexsort((degrees, edges.receivers)), num_nodes - 1

    def sorted_and_padded(values: np.ndarray, fill: int) -> Int[np.ndarray, " padded"]:
        padded = np.full(size, fill, np.int32)
        padded[: len(order)] = values[order]
        return padded

    return jraph.GraphsTuple(
        nodes=None,
        edges=sorted_and_padded(edges.relations, padding_relation),
        senders=sorted_and_padded(edges.senders, last),
        receivers=sorted_and_padded(edges.receivers, last),
        globals=None,
        n_node=np.array([last, 1], np.int32),
        n_edge=np.array([len(order), size - len(order)], np.int32),
    )


def node_degrees(graph: KnowledgeGraph) -> Int[np.ndarray, " N"]:
    """The number of edges at every node."""
    return np.bincount(np.concatenate([graph.heads, graph.tails]), minlength=graph.num_nodes)


def first_neighbours(graph: KnowledgeGraph, type_name: str) -> Int[np.ndarray, " I"]:
    """The local id of every item's first neighbour of a node type; 0 if there is none."""
    node_type = graph.type(type_name)
    ends = np.stack([graph.heads, graph.tails], 1)
    items, entities = ends.ravel(), ends[:, ::-1].ravel()  # either end may be the item
    selected = (
        (items < graph.types[0].count)
        & (entities >= node_type.offset)
        & (entities < node_type.offset + node_type.count)
    )
    neighbours = np.zeros(graph.types[0].count, np.int32)
    # Backwards, because the last assignment wins.
    neighbours[items[selected][::-1]] = entities[selected][::-1] - node_type.offset
    return neighbours


def neighbourhoods(graph: KnowledgeGraph) -> csr_array:
    """The neighbours of every item as weights over all nodes [I, N], with rows of length 1.

    A neighbour of degree d has the weight 1 / sqrt(log(1 + d)). So the product of two rows is the
    normalised index of Adamic & Adar ("Friends and neighbors on the web", 2003): 1 for items with
    the same neighbours, 0 for items without common neighbours.
    """
    ends = np.stack([graph.heads, graph.tails], 1)
    items, nodes = ends.ravel(), ends[:, ::-1].ravel()  # either end may be the item
    degrees = node_degrees(graph)
    selected = items < graph.types[0].count
    items, nodes = np.unique(np.stack([items[selected], nodes[selected]]), axis=1)
    weights = 1 / np.sqrt(np.log1p(degrees[nodes]))
    lengths = np.sqrt(np.bincount(items, weights**2, minlength=graph.types[0].count))
    shape = (graph.types[0].count, graph.num_nodes)
    return csr_array((weights / lengths[items], (items, nodes)), shape=shape)


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
