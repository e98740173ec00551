"""Prediction of tokens: masked ones (BERT) or the next one (GPT)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxrec.data.text import Tokens
from jaxrec.models.text.language_model import LanguageModel
from jaxrec.training.losses.base import mean_of_sum
from jaxrec.training.losses.full_softmax import FullSoftmax
from jaxrec.training.pretraining.base import Examples, TextBatch, text_batch

MASKED_SHARE = 0.15  # of a text's tokens
HIDDEN, RANDOM = 0.8, 0.1  # of the masked tokens; the rest stay as they are
SOFTMAX = FullSoftmax(max_logits=2**23)


@dataclass(frozen=True)
class MaskedTokens:
    """Masked language modelling (Devlin et al., arXiv:1810.04805).

    15 % of a text's tokens are predicted; 80 % of them are hidden by the mask token, 10 % become a
    random one and 10 % stay.
    """

    name: str
    weight: float
    examples: Examples
    tokens: Tokens
    mask_token: int
    special_tokens: tuple[int, ...]  # that every text has; they are never masked

    def batch(self, numbers: Int[np.ndarray, " B"]) -> TextBatch:
        """Texts of a batch."""
        return text_batch(self.tokens, numbers)

    def loss(self, model: LanguageModel, batch: TextBatch, key: Array) -> Float[Array, ""]:
        """The mean over the masked tokens."""
        pick_key, replace_key = jax.random.split(key)
        ids = jnp.asarray(batch.ids)
        special = jnp.isin(ids, jnp.array(self.special_tokens, jnp.int32))
        positions, picked = masked_positions(pick_key, jnp.asarray(batch.mask) & ~special)
        targets = jnp.take_along_axis(ids, positions, 1)
        vocab_size = model.encoder.word.embedding.shape[0]
        replaced = self._replaced(replace_key, targets, vocab_size)
        rows = jnp.arange(len(ids))[:, None]
        inputs = ids.at[rows, positions].set(jnp.where(picked, replaced, targets))
        hidden = model.hidden(inputs, jnp.asarray(batch.mask))
        return token_loss(
            model, jnp.take_along_axis(hidden, positions[..., None], 1), targets, picked
        )

    def _replaced(
        self, key: Array, targets: Int[Array, "B X"], vocab_size: int
    ) -> Int[Array, "B X"]:
        """What the encoder reads in place of masked tokens."""
        action_key, token_key = jax.random.split(key)
        action = jax.random.uniform(action_key, targets.shape)
        random = jax.random.randint(token_key, targets.shape, 0, vocab_size)
        kept_or_random = jnp.where(action < HIDDEN + RANDOM, random, targets)
        return jnp.where(action < HIDDEN, self.mask_token, kept_or_random)


@dataclass(frozen=True)
class NextTokens:
    """Prediction of each token from those before it (Radford et al. 2019)."""

    name: str
    weight: float
    examples: Examples
    tokens: Tokens

    def batch(self, numbers: Int[np.ndarray, " B"]) -> TextBatch:
        """Texts of a batch."""
        return text_batch(self.tokens, numbers)

    def loss(self, model: LanguageModel, batch: TextBatch, key: Array) -> Float[Array, ""]:
        """The mean over all tokens but the first of each text."""
        ids, mask = jnp.asarray(batch.ids), jnp.asarray(batch.mask)
        hidden = model.hidden(ids, mask)
        return token_loss(model, hidden[:, :-1], ids[:, 1:], mask[:, 1:])


def token_loss(
    model: LanguageModel,
    hidden: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    wanted: Bool[Array, "B T"],
) -> Float[Array, ""]:
    """The mean cross entropy of tokens at the positions that are wanted."""
    queries, words = model.token_factors(hidden)
    weights = wanted.astype(jnp.float32)
    total = SOFTMAX(queries, words, targets, weights, jnp.ones(len(words), bool))
    return mean_of_sum(total, weights)


def masked_positions(
    key: Array, candidates: Bool[Array, "B L"]
) -> tuple[Int[Array, "B X"], Bool[Array, "B X"]]:
    """Random positions of 15 % of each row's candidates, one at least where there is any.

    Returns:
        Positions, and which of them are masked; X is the most that a row can have.
    """
    scores = jnp.where(candidates, jax.random.uniform(key, candidates.shape), -1.0)
    most = max(round(MASKED_SHARE * candidates.shape[1]), 1)
    best, positions = jax.lax.top_k(scores, most)
    count = jnp.maximum(jnp.round(MASKED_SHARE * candidates.sum(1, keepdims=True)), 1)
    return positions, (best >= 0) & (jnp.arange(most)[None] < count)
