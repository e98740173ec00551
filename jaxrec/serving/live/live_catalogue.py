"""The items of a live service: those of the run, changed by what the shop has sent.

A change is prepared beside the lists and takes effect between two of them, as a whole.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int, Shaped

from jaxrec.data.graph import COLUMN_RELATIONS, item_triples, node_ids
from jaxrec.data.graph_arrays import Edges
from jaxrec.data.item_rows import item_rows, surely_fits
from jaxrec.errors import DataError
from jaxrec.inference.catalog_index import item_names
from jaxrec.inference.item_features import fitting_columns, item_features
from jaxrec.inference.live_index import LiveIndex
from jaxrec.inference.live_text import LiveText
from jaxrec.inference.new_items import NewItemEncoder
from jaxrec.inference.trained_model import TrainedModel
from jaxrec.models.items.features import Features
from jaxrec.serving.live.shop_items import ShopItems
from jaxrec.serving.stores.items import ItemDocument, TextVector

logger = logging.getLogger("uvicorn.error")  # the server sets its format and level

CATEGORY_PATH = "categories"
RECENT_TEXTS = 4096
FEATURE_ROUNDING = 1e-4  # of whitened vectors, whose entries are near 1
# relations that columns of the item table make; a changed item loses those of training
COLUMN_EDGES = (*(relation for relation, _ in COLUMN_RELATIONS.values()), "child_of")


class Encoded(NamedTuple):
    """Items whose vectors have changed."""

    rows: Int[np.ndarray, " n"]
    vectors: Float[np.ndarray, "n F"]
    text: Float[np.ndarray, "n text"]
    groups: dict[str, Int[np.ndarray, " n"]]  # node type -> the first neighbour of each
    links: dict[int, Int[np.ndarray, " m"]]  # row -> its neighbours
    features: dict[str, Shaped[np.ndarray, "n ..."]]  # by column


class CatalogueUpdate(NamedTuple):
    """A change of the catalogue, ready to take effect."""

    sequence: int  # number of the last change in it
    rows: Int[np.ndarray, " n"]
    ids: list[str]
    listed: Bool[np.ndarray, " n"]
    items: pl.DataFrame  # the whole table
    names: pl.DataFrame  # of the rows
    encoded: Encoded
    shop_items: ShopItems
    failed: int  # items that could not be read into the table


class LiveCatalogue:
    """Prepares changes of a live index. One thread at a time may prepare, as it numbers new items.

    Args:
        model: over a `LiveIndex`.
        numbers: item id -> row, of all items; changes take effect in it too.
        shop_items: what the shop shows of the items in effect.
    """

    def __init__(self, model: TrainedModel, numbers: dict[str, int], shop_items: ShopItems):
        self.shop_items = shop_items
        assert isinstance(model.index, LiveIndex)
        self.model, self.index, self.numbers = model, model.index, numbers
        trained = model.artifacts
        self.features = trained.features
        self.num_trained = trained.catalog.num_items
        self.text = LiveText(model)
        self.encoder = NewItemEncoder(
            model.model,
            model.config.model,
            trained.catalog.graph,
            np.asarray(self.index.trained.text)[: trained.catalog.graph.types[0].padded_size],
            trained.id_rows,
            self.index.features,
        )
        self.sequence = 0  # of the last change that is in effect
        self.recent_texts: dict[str, Float[np.ndarray, " hidden"]] = {}  # variants share a text
        # type and name of a node that the run lacks -> its local id, and its id among all nodes
        self.new_nodes: dict[tuple[str, str], tuple[int, int]] = {}
        self.num_new_nodes = Counter[str]()  # by type

    @property
    def new_items(self) -> int:
        """Rows of items that the run lacks, removed ones included."""
        return len(self.numbers) - (self.index.num_trained - 1)

    def known_rows(self, documents: Sequence[ItemDocument]) -> pl.DataFrame:
        """The rows of the run that documents change; null rows where they replace them."""
        base = self.index.trained.catalog.items
        rows = np.array(
            [0 if d.whole else self._trained_row(d.item_id) for d in documents], np.int64
        )
        ids = pl.Series("item_id", [d.item_id for d in documents], pl.String)
        return base[rows].with_columns(ids)

    def table(self, documents: Sequence[ItemDocument]) -> pl.DataFrame:
        """Documents as rows of the item table.

        Raises:
            DataError: a value does not fit its column.
        """
        known, columns = self.known_rows(documents), [d.columns for d in documents]
        table = item_rows(known, columns, self.schema)
        item_features(table, self.features)  # for its errors
        return table

    @property
    def schema(self) -> dict[str, Any]:
        """The types of all columns, those of vectors that the model reads included."""
        return {**self.index.trained.catalog.items.schema, **self.index.catalog.items.schema}

    def checked(self, changes: Sequence[tuple[ItemDocument, ItemDocument]]) -> list[ItemDocument]:
        """Changed documents with the vectors of their texts, encoded where the texts are new.

        Args:
            changes: each document before and after.

        Raises:
            DataError: a value does not fit its column.
        """
        other = [n for n, change in enumerate(changes) if not self._is_simple(*change)]
        result = [after for _, after in changes]
        documents = [result[n] for n in other]
        with_text = self._with_text(documents, self.table(documents)) if other else []
        for number, document in zip(other, with_text, strict=True):
            result[number] = document
        return result

    def _is_simple(self, before: ItemDocument, after: ItemDocument) -> bool:
        """Whether columns such as the price change alone, with values that surely fit."""
        if after.removed:
            return True
        if after.whole != before.whole or before.removed:
            return False
        schema, texts = self.schema, self.model.config.data.text_columns
        return all(
            before.columns.get(name, self) == value
            or (name in schema and name not in texts and surely_fits(value, schema[name]))
            for name, value in after.columns.items()
        ) and not any(name in texts for name in before.columns.keys() - after.columns.keys())

    def _with_text(
        self, documents: Sequence[ItemDocument], table: pl.DataFrame
    ) -> list[ItemDocument]:
        """Documents with the vectors of their texts."""
        if not self.text.is_pooled:
            return [replace(document, text=None) for document in documents]
        own = np.array([n for n, d in enumerate(documents) if self._has_own_text(d)], np.int64)
        texts = self.text.texts(table[own]) if len(own) else []
        keys = [self.text.key(text) if text else "" for text in texts]
        stored = {d.text.encoder: d.text.values for d in documents if d.text is not None}
        known = self.recent_texts | stored
        missing = {k: text for k, text in zip(keys, texts, strict=True) if k and k not in known}
        vectors = dict(zip(missing, self.text.pooled(list(missing.values())), strict=True))
        known |= vectors
        result = list(documents)
        for n, key in zip(own.tolist(), keys, strict=True):
            before = documents[n].text
            if key and (before is None or before.encoder != key):
                result[n] = replace(documents[n], text=TextVector(key, known[key]))
        recent = self.recent_texts | vectors
        self.recent_texts = recent if len(recent) <= RECENT_TEXTS else vectors
        return result

    def is_trained(self, item_id: str) -> bool:
        """Whether the item is one of the run."""
        return self._trained_row(item_id) > 0

    def _trained_row(self, item_id: str) -> int:
        row = self.numbers.get(item_id, 0)
        return row if row < self.index.num_trained else 0

    def _has_own_text(self, document: ItemDocument) -> bool:
        """Whether an item has a text of its own, and not that of the run."""
        names = self.model.config.data.text_columns
        return document.whole or not document.columns.keys().isdisjoint(names)

    def prepare(self, documents: Sequence[ItemDocument]) -> CatalogueUpdate:
        """What changes with documents, in the order of their changes."""
        last = documents[-1].sequence
        kept = [fitting_columns(document.columns, self.features) for document in documents]
        documents = [replace(d, columns=c) for d, c in zip(documents, kept, strict=True)]
        placed, rows = self._placed(documents)
        table, placed, rows, failed = self._tables(placed, rows)
        before = self.index.catalog.items
        listed = np.array([not d.removed for d in placed], bool)
        items = _with_rows(before, table.drop(self.features.vectors), rows)
        names = item_names(table)
        return CatalogueUpdate(
            sequence=last,
            rows=rows,
            ids=[d.item_id for d in placed],
            listed=listed,
            items=items,
            names=names,
            encoded=self._encoded(placed, rows, table),
            shop_items=self.shop_items.with_items(rows, table, names, listed),
            failed=failed,
        )

    def apply(self, update: CatalogueUpdate) -> None:
        """Bring an update into effect; between two lists, because rows change in place.

        Events may be read meanwhile. One that reads a row while it changes takes a vector between
        the old and the new one, which does no harm.
        """
        rows, encoded, index = self.index.rows, update.encoded, self.index
        rows.vectors[encoded.rows] = encoded.vectors
        rows.text[encoded.rows] = encoded.text
        for name, values in encoded.features.items():
            rows.features[name][encoded.rows] = values
        for name, group in encoded.groups.items():
            rows.groups[name][encoded.rows] = group
        index.own_links.own.update(encoded.links)
        rows.valid[update.rows] = update.listed
        index.replace_catalog(update.items)
        self.numbers.update(zip(update.ids, update.rows.tolist(), strict=True))
        self.shop_items = update.shop_items
        self.sequence = update.sequence

    def _placed(
        self, documents: Sequence[ItemDocument]
    ) -> tuple[list[ItemDocument], Int[np.ndarray, " n"]]:
        """The documents that have a row, and their rows; some new items may find no room."""
        free = self.index.num_trained + self.new_items
        placed, rows = list[ItemDocument](), list[int]()
        for document in documents:
            row = self.numbers.get(document.item_id)
            if row is None:
                is_unknown = document.removed and not document.columns
                if is_unknown or free >= self.index.capacity - 1:
                    continue
                row, free = free, free + 1
            placed.append(document)
            rows.append(row)
        return placed, np.array(rows, np.int64)

    def _tables(
        self, documents: list[ItemDocument], rows: Int[np.ndarray, " n"]
    ) -> tuple[pl.DataFrame, list[ItemDocument], Int[np.ndarray, " m"], int]:
        """Documents as rows of the table; those that do not fit are left out and counted."""
        try:
            return self.table(documents), documents, rows, 0
        except DataError:
            kept = self._fitting(documents)
        # without the row of a new item that fails, the numbers after it would leave a gap
        placed, rows = self._placed(kept)
        return self.table(placed), placed, rows, len(documents) - len(kept)

    def _fitting(
        self, documents: list[ItemDocument], kept: Sequence[ItemDocument] = ()
    ) -> list[ItemDocument]:
        """The documents that fit beside those kept; the first one of a new column has its type."""
        try:
            self.table([*kept, *documents])
        except DataError as error:
            if len(documents) == 1:
                logger.error("item %r stays as it was: %s", documents[0].item_id, error)
                return []
            middle = len(documents) // 2
            first = self._fitting(documents[:middle], kept)
            return first + self._fitting(documents[middle:], [*kept, *first])
        return documents

    def _encoded(
        self, documents: Sequence[ItemDocument], rows: Int[np.ndarray, " n"], table: pl.DataFrame
    ) -> Encoded:
        """The items whose texts, edges or features differ from those in effect, encoded."""
        names = (*self.model.config.data.text_columns, *COLUMN_RELATIONS, CATEGORY_PATH)
        names = tuple(name for name in dict.fromkeys(names) if name in table.columns)
        before, after = self.index.catalog.items[rows], table.select(names).rows()
        missing = [pl.lit(None).alias(name) for name in names if name not in before.columns]
        known = before.with_columns(missing).select(names).rows()
        is_new = before["item_id"].is_null().to_list()
        features = item_features(table, self.features)
        moved = self._moved(rows, features)
        changed = np.array(
            [n for n in range(len(rows)) if is_new[n] or moved[n] or known[n] != after[n]], np.int64
        )
        chosen, items = rows[changed], table[changed]
        if not len(chosen):
            all_rows = self.index.rows
            return Encoded(chosen, all_rows.vectors[chosen], all_rows.text[chosen], {}, {}, {})
        ids = np.where(chosen < self.num_trained, chosen, 0)
        edges, groups, links = self._edges(chosen, ids, items)
        # empty where the vector of a text cannot be kept
        texts = self.text.texts(items) if self.text.is_pooled else [""] * len(changed)
        pooled = [self._pooled(documents[n], t) for n, t in zip(changed, texts, strict=True)]
        text = self.text.whitened(items, pooled)
        features = {name: values[changed] for name, values in features.items()}
        vectors = self.encoder.encode(ids, text, edges, features)
        return Encoded(chosen, vectors, text, groups, links, features)

    def _moved(self, rows: Int[np.ndarray, " n"], features: Features) -> Bool[np.ndarray, " n"]:
        """Which items have other features than those in effect, beyond rounding."""
        moved = np.zeros(len(rows), bool)
        for name, values in features.items():
            far = ~np.isclose(values, self.index.rows.features[name][rows], atol=FEATURE_ROUNDING)
            moved |= far.reshape(len(rows), -1).any(1)
        return moved

    def _pooled(self, document: ItemDocument, text: str) -> Float[np.ndarray, " hidden"] | None:
        """The stored vector of a text, if it is the one that this model would compute."""
        stored = document.text
        return None if stored is None or stored.encoder != self.text.key(text) else stored.values

    def _edges(
        self, rows: Int[np.ndarray, " n"], ids: Int[np.ndarray, " n"], items: pl.DataFrame
    ) -> tuple[Edges, dict[str, Int[np.ndarray, " n"]], dict[int, Int[np.ndarray, " m"]]]:
        """The messages to items, their first neighbours by type, and their neighbours."""
        graph = self.encoder.graph
        triples = item_triples(items).unique(maintain_order=True)
        types = [node_type.name for node_type in graph.types[1:]]
        triples = triples.filter(
            pl.col("head_type") == "item",
            pl.col("relation").is_in(list(graph.relations)),
            pl.col("tail_type").is_in(types),
        )
        place = {item_id: n for n, item_id in enumerate(items["item_id"])}
        receivers = np.array([place[head] for head in triples["head"]], np.int64)
        relations = np.array([graph.relations.index(r) for r in triples["relation"]], np.int64)
        senders = node_ids(graph.types, triples["tail_type"], triples["tail"]).astype(np.int64)
        kept = self._edges_of_training(ids)
        edges = Edges(
            np.concatenate([receivers, kept.receivers]),
            np.concatenate([relations + len(graph.relations), kept.relations]),
            np.concatenate([senders, kept.senders]),
        )
        named = list(zip(triples["tail_type"], triples["tail"], strict=True))
        return edges, *self._neighbours(rows, edges, named)

    def _edges_of_training(self, ids: Int[np.ndarray, " n"]) -> Edges:
        """Messages to trained items along edges that columns of the table do not make."""
        graph = self.encoder.graph
        places = np.flatnonzero(ids)
        edges = self.encoder.edges_to(ids[places])
        counts = np.bincount(edges.receivers, minlength=self.num_trained)[ids[places]]
        derived = [n for n, name in enumerate(graph.relations) if name in COLUMN_EDGES]
        kept = ~np.isin(edges.relations % len(graph.relations), derived)
        return Edges(np.repeat(places, counts)[kept], edges.relations[kept], edges.senders[kept])

    def _neighbours(
        self, rows: Int[np.ndarray, " n"], edges: Edges, named: list[tuple[str, str]]
    ) -> tuple[dict[str, Int[np.ndarray, " n"]], dict[int, Int[np.ndarray, " m"]]]:
        """First neighbours and all neighbours, in which new nodes have numbers of their own."""
        graph = self.encoder.graph
        groups = {t.name: np.zeros(len(rows), np.int32) for t in graph.types[1:]}
        links: dict[int, list[int]] = {row: [] for row in rows.tolist()}
        starts = np.array([t.offset for t in graph.types])
        types = np.searchsorted(starts, edges.senders, side="right") - 1
        for number in range(len(edges.receivers)):
            receiver, node = int(edges.receivers[number]), int(edges.senders[number])
            name, local = graph.types[types[number]].name, node - int(starts[types[number]])
            if not local and number < len(named):
                local, node = self._new_node(named[number])
            links[int(rows[receiver])].append(node)
            if name in groups and not groups[name][receiver]:
                groups[name][receiver] = local
        return groups, {row: np.unique(np.array(nodes, np.int64)) for row, nodes in links.items()}

    def _new_node(self, named: tuple[str, str]) -> tuple[int, int]:
        """The ids of a node that training has not seen: of its type, and among all nodes."""
        if named not in self.new_nodes:
            name, graph = named[0], self.index.trained.catalog.graph
            local = graph.type(name).count + self.num_new_nodes[name]
            self.num_new_nodes[name] += 1
            self.new_nodes[named] = (local, graph.num_nodes + len(self.new_nodes))
        return self.new_nodes[named]


def _with_rows(
    items: pl.DataFrame, changed: pl.DataFrame, rows: Int[np.ndarray, " n"]
) -> pl.DataFrame:
    """A table in which some rows are replaced; new columns are null in the others."""
    order = np.arange(len(items))
    order[rows] = len(items) + np.arange(len(rows))
    return pl.concat([items, changed], how="diagonal_relaxed")[order]
