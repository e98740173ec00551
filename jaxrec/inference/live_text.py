"""Text vectors of items that a shop sends to the live service."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl
from jaxtyping import Float

from jaxrec.data.text import tokenize
from jaxrec.inference.text_features import (
    LENGTH_BUCKETS,
    encode_texts,
    known_texts,
    new_item_text,
    trained_encoder,
    vector_options,
)
from jaxrec.inference.text_queue import BATCH, TextQueue
from jaxrec.inference.trained_model import TrainedModel


@dataclass(frozen=True)
class LiveText:
    """Reads the texts of items with the encoder of a model."""

    model: TrainedModel

    @property
    def is_pooled(self) -> bool:
        """Whether a text has one vector for every run with the same encoder, which can be kept."""
        return (
            self.model.artifacts.whitening is not None and self.model.config.text.mode == "frozen"
        )

    def texts(self, items: pl.DataFrame) -> list[str]:
        """The text of every item; empty without one."""
        return known_texts(items, self.model.config)[0]

    def key(self, text: str) -> str:
        """What decides the pooled vector of a text."""
        config, digest = self.model.config.text, self.model.artifacts.text_encoder
        options = vector_options(config.max_tokens, config.pooling)
        parts = [digest or config.pretrained, *options, text]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]

    @cached_property
    def queue(self) -> TextQueue:
        """The texts that wait for the encoder."""
        return TextQueue(self._encode)

    def pooled(self, texts: Sequence[str]) -> Float[np.ndarray, "n hidden"]:
        """The pooled vectors of texts; those of several threads are computed together."""
        width = self.model.words.encoder.hidden_size
        return np.reshape(self.queue.vectors(texts), (len(texts), width)).astype(np.float32)

    def warm_up(self) -> None:
        """Compile what `pooled` needs for several texts; one alone needs what words need."""
        if not self.is_pooled:
            return
        longest = min(self.model.config.text.max_tokens, self.model.words.encoder.max_tokens)
        for length in (*(size for size in LENGTH_BUCKETS if size < longest), longest):
            self._encode(["a " * (length - 2)] * BATCH)  # with the two special tokens

    def _encode(self, texts: Sequence[str]) -> Float[np.ndarray, "n hidden"]:
        config, encoder = self.model.config.text, self.model.words.encoder
        size = 1 if len(texts) == 1 else BATCH  # few shapes are compiled
        filled = [*texts, *[texts[0]] * (size - len(texts))]
        tokens = tokenize(filled, trained_encoder(config.pretrained, ""), config.max_tokens)
        return encode_texts(encoder, tokens, size)[: len(texts)]

    def whitened(
        self, items: pl.DataFrame, pooled: Sequence[Float[np.ndarray, " hidden"] | None]
    ) -> Float[np.ndarray, "n text"]:
        """Text vectors as the model takes them.

        Args:
            pooled: the vector of each text; None: to be encoded now.
        """
        whitening, width = self.model.artifacts.whitening, self.model.index.text.shape[1]
        if whitening is None or items.is_empty():
            return np.zeros((len(items), width), np.float32)
        if not self.is_pooled:
            tower, encoder = self.model.model.merge().text_tower, self.model.words.encoder
            return new_item_text(items, self.model.config, whitening, tower, encoder=encoder)
        texts, known = known_texts(items, self.model.config)
        vectors = np.zeros((len(texts), len(whitening.mean)), np.float32)
        missing = [n for n, text in enumerate(texts) if text and pooled[n] is None]
        vectors[missing] = self.pooled([texts[n] for n in missing])
        for number, own in enumerate(pooled):
            if own is not None:
                vectors[number] = own
        return whitening.apply(vectors, known).astype(np.float32)
