"""The words of an item's text that tell most about it."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from jaxrec.data.text import tokenize
from jaxrec.errors import InputError
from jaxrec.inference.catalog_index import unit_rows
from jaxrec.inference.text_features import (
    BATCH_SIZE,
    known_texts,
    trained_encoder,
    whitened_vectors,
)

if TYPE_CHECKING:
    from jaxrec.inference.model_core import ModelCore  # whose property calls this

WORD = re.compile(r"\w+(?:['\u2019-]\w+)*")
MAX_WORDS = 32  # words of a text that are left out in turn
COMMON = 0.2  # share of the items from which a word tells nothing
MOST_TEXTS = 10_000  # whose words are remembered
Turns = list[tuple[str, float]]  # words of a text, and what they change


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

    @cached_property
    def known(self) -> dict[str, Turns]:
        """What `left_out` has found, by text."""
        return {}

    def left_out(self, texts: Sequence[str]) -> list[Turns] | None:
        """By how much the vector of each text turns without each of its words (1 - cosine).

        Returns:
            For each text its words, those that turn most first. None if the run has no text
            encoder, or its files are not here.
        """
        found = {text: self.known[text] for text in texts if text in self.known}
        if missing := [text for text in dict.fromkeys(texts) if text not in found]:
            if (turns := self._turns(missing)) is None:
                return None
            new = dict(zip(missing, turns, strict=True))
            if len(self.known) + len(new) > MOST_TEXTS:
                self.known.clear()
            self.known.update(new)
            found |= new
        return [found[text] for text in texts]

    def _turns(self, texts: Sequence[str]) -> list[Turns] | None:
        whitening = self.model.words.whitening
        if whitening is None:
            return None
        try:
            encoder = self.model.words.encoder
        except (InputError, OSError):
            return None
        words = [list(dict.fromkeys(WORD.findall(text)))[:MAX_WORDS] for text in texts]
        variants = [
            variant
            for text, own in zip(texts, words, strict=True)
            for variant in (text, *(re.sub(rf"\b{re.escape(word)}\b", " ", text) for word in own))
        ]
        # few sizes of batches, because each is a program to compile
        size = MAX_WORDS + 1 if len(variants) <= MAX_WORDS + 1 else BATCH_SIZE
        filled = variants + [""] * (-len(variants) % size)
        options, tower = self.model.config.text, self.model.model.merge().text_tower
        tokens = tokenize(filled, trained_encoder(options.pretrained, ""), options.max_tokens)
        is_text = np.array([bool(text.strip()) for text in filled])
        vectors = unit_rows(whitened_vectors(tokens, is_text, whitening, tower, encoder))
        starts = np.cumsum([0, *(1 + len(own) for own in words)])
        return [
            _strongest_first(own, vectors[start], vectors[start + 1 : start + 1 + len(own)])
            for own, start in zip(words, starts[:-1], strict=True)
        ]

    def shared(self, item: int, history: Sequence[int]) -> Turns:
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


def _strongest_first(
    words: Sequence[str], whole: Float[np.ndarray, " text"], without: Float[np.ndarray, "W text"]
) -> Turns:
    turns = zip(words, (1 - without @ whole).tolist(), strict=True)
    return sorted(turns, key=lambda turn: -turn[1])
