"""Vectors of what users did, by the text encoder that reads the items."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from jaxtyping import Float

from jaxrec.data.behaviour import behaviour_texts
from jaxrec.data.text import tokenize
from jaxrec.errors import InputError
from jaxrec.inference.catalog_index import unit_rows
from jaxrec.inference.text_features import trained_encoder, whitened_vectors
from jaxrec.models.text.whitening import Whitening
from jaxrec.types import EventLog

if TYPE_CHECKING:
    from jaxrec.inference.trained_model import TrainedModel  # whose method calls this

TEXTS = 1024  # at a time, as the outputs of frozen layers take half a megabyte for a long text


def behaviour_table(model: "TrainedModel", log: EventLog, last: int) -> pl.DataFrame:
    """`TrainedModel.behaviour_vectors` of a log."""
    if model.artifacts.whitening is None:
        raise InputError("the model reads no text, so behaviour has no text vectors")
    labels = model.index.labels(np.arange(model.catalog.num_items))
    texts = behaviour_texts(model.encoder.known_events(log), labels, last)
    vectors = np.zeros((len(texts), model.index.text.shape[1]), np.float32)
    known = np.flatnonzero([bool(text) for text in texts])
    for start in range(0, len(known), TEXTS):
        rows = known[start : start + TEXTS]
        vectors[rows] = _encoded(model, model.artifacts.whitening, [texts[row] for row in rows])
    return pl.DataFrame(
        {
            "user_id": log.user_ids,
            "text": pl.Series(texts, dtype=pl.String),
            "vector": pl.Series(vectors, dtype=pl.Array(pl.Float32, vectors.shape[1])),
        }
    )


def _encoded(
    model: "TrainedModel", whitening: Whitening, texts: Sequence[str]
) -> Float[np.ndarray, "n text"]:
    """Whitened vectors at length 1; a text that is too long loses its oldest tokens."""
    encoder, pretrained = model.words.encoder, model.config.text.pretrained
    tokens = tokenize(texts, trained_encoder(pretrained, ""), encoder.max_tokens, cut="left")
    known, tower = np.ones(len(texts), bool), model.model.merge().text_tower
    return unit_rows(whitened_vectors(tokens, known, whitening, tower, encoder))
