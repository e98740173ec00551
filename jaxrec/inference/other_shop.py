"""A trained model for the catalogue of another shop, without training."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from jaxtyping import Array

from jaxrec.artifacts.catalog_files import NEVER
from jaxrec.artifacts.run_directory import SIMILAR_TEXT, RunArtifacts
from jaxrec.config import Config
from jaxrec.data.features import FeatureColumns, feature_arrays, missing_shares, vector_columns
from jaxrec.data.id_types import id_type
from jaxrec.data.item_columns import OF_ITEMS, likely_names
from jaxrec.data.other_shop import OtherShop, other_shop
from jaxrec.errors import InputError
from jaxrec.evaluation.similar_text import similar_texts
from jaxrec.inference.catalog_index import CatalogIndex, encoded_index
from jaxrec.inference.encoding import catalog_arrays
from jaxrec.inference.item_features import catalog_features
from jaxrec.inference.text_features import known_texts, new_item_text
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
    notes = (*shop.notes, *lacking_notes(catalog.items[1:], model.config, trained))
    return replace(
        model,
        artifacts=artifacts,
        model=moved_model,
        index=index,
        neighbours=_similar_texts(model, index),
        notes=(*notes, _summary(shop)),
    )


def lacking_notes(items: pl.DataFrame, config: Config, trained: RunArtifacts) -> list[str]:
    """Notes on what the model reads of items and some items of another shop lack."""
    had = trained.catalog.items.columns
    likely = likely_names(items, [name for name in OF_ITEMS if name in had])
    notes = [
        f"items: no {name}, but {other}. If that is the same, rename the column to {name}."
        for name, other in likely.items()
    ]
    counts: dict[str, int] = {}
    if trained.whitening is not None:
        names = [name for name in config.data.text_columns if name in had]
        if lacking := [n for n in names if n not in items.columns and n not in likely]:
            notes.append(f"items: no {', '.join(lacking)}, which texts held in training")
        what = f"a text; the model reads {', '.join(names)}"
        counts[what] = int(known_texts(items, config)[1].sum())
    maps = trained.features
    columns = FeatureColumns(tuple(maps.vectors), tuple(maps.numbers))
    arrays = feature_arrays(items, columns, maps.raw_widths)
    for name, share in missing_shares(arrays).items():
        what = f"a vector in the column {name}" if name in maps.vectors else f"a number in {name}"
        counts[what] = round((1 - share) * len(items))
    notes += [
        f"{count:,} of {len(items):,} items have {what}"
        for what, count in counts.items()
        if count < len(items)
    ]
    unread = [name for name in vector_columns(items) if name not in maps.vectors]
    if maps.vectors and unread:
        notes.append(f"items: the model does not read the vectors of {', '.join(unread)}")
    return notes


def _summary(shop: OtherShop) -> str:
    known, entities = shop.known
    types = [node_type.name for node_type in shop.catalog.graph.types[1:]]
    text = f"other shop: {len(shop.catalog.items) - 1:,} items"
    if entities:
        named = f"{known:,} of {entities:,} brands, categories and so on"
        return f"{text}; {named} are known from training"
    return f"{text}, none with an edge to any {' or '.join(types)}" if types else text


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
