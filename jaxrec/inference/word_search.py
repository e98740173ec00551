"""Words that steer a ranking: the text vector of a query beside the user's interest."""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from jaxrec.config import Config
from jaxrec.errors import InputError
from jaxrec.inference.catalog_index import CatalogIndex, unit_rows
from jaxrec.inference.text_features import new_item_text, trained_encoder
from jaxrec.models.recommender import Model
from jaxrec.models.text.build import load_text_encoder
from jaxrec.models.text.encoder import TextEncoder
from jaxrec.models.text.whitening import Whitening
from jaxrec.ranking.item_table import ItemTable

ALL = slice(None)
_encoder = lru_cache(maxsize=1)(load_text_encoder)  # the next model of a service has the same one


@dataclass(frozen=True)
class WordSearch:
    """Encodes words as item texts are encoded, and adds their cosine to the scores."""

    config: Config
    index: CatalogIndex
    model: Model
    whitening: Whitening | None  # None: the model reads no text
    text_encoder: str = ""  # the digest of its files in training

    @property
    def available(self) -> bool:
        """Whether the model reads text."""
        return self.text_column is not None

    @property
    def text_column(self) -> str | None:
        """The first text column of the items; None if the model reads no text."""
        schema, names = self.index.catalog.items.schema, self.config.data.text_columns
        columns = (name for name in names if schema.get(name) == pl.String)
        return None if self.whitening is None else next(columns, None)

    @cached_property
    def encoder(self) -> TextEncoder:
        """The pretrained text encoder, loaded on first use.

        Raises:
            RunError: it is not the one that the model was trained with.
        """
        text = self.config.text
        return _encoder(trained_encoder(text.pretrained, self.text_encoder), text.pooling)

    def text_vector(self, words: str) -> Float[np.ndarray, " text"]:
        """The whitened text vector of words, at length 1.

        Raises:
            InputError: the model reads no text.
        """
        if self.text_column is None:
            raise InputError("the model reads no text, so words cannot steer it")
        item = pl.DataFrame({self.text_column: [words]})
        tower = self.model.merge().text_tower
        text = new_item_text(item, self.config, self.whitening, tower, encoder=self.encoder)
        return unit_rows(text)[0]

    @cached_property
    def items(self) -> ItemTable:
        """The items with vectors of three parts: item vector, text vector at length 1, bias.

        The popularity bias is a column, because words scale it down with the rest of the score.
        """
        rows = self.index.derived("word_search", self.rows)
        return ItemTable(rows, self.index.items.valid)

    def rows(self, selected: Int[np.ndarray, " n"] | slice = ALL) -> Float[np.ndarray, "n width"]:
        """Rows of the vectors of `items`; all of them by default."""
        items, text = self.index.items, unit_rows(np.asarray(self.index.text)[selected])
        columns = (np.asarray(items.vectors)[selected], text, items.biases[selected, None])
        return np.concatenate(columns, axis=1, dtype=np.float32)

    def steer(
        self, vectors: Float[np.ndarray, "Q F"], words: str, strength: float
    ) -> Float[np.ndarray, "Q width"]:
        """User vectors for `items`, moved towards words.

        A score becomes (1 - strength) * score + strength * cosine * highest: the cosine is that of
        the item's text and the words, and `highest` the user's highest possible score.
        """
        experts = vectors.reshape(len(vectors), len(self.config.model.experts), -1)
        highest = np.linalg.norm(experts, axis=2).sum(1, keepdims=True)
        text = highest * self.text_vector(words)
        bias = np.full((len(vectors), 1), 1 - strength, np.float32)
        return np.concatenate([(1 - strength) * vectors, strength * text, bias], axis=1)
