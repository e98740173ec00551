"""The tables of a catalogue in a directory: items, the nodes of their graph, and its edges."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from jaxrec.types import Catalog, KnowledgeGraph, NodeType


def write_catalog_tables(directory: Path, catalog: Catalog) -> None:
    """Write the tables; the offsets of node types and the names of relations are not in them."""
    graph = catalog.graph
    catalog.items.write_parquet(directory / "items.parquet")
    pl.concat(
        pl.DataFrame({"id": node_type.ids}).select(pl.lit(node_type.name).alias("type"), "id")
        for node_type in graph.types
    ).write_parquet(directory / "nodes.parquet")
    pl.DataFrame(
        {"head": graph.heads, "relation": graph.edge_relations, "tail": graph.tails}
    ).write_parquet(directory / "edges.parquet")


def read_catalog_tables(
    directory: Path, offsets: Mapping[str, int], relations: Sequence[str]
) -> Catalog:
    """The catalogue; raises what the readers of damaged files raise.

    Args:
        offsets: of the node types, by name.
        relations: their names.
    """
    nodes = pl.read_parquet(directory / "nodes.parquet", glob=False)
    ids = nodes.partition_by("type", as_dict=True)
    edges = pl.read_parquet(directory / "edges.parquet", glob=False)
    types = tuple(NodeType(name, ids[(name,)]["id"], offset) for name, offset in offsets.items())
    columns = (edges[column].to_numpy() for column in ("head", "relation", "tail"))
    items = pl.read_parquet(directory / "items.parquet", glob=False)
    return Catalog(items, KnowledgeGraph(types, tuple(relations), *columns))
