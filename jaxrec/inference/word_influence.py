"""The words of an item's text that tell most about it."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from jaxrec.data.text import tokenize
from jaxrec.errors import InputError
from jaxrec.inference.catalog_index import unit_rows
from jaxrec.inference.text_features import known_texts, trained_encoder, whitened_vectors

if TYPE_CHECKING:
    from jaxrec.inference.model_core import ModelCore  # whose property calls this

WORD = re.compile(r"\w+(?:['\u2019-]\w+)*")
MAX_WORDS = 32  # words of a text that are left out in turn
COMMON = 0.2  # share of the items from which a word tells nothing


@dataclass(frozen=True)
class WordInfluence:
    """Finds the words that decide an item's text vector, or that its history shares."""

    model: "ModelCore"

    @cached_property
    def texts(self) -> list[str]:
        """The text of every item; empty without one."""
        return known_texts(self.model.catalog.items, self.model.config)[0]

    @cached_property
    def item_counts(self) -> Counter[str]:
        """In how many texts each word stands."""
        return Counter(word for text in self.texts for word in set(WORD.findall(text.lower())))

    def left_out(self, text: str) -> list[tuple[str, float]] | None:
        """By how much the text vector turns without each word (1 - cosine), the most first.

        Returns:
            None if the run has no text encoder, or its files are not here.
        """
        words = list(dict.fromkeys(WORD.findall(text)))[:MAX_WORDS]
        whitening = self.model.words.whitening
        if whitening is None:
            return None
        variants = [re.sub(rf"\b{re.escape(word)}\b", " ", text) for word in words]
        try:
            encoder = self.model.words.encoder
        except (InputError, OSError):
            return None
        # one size of batch, so that one program serves every text
        filled = [text, *variants, *[""] * (MAX_WORDS - len(words))]
        options, tower = self.model.config.text, self.model.model.merge().text_tower
        tokens = tokenize(filled, trained_encoder(options.pretrained, ""), options.max_tokens)
        known = np.array([bool(text.strip()) for text in filled])
        whole, *others = unit_rows(whitened_vectors(tokens, known, whitening, tower, encoder))
        turns = [
            (word, 1 - float(whole @ other)) for word, other in zip(words, others, strict=False)
        ]
        return sorted(turns, key=lambda turn: -turn[1])

    def shared(self, item: int, history: Sequence[int]) -> list[tuple[str, float]]:
        """The words that an item shares with a history, rare ones first, by log(items / items with
        the word)."""
        own = dict.fromkeys(WORD.findall(self.texts[item].lower()))
        read = {word for other in set(history) for word in WORD.findall(self.texts[other].lower())}
        count = len(self.texts)
        rarity = {
            word: float(np.log(count / self.item_counts[word]))
            for word in own
            if word in read and self.item_counts[word] < COMMON * count
        }
        return sorted(rarity.items(), key=lambda pair: -pair[1])
