"""Small catalogues."""

import polars as pl

from jaxrec.data.graph import build_graph
from jaxrec.data.spec import TRIPLE_COLUMNS
from jaxrec.types import Catalog, KnowledgeGraph

ITEMS = pl.DataFrame(
    {
        "item_id": [None, "a", "b", "c"],
        "brand": [None, "acme", "zeta", "acme"],
        "categories": [None, ["Beauty", "Hair", "Dye"], ["Beauty"], None],
        "price": [None, 1.5, 2.0, None],
    }
)


TRIPLES = pl.DataFrame(
    [("item", "b", "goes_with", "item", "a"), ("entity", "acme", "based_in", "entity", "Oslo")],
    schema=TRIPLE_COLUMNS,
    orient="row",
)


def make_catalog(items: pl.DataFrame, triples: pl.DataFrame | None = None) -> Catalog:
    return Catalog(items, build_graph(items, triples))


def node_names(graph: KnowledgeGraph) -> dict[int, tuple[str, str | None]]:
    """Name of every node except padding."""
    return {
        block.offset + local: (block.name, name)
        for block in graph.types
        for local, name in enumerate(block.ids)
    }


def many_items(count: int) -> pl.DataFrame:
    """Items with a brand and a category of their own."""
    numbers = range(count)
    return pl.DataFrame(
        {
            "item_id": [f"n{n}" for n in numbers],
            "brand": [f"brand {n}" for n in numbers],
            "categories": [f"shelf {n}" for n in numbers],
        }
    )
