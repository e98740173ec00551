"""The nodes of a trained model by name: ids, titles, vectors."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property

import jax
import numpy as np
import polars as pl
from jaxtyping import Array, Float, Int

from jaxrec.artifacts.mapped import MappedArrays
from jaxrec.data.graph import ITEM
from jaxrec.errors import InputError
from jaxrec.evaluation.calibration import Correction
from jaxrec.inference.encoding import CatalogArrays, encode_catalog
from jaxrec.models.recommender import Model
from jaxrec.partitioning import cut_rows, on_mesh_of
from jaxrec.ranking.codes import encode_rows
from jaxrec.ranking.context import ItemLinks, links_of
from jaxrec.ranking.item_table import ItemTable
from jaxrec.types import Catalog, NodeType


@dataclass(frozen=True)
class CatalogIndex:
    """A catalogue and what the model knows of its nodes."""

    catalog: Catalog  # that of training, or a larger one
    vectors: Float[Array, "N F"]  # of all nodes, items first
    bias: Float[np.ndarray, " I"]  # popularity bias
    text: Float[Array | np.ndarray, "I text"]  # whitened text vectors
    counts: Float[np.ndarray, " n"]  # how often each item was chosen in training
    mapped: MappedArrays | None = None  # where processes share the vectors and what derives of them

    @cached_property
    def items(self) -> ItemTable:
        """The items for a ranking."""
        return self.table(ITEM)

    def table(self, type_name: str) -> ItemTable:
        """The nodes of a type for a ranking; only items have a bias.

        Raises:
            InputError: there is no such type.
        """
        node_type = self.node_type(type_name)
        rows = _rows_of(node_type)
        if self.mapped is None:
            with on_mesh_of(self.vectors):
                vectors = cut_rows(self.vectors, rows.start, rows.stop)
        else:  # a slice made on the device is a copy
            vectors = jax.device_put(np.asarray(self.vectors)[rows], self.vectors.sharding)
        return ItemTable(vectors, node_type.valid, self.bias if type_name == ITEM else None)

    @property
    def links(self) -> ItemLinks:
        """The neighbours of the items, for the steps of a strategy."""
        return links_of(self.catalog.graph)

    def node_type(self, name: str) -> NodeType:
        """A node type; raises an InputError that lists the types."""
        return self.catalog.graph.type(name)

    def unit_vectors(
        self, type_name: str, rows: Int[np.ndarray, " n"] | None = None
    ) -> Float[np.ndarray, "n F"]:
        """Vectors of all or some nodes of a type at length 1, so that products are cosines."""
        vectors = self.host_vectors(type_name)
        return unit_rows(vectors if rows is None else vectors[rows])

    def host_vectors(self, type_name: str) -> Float[np.ndarray, "n F"]:
        """Vectors of all nodes of a type in the memory of the host."""
        return np.asarray(self.vectors)[_rows_of(self.node_type(type_name))]

    def coded(self, table: ItemTable, name: str) -> ItemTable:
        """A table with codes of its vectors, which processes share; see `ItemTable`.

        Args:
            name: of the table.
        """
        encoded = cache(lambda: encode_rows(table.vectors))
        codes = self.derived(f"{name}_codes", lambda: encoded()[0])
        scales = self.derived(f"{name}_scales", lambda: encoded()[1])
        return replace(table, codes=(codes, scales))

    def derived(self, name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """An array that follows from the vectors; computed once for processes that share them."""
        return compute() if self.mapped is None else self.mapped.array(name, compute)

    def find(self, entity: str) -> tuple[str, int]:
        """Type and local id of a node such as `brand:NAME`.

        Raises:
            InputError: there is no such type or node.
        """
        name, separator, identity = str(entity).partition(":")
        if not separator:
            raise InputError(f"{entity!r}: write TYPE:ID, such as item:42 or brand:NAME")
        matches = (self.node_type(name).ids == identity).arg_true()
        if not len(matches):
            raise InputError(f"there is no {name} {identity!r} in the catalogue")
        return name, int(matches[0])

    def names(self, type_name: str, rows: Int[np.ndarray, " n"]) -> pl.DataFrame:
        """`item_id` and, where items have one, `title`; or the id under the type's name."""
        if type_name != ITEM:
            return pl.DataFrame({type_name: self.node_type(type_name).ids.gather(rows)})
        return item_names(self.catalog.items[rows])

    def labels(self, items: Int[np.ndarray, " n"]) -> pl.Series:
        """The title of each item, else its id, for display."""
        return item_labels(self.names(ITEM, items))

    def list_table(
        self,
        user_ids: pl.Series,
        ranked: Int[np.ndarray, "U K"],
        scores: Float[np.ndarray, "U K"],
        type_name: str,
    ) -> pl.DataFrame:
        """Lists as a table: `user_id`, `rank` (from 1), the id, `score`, and `title` of items."""
        users, places = np.nonzero(ranked > 0)
        table = pl.DataFrame(
            {
                "user_id": user_ids.gather(users),
                "rank": (places + 1).astype(np.int32),
                "score": scores[users, places].astype(np.float32),
            }
        )
        names = self.names(type_name, ranked[users, places])
        identity, *title = names.columns
        return pl.concat([table, names], how="horizontal").select(
            "user_id", "rank", identity, "score", *title
        )


def item_names(items: pl.DataFrame) -> pl.DataFrame:
    """`item_id` and, where items have one, `title` as text."""
    if "title" not in items.columns:
        return items.select("item_id")
    title = pl.col("title")
    if isinstance(items.schema["title"], pl.List):
        title = title.cast(pl.List(pl.String)).list.join(" ")
    return items.select("item_id", title.cast(pl.String))


def item_labels(names: pl.DataFrame) -> pl.Series:
    """The title of each item, else its id; `names` as from `item_names`."""
    return names.select(
        pl.coalesce(*reversed(names.columns), pl.lit("unknown item")).alias("label")
    ).to_series()


def encoded_index(
    model: Model,
    correction: Correction,
    catalog: Catalog,
    counts: Float[np.ndarray, " n"],
    arrays: CatalogArrays,
) -> CatalogIndex:
    """The index of a catalogue that the model encodes now.

    Args:
        counts: how often each item was chosen in training, row 0 included.
        arrays: of the catalogue.
    """
    vectors = encode_catalog(model, arrays)
    bias = padded_bias(correction, counts, len(arrays.valid))
    return CatalogIndex(catalog, vectors, bias, arrays.nodes.text, counts)


def padded_bias(
    correction: Correction, counts: Float[np.ndarray, " n"], size: int
) -> Float[np.ndarray, " I"]:
    """The popularity bias of a padded item block."""
    return np.pad(correction.popularity_bias(counts), (0, size - len(counts)))


def _rows_of(node_type: NodeType) -> slice:
    return slice(node_type.offset, node_type.offset + node_type.padded_size)


def unit_rows(vectors: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "n D"]:
    """Vectors divided by their lengths; zero vectors stay zero."""
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))  # `norm` makes a copy for it
    return vectors / np.maximum(lengths, 1e-12)[:, None]
