"""A trained model over today's catalogue."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from jaxtyping import Float

from jaxrec.data.extend import extend_catalog
from jaxrec.data.text import item_texts
from jaxrec.errors import InputError
from jaxrec.inference.catalog_index import encoded_index
from jaxrec.inference.encoding import catalog_arrays
from jaxrec.inference.item_features import catalog_features
from jaxrec.inference.text_features import new_item_text

if TYPE_CHECKING:
    from jaxrec.inference.trained_model import TrainedModel  # whose method calls this


def with_todays_items(
    model: "TrainedModel", items: pl.DataFrame, triples: pl.DataFrame | None
) -> "TrainedModel":
    """`TrainedModel.with_items` of tables in memory."""
    trained = model.artifacts
    if model.catalog is not trained.catalog:
        raise InputError("the model has today's items already; give all of them in one table")
    extension = extend_catalog(trained.catalog, items, triples)
    catalog, notes = extension.catalog, (*model.notes, *extension.notes)
    text = _todays_text(model, catalog.items)
    features = catalog_features(catalog.items, trained.features, "new items")
    before = model.features
    same_features = all(np.array_equal(features[name], before[name]) for name in before)
    if text is None and same_features and catalog.graph is trained.catalog.graph:
        # all vectors stay
        return replace(model, index=replace(model.index, catalog=catalog), notes=notes)
    text = np.asarray(model.index.text)[: extension.num_old] if text is None else text
    padding = (0, len(text) - len(trained.counts))
    counts, ids = np.pad(trained.counts, padding), np.pad(trained.id_rows, padding)
    arrays = catalog_arrays(catalog, text, ids, extension.entities, features)
    index = encoded_index(model.model, model.correction, catalog, counts, arrays)
    return replace(model, index=index, notes=notes)


def _todays_text(model: "TrainedModel", items: pl.DataFrame) -> Float[np.ndarray, "n text"] | None:
    """The text vectors of a table of items; None if the text of training is still right.

    Texts that are new or have changed are encoded.
    """
    trained, config = model.artifacts, model.config
    num_old = len(trained.catalog.items)
    changed = np.arange(num_old, len(items))
    if trained.whitening is not None:
        columns = config.data.text_columns
        before, after = (item_texts(table, columns) for table in (trained.catalog.items, items))
        retold = [row for row in range(num_old) if before[row] != after[row]]
        changed = np.concatenate([np.array(retold, np.int64), changed])
    if not len(changed):
        return None
    tower = model.model.merge().text_tower
    new = new_item_text(items[changed], config, trained.whitening, tower, trained.text_encoder)
    old = np.asarray(model.index.text)[:num_old]
    text = np.pad(old, ((0, len(items) - num_old), (0, 0)))
    text[changed] = new
    return text
