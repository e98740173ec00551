"""A trained model for the catalogue of another shop, without training."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from jaxtyping import Array

from jaxrec.artifacts.catalog_files import NEVER
from jaxrec.artifacts.run_directory import SIMILAR_TEXT
from jaxrec.data.id_types import id_type
from jaxrec.data.other_shop import other_shop
from jaxrec.errors import InputError
from jaxrec.evaluation.similar_text import similar_texts
from jaxrec.inference.catalog_index import CatalogIndex, encoded_index
from jaxrec.inference.encoding import catalog_arrays
from jaxrec.inference.item_features import catalog_features
from jaxrec.inference.text_features import new_item_text
from jaxrec.models.items.encoder import ENTITY_TABLE
from jaxrec.models.items.id import ITEM_TABLE
from jaxrec.models.recommender import Params
from jaxrec.ranking.history_bias import ItemNeighbours

if TYPE_CHECKING:
    from jaxrec.inference.trained_model import TrainedModel  # whose method calls this


def for_shop(
    model: "TrainedModel", items: pl.DataFrame, triples: pl.DataFrame | None
) -> "TrainedModel":
    """`TrainedModel.for_shop` of tables in memory."""
    if model.config.model.sources == ("id",):
        raise InputError(
            "the model knows items by their ids alone, which say nothing in another shop; train "
            "one with text, graph or vectors in model.experts"
        )
    trained = model.artifacts
    shop = other_shop(trained.catalog.graph, items, triples)
    catalog = shop.catalog
    graph, count = catalog.graph, len(catalog.items)
    num_items = graph.types[0].padded_size
    params = moved(model.model.params, shop.entities, num_items)
    moved_model = replace(model.model, params=params)
    tower = moved_model.merge().text_tower
    text = new_item_text(
        catalog.items, model.config, trained.whitening, tower, trained.text_encoder
    )
    features = catalog_features(catalog.items, trained.features)
    arrays = catalog_arrays(catalog, text, np.zeros(count, np.int32), features=features)
    counts = np.zeros(count, trained.counts.dtype)
    sizes = replace(trained.sizes, num_items=num_items, num_nodes=graph.num_nodes, num_ids=0)
    artifacts = replace(
        trained,
        catalog=catalog,
        counts=counts,
        has_trained_id=np.zeros(count, bool),
        sizes=sizes,
        shops=(),
        item_id_type=str(id_type(items.schema["item_id"])),
        trained_until=NEVER,
        seen_until=NEVER,
    )
    index = encoded_index(moved_model, model.correction, catalog, counts, arrays)
    known, entities = shop.known
    named = f"{known:,} of {entities:,} brands, categories and so on are known from training"
    notes = (*shop.notes, f"other shop: {count - 1:,} items; {named}")
    return replace(
        model,
        artifacts=artifacts,
        model=moved_model,
        index=index,
        neighbours=_similar_texts(model, index),
        notes=notes,
    )


def _similar_texts(model: "TrainedModel", index: CatalogIndex) -> dict[str, ItemNeighbours]:
    """Items with similar texts in the other shop, as strong as in training."""
    earlier, fit = model.neighbours.get(SIMILAR_TEXT), model.correction.similar_text
    if earlier is None or fit is None:
        return {}
    table = similar_texts(np.asarray(index.text), index.items.valid)
    return {} if table is None else {SIMILAR_TEXT: table.fitted(fit, earlier.event_types)}


def moved(params: Params, entities: np.ndarray, num_items: int) -> Params:
    """The parameters with the tables of another catalogue.

    Args:
        entities: the row of every entity in the entity table of training.
        num_items: rows of the new id table; all are those of the unknown item.
    """

    def move(path: tuple[Any, ...], leaf: Array) -> Array:
        name = jax.tree_util.keystr(path)
        if ITEM_TABLE.search(name):
            return jnp.broadcast_to(leaf[:1], (num_items, leaf.shape[1]))
        return jnp.asarray(leaf)[entities] if ENTITY_TABLE.search(name) else leaf

    return jax.tree_util.tree_map_with_path(move, params)
