"""Predict a user's first item, from no history at all."""

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrec.partitioning import by_row, look_up, whole
from jaxrec.training.losses.sampled_softmax import cross_entropies
from jaxrec.training.micro_batches import MicroBatch, half_hidden
from jaxrec.training.tasks.base import ExpertBatch
from jaxrec.types import ANY_EVENT_TYPE, NEG_INF, STATIC, Batch


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FirstItem:
    """The first item of a user, from the initial state and, half of the time, the event type."""

    name: ClassVar[str] = "first_item"
    weight: float = field(metadata=STATIC)
    # the first item of every shop, as each item is predicted among those of its shop
    starts: tuple[int, ...] = field(default=(0,), metadata=STATIC)

    def weights(self, batch: Batch, key: Array, part: MicroBatch) -> Float[Array, "B T"]:
        """The weights of the first events of users."""
        return jnp.asarray(batch.first_weights)

    def loss(self, inputs: ExpertBatch) -> Float[Array, ""]:
        """The mean over the weighted first events."""
        expert, arrays, batch = inputs.expert, inputs.arrays, inputs.batch
        # all users start alike, so there is one user vector per event type
        output = expert.sequence.last_output(expert.sequence.initial_state(1))
        event_types = jnp.arange(ANY_EVENT_TYPE, len(arrays.masked_event_types))
        users = expert.user_vectors(jnp.repeat(output, len(event_types), 0), event_types)
        items = inputs.item_vectors.astype(users.dtype)
        scores = jnp.matmul(users, items.T, preferred_element_type=jnp.float32)
        if inputs.step_items is None:
            logits = jnp.where(arrays.candidates, scores, NEG_INF)
            shops = jnp.split(logits, self.starts[1:], axis=1)
            losses = -jnp.concatenate([jax.nn.log_softmax(part) for part in shops], 1)
        else:
            losses = cross_entropies(whole(scores), inputs.step_items.sample.log_p, inputs.valid)
        event_types, weights = jnp.asarray(batch.event_types), inputs.weights(self)
        targets = half_hidden(inputs.key, event_types, ANY_EVENT_TYPE, inputs.part)
        own = look_up(by_row(losses.T), inputs.items, targets - ANY_EVENT_TYPE)
        return inputs.mean(self, (own * weights).sum(), weights)
