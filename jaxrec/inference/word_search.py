"""Words that steer a ranking: the text vector of a query beside the user's interest."""

from dataclasses import dataclass
from functools import cached_property

import jax.numpy as jnp
import numpy as np
import polars as pl
from jaxtyping import Float

from jaxrec.config import Config
from jaxrec.data.text import resolve_pretrained
from jaxrec.errors import InputError
from jaxrec.inference.catalog_index import CatalogIndex, unit_rows
from jaxrec.inference.text_features import new_item_text
from jaxrec.models.recommender import Model
from jaxrec.models.text.bert import Bert, load_bert
from jaxrec.models.text.whitening import Whitening
from jaxrec.ranking.item_table import ItemTable


@dataclass(frozen=True)
class WordSearch:
    """Encodes words as item texts are encoded, and adds their cosine to the scores."""

    config: Config
    index: CatalogIndex
    model: Model
    whitening: Whitening | None  # None: the model reads no text

    @property
    def available(self) -> bool:
        """Whether the model reads text."""
        return self.whitening is not None and bool(self.text_columns)

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The plain text columns of the items."""
        schema = self.index.catalog.items.schema
        names = self.config.data.text_columns
        return tuple(name for name in names if schema.get(name) == pl.String)

    @cached_property
    def bert(self) -> Bert:
        """The pretrained text encoder, loaded on first use."""
        return load_bert(resolve_pretrained(self.config.text.pretrained))

    def text_vector(self, words: str) -> Float[np.ndarray, " text"]:
        """The whitened text vector of words, at length 1.

        Raises:
            InputError: the model reads no text.
        """
        if not self.available:
            raise InputError("the model reads no text, so words cannot steer it")
        item = pl.DataFrame({self.text_columns[0]: [words]})
        tower = self.model.merge().text_tower
        text = new_item_text(item, self.config, self.whitening, tower, self.bert)
        return unit_rows(text)[0]

    @cached_property
    def items(self) -> ItemTable:
        """Item vectors followed by the item's text vector at length 1 and its popularity bias.

        The bias is a column here, because words scale it down as they do the rest of the score.
        """
        items, text = self.index.items, unit_rows(np.asarray(self.index.text))
        columns = [items.vectors, jnp.asarray(text), jnp.asarray(items.biases)[:, None]]
        return ItemTable(jnp.concatenate(columns, axis=1), items.valid)

    def steer(
        self, vectors: Float[np.ndarray, "Q F"], words: str, strength: float
    ) -> Float[np.ndarray, "Q width"]:
        """User vectors for `items`, moved towards words.

        A score becomes (1 - strength) of itself plus strength times the cosine of the item's text
        and the words, scaled to the user's highest possible score.
        """
        experts = vectors.reshape(len(vectors), len(self.config.model.experts), -1)
        highest = np.linalg.norm(experts, axis=2).sum(1, keepdims=True)
        towards = highest * self.text_vector(words)
        bias = np.full((len(vectors), 1), 1 - strength, np.float32)
        return np.concatenate([(1 - strength) * vectors, strength * towards, bias], axis=1)
