"""The data of several shops side by side: users, events, items and nodes of one after another.

Nothing of a shop is merged with anything of another one. Nodes of the same name, such as a brand
that two shops sell, are different nodes of the graph.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from jaxrec.data.graph import ITEM, UNKNOWN_ITEM
from jaxrec.data.graph_arrays import first_rows
from jaxrec.data.splits import Split
from jaxrec.errors import DataError
from jaxrec.types import Catalog, EventLog, KnowledgeGraph, NodeType, Queries

SEPARATOR = "/"  # between the name of a shop and an id


def joined_split(splits: Mapping[str, Split], num_items: Sequence[int]) -> Split:
    """The split logs of shops as one; each shop keeps the moments that divide it.

    Args:
        num_items: of each shop, without the unknown item.
    """
    parts = list(splits.values())
    users = first_rows([split.log.num_users for split in parts])
    events = first_rows([len(split.log.items) for split in parts])

    def joined(queries: Sequence[Queries]) -> Queries:
        return Queries(
            np.concatenate([q.users + n for q, n in zip(queries, users, strict=True)]),
            np.concatenate([q.positions + n for q, n in zip(queries, events, strict=True)]),
        )

    return Split(
        joined_log({name: split.log for name, split in splits.items()}, num_items),
        np.concatenate([split.train_lengths for split in parts]),
        np.concatenate([split.before_test for split in parts]),
        joined([split.validation for split in parts]),
        {name: joined([split.test[name] for split in parts]) for name in parts[0].test},
    )


def joined_log(logs: Mapping[str, EventLog], num_items: Sequence[int]) -> EventLog:
    """The logs of shops, which have the same event types, as one; arguments as `joined_split`."""
    parts = list(logs.values())
    items = [
        np.where(log.items > 0, log.items + first, 0).astype(np.int32)
        for log, first in zip(parts, first_rows(num_items), strict=True)
    ]
    return EventLog(
        user_ids=pl.concat([_named(name, log.user_ids) for name, log in logs.items()]),
        event_type_names=parts[0].event_type_names,
        offsets=np.concatenate([[0], np.cumsum(np.concatenate([log.lengths for log in parts]))]),
        items=np.concatenate(items),
        event_types=np.concatenate([log.event_types for log in parts]),
        times=np.concatenate([log.times for log in parts]),
        has_time=parts[0].has_time,
    )


def joined_catalog(catalogs: Mapping[str, Catalog], columns: Sequence[str]) -> Catalog:
    """The items of shops as one table, with the name of the shop before each id, and their graphs.

    Args:
        columns: of the items, as far as a shop has them.

    Raises:
        DataError: a column has different types in the shops.
    """
    tables = [
        catalog.items[1:].select(
            _named(name, catalog.item_ids[1:]), *(n for n in columns if n in catalog.items.columns)
        )
        for name, catalog in catalogs.items()
    ]
    try:
        items = pl.concat([UNKNOWN_ITEM, *tables], how="diagonal_relaxed")
    except pl.exceptions.PolarsError as error:
        raise DataError(
            f"items: the shops {', '.join(catalogs)} have columns of the same name and different "
            f"types ({str(error).splitlines()[0]}); write {', '.join(columns)} alike in all"
        ) from None
    graph = joined_graph([catalog.graph for catalog in catalogs.values()], items["item_id"])
    return Catalog(items, graph)


def joined_graph(graphs: Sequence[KnowledgeGraph], item_ids: pl.Series) -> KnowledgeGraph:
    """Graphs side by side; node types and relations are united by name.

    Args:
        item_ids: of all items, in the order of the graphs.
    """
    places = [np.zeros(graph.num_nodes, np.int32) for graph in graphs]
    types: list[NodeType] = []
    for name in dict.fromkeys(node_type.name for graph in graphs for node_type in graph.types):
        offset = types[-1].offset + types[-1].padded_size if types else 0
        ids, count = [pl.Series([None], dtype=pl.String)], 0
        for graph, place in zip(graphs, places, strict=True):
            for own in (node_type for node_type in graph.types if node_type.name == name):
                place[own.offset : own.offset + own.count] = offset + count + np.arange(own.count)
                place[own.offset] = offset
                ids.append(own.ids[1:])
                count += own.count - 1
        types.append(NodeType(name, item_ids if name == ITEM else pl.concat(ids), offset))
    relations = tuple(dict.fromkeys(name for graph in graphs for name in graph.relations))
    numbers = [
        np.array([relations.index(name) for name in graph.relations], np.int32) for graph in graphs
    ]
    return KnowledgeGraph(
        tuple(types),
        relations,
        np.concatenate([p[g.heads] for g, p in zip(graphs, places, strict=True)]),
        np.concatenate([n[g.edge_relations] for g, n in zip(graphs, numbers, strict=True)]),
        np.concatenate([p[g.tails] for g, p in zip(graphs, places, strict=True)]),
    )


def _named(shop: str, ids: pl.Series) -> pl.Series:
    return (shop + SEPARATOR + ids).alias(ids.name)
