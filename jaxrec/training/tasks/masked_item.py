"""Predict hidden items of a sequence from the events on both sides."""

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrec.models.inputs import Events
from jaxrec.models.sequence.masked_items import NO_SEQUENCE
from jaxrec.training.losses.base import LogitAdjustments, Loss
from jaxrec.training.micro_batches import MicroBatch
from jaxrec.training.tasks.base import ExpertBatch
from jaxrec.types import STATIC, Batch

HIDDEN_SHARE = 0.3  # of the events; BERT4Rec has 0.2 to 0.6, the more the shorter histories are


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MaskedItem:
    """The items of random events that are hidden, among the items that occur in training.

    With a sampled loss, a sample of them takes their place.

    This is the cloze task of BERT4Rec (Sun et al., arXiv:1904.06690). It trains the item vectors
    and a reader of its own; nothing else of the model reads that.
    """

    name: ClassVar[str] = "masked_item"
    criterion: Loss = field(metadata=STATIC)
    weight: float = field(metadata=STATIC)

    def weights(self, batch: Batch, key: Array, part: MicroBatch) -> Float[Array, "B T"]:
        """The weights of the hidden events as targets."""
        return event_weights(batch) * hidden_events(batch, key, part)

    def loss(self, inputs: ExpertBatch) -> Float[Array, ""]:
        """The mean over the hidden events, by their weights as targets."""
        part = inputs.part
        expert, batch, reader = inputs.expert, inputs.batch, inputs.expert.masked_items
        assert reader is not None  # it is built with this task
        event_key = part.key(jax.random.split(jax.random.fold_in(inputs.key, 1))[1])
        items, sequences = jnp.asarray(batch.items), sequence_numbers(batch)
        hidden = hidden_events(batch, inputs.key, part)
        events = Events(inputs.items, batch.event_types, batch.gaps)
        vectors = expert.event_vectors(inputs.item_vectors, events, event_key)
        queries = reader(vectors, hidden, sequences) * jnp.exp(expert.log_scale[...])
        weights = inputs.weights(self)
        nothing = LogitAdjustments(jnp.zeros((*items.shape, 0), jnp.int32), None)
        total = self.criterion(
            queries,
            inputs.item_vectors,
            inputs.items,
            weights,
            inputs.valid,
            inputs.corrected(nothing),
        )
        return inputs.mean(self, total, weights)


def hidden_events(batch: Batch, key: Array, part: MicroBatch) -> Bool[Array, "B T"]:
    """The events to hide; `key` as in `Task.weights`."""
    hide_key = jax.random.split(jax.random.fold_in(key, 1))[0]
    drawn = part.bernoulli(hide_key, HIDDEN_SHARE, batch.items.shape)
    return drawn & (sequence_numbers(batch) != NO_SEQUENCE)


def sequence_numbers(batch: Batch) -> Int[Array, "B T"]:
    """The number of the sequence in its row, of every step with an event."""
    numbers = jnp.cumsum(jnp.asarray(batch.starts), 1)
    return jnp.where(jnp.asarray(batch.items) > 0, numbers, NO_SEQUENCE)


def event_weights(batch: Batch) -> Float[Array, "B T"]:
    """The weight of every event as a target; a batch holds that of the next event.

    An event that begins a window inside a history has none: the window before predicts it.
    """
    before = jnp.pad(jnp.asarray(batch.weights)[:, :-1], ((0, 0), (1, 0)))
    return jnp.where(jnp.asarray(batch.starts), jnp.asarray(batch.first_weights), before)
