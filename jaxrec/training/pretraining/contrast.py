"""Contrast of texts: those of items that follow one another agree, or that share an entity."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxrec.data.events import some_events, user_of_event
from jaxrec.data.text import Tokens
from jaxrec.models.text.language_model import LanguageModel
from jaxrec.training.pretraining.base import Examples, TextBatch, text_batch
from jaxrec.types import NEG_INF, EventLog, KnowledgeGraph

TEMPERATURE = 0.05
MOST_ITEMS = 50  # of an entity; those of a larger one, such as a root category, have less in common
MOST_PARTNERS = 8  # of an item by an entity, so that pairs grow with the edges


class PairBatch(NamedTuple):
    """Items and those that belong to them."""

    first: TextBatch
    second: TextBatch
    items: Int[Array | np.ndarray, " B"]  # the second ones
    log_shares: Float[Array | np.ndarray, " B"]  # log of their share among all second items


@dataclass(frozen=True)
class ItemContrast:
    """The second item of a pair among those of the batch, by the cosine of text vectors.

    An item is a negative as often as it is a second item, so the log of that share is subtracted
    from its logits (logQ correction, Yi et al., RecSys 2019).
    """

    name: str
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


def sharing_items(
    graph: KnowledgeGraph, usable: Bool[np.ndarray, " I"], seed: int
) -> tuple[Int[np.ndarray, "n two"], Int[np.ndarray, " n"]]:
    """Pairs of usable items that share an entity of at most `MOST_ITEMS` of them, with the entity.

    An item has at most `MOST_PARTNERS` partners by an entity, which are random.
    """
    first = graph.types[0].padded_size
    forward = (graph.heads < first) & (graph.tails >= first)
    backward = (graph.tails < first) & (graph.heads >= first)
    items = np.concatenate([graph.heads[forward], graph.tails[backward]])
    entities = np.concatenate([graph.tails[forward], graph.heads[backward]])
    links = np.unique((entities.astype(np.int64) * first + items)[usable[items]])
    entities, items = np.divmod(links, first)
    sizes = np.bincount(entities)[entities]
    entities, items = (part[(sizes > 1) & (sizes <= MOST_ITEMS)] for part in (entities, items))
    order = np.lexsort((np.random.default_rng(seed).random(len(items)), entities))
    items = items[order]  # entities are sorted already
    _, starts, numbers, sizes = np.unique(
        entities, return_index=True, return_inverse=True, return_counts=True
    )
    starts, sizes = starts[numbers], sizes[numbers]
    places = np.arange(len(items)) - starts
    pairs, shared = [], []
    for shift in range(1, MOST_PARTNERS + 1):
        rows = np.flatnonzero(sizes > shift)
        partners = starts[rows] + (places[rows] + shift) % sizes[rows]
        pairs.append(np.stack([items[rows], items[partners]], 1))
        shared.append(entities[rows])
    return np.concatenate(pairs), np.concatenate(shared)
