"""Text-behaviour contrast: texts of items that follow one another agree."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxrec.data.events import some_events, user_of_event
from jaxrec.data.text import Tokens
from jaxrec.models.text.language_model import LanguageModel
from jaxrec.training.pretraining.base import Examples, TextBatch, text_batch
from jaxrec.types import NEG_INF, EventLog

TEMPERATURE = 0.05


class PairBatch(NamedTuple):
    """Items and those that followed them."""

    first: TextBatch
    second: TextBatch
    items: Int[Array | np.ndarray, " B"]  # the second ones
    log_shares: Float[Array | np.ndarray, " B"]  # log of their share among all second items


@dataclass(frozen=True)
class ItemContrast:
    """The next item among the next items of the batch, by the cosine of text vectors.

    An item is a negative as often as it is a next item, so the log of that share is subtracted
    from its logits (logQ correction, Yi et al., RecSys 2019).
    """

    name: ClassVar[str] = "contrast"
    weight: float
    examples: Examples
    tokens: Tokens  # of all items
    pairs: Int[np.ndarray, "n two"]  # items
    log_shares: Float[np.ndarray, " I"]

    def batch(self, numbers: Int[np.ndarray, " B"]) -> PairBatch:
        """Pairs of a batch."""
        first, second = self.pairs[numbers].T
        return PairBatch(
            text_batch(self.tokens, first),
            text_batch(self.tokens, second),
            second,
            self.log_shares[second],
        )

    def loss(self, model: LanguageModel, batch: PairBatch, key: Array) -> Float[Array, ""]:
        """The mean cross entropy over the pairs."""
        ids = jnp.concatenate([batch.first.ids, batch.second.ids])
        mask = jnp.concatenate([batch.first.mask, batch.second.mask])
        vectors = model.text_vectors(ids, mask)
        vectors /= jnp.maximum(jnp.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
        first, second = jnp.split(vectors, 2)
        items, log_shares = jnp.asarray(batch.items), jnp.asarray(batch.log_shares)
        return in_batch_loss(first @ second.T / TEMPERATURE, items, log_shares)


def in_batch_loss(
    logits: Float[Array, "B B"], items: Int[Array, " B"], log_shares: Float[Array, " B"]
) -> Float[Array, ""]:
    """The mean cross entropy of the diagonal; other rows of the same item are no negatives."""
    same = (items[:, None] == items[None]) & ~jnp.eye(len(items), dtype=bool)
    corrected = jnp.where(same, NEG_INF, logits - log_shares[None])
    return -jnp.diagonal(jax.nn.log_softmax(corrected)).mean()


def following_items(
    log: EventLog, usable: np.ndarray
) -> tuple[Int[np.ndarray, "n two"], Int[np.ndarray, " n"]]:
    """Pairs of different items that follow one another in a user's usable events, with the user."""
    events = some_events(log, usable)
    users, items = user_of_event(events), events.items
    follows = (users[1:] == users[:-1]) & (items[1:] != items[:-1])
    return np.stack([items[:-1], items[1:]], 1)[follows], users[1:][follows]
