"""Predict the item of the next event."""

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrec.training.losses.base import LogitAdjustments, Loss
from jaxrec.training.micro_batches import MicroBatch
from jaxrec.training.tasks.base import ExpertBatch
from jaxrec.types import NEG_INF, STATIC, Batch


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NextItem:
    """The item of the next event, among the items that occur in training or a sample of them."""

    name: ClassVar[str] = "next_item"
    criterion: Loss = field(metadata=STATIC)
    weight: float = field(default=1.0, metadata=STATIC)

    def weights(self, batch: Batch, key: Array, part: MicroBatch) -> Float[Array, "B T"]:
        """The weights of the targets."""
        return jnp.asarray(batch.weights)

    def loss(self, inputs: ExpertBatch) -> Float[Array, ""]:
        """The mean over the weighted targets."""
        weights = inputs.weights(self)
        total = self.criterion(
            inputs.user_vectors,
            inputs.item_vectors,
            inputs.targets,
            weights,
            inputs.valid,
            inputs.corrected(history_adjustments(inputs)),
        )
        return inputs.mean(self, total, weights)


def history_adjustments(inputs: ExpertBatch) -> LogitAdjustments:
    """Adjustments for the items of a packed window so far, as a ranking makes them.

    Items that a ranking masks are masked in the softmax too, so that the loss does not push them
    away from the user vector that they shaped. The others get their repeat bias. The target of a
    position is never masked, and it gets no repeat bias if its event type is a masked one:
    otherwise the bias would reveal the target.
    """
    batch, arrays = inputs.batch, inputs.arrays
    sequence = jnp.cumsum(batch.starts, 1)
    steps = jnp.arange(sequence.shape[1])
    ages = (steps[:, None] - steps[None])[None]
    in_history = (sequence[:, :, None] == sequence[:, None]) & (ages >= 0)
    items = jnp.where(in_history, inputs.items[:, None], 0)
    masked = arrays.masked_event_types[batch.event_types][:, None]
    masked_items = masked & (items != inputs.targets[..., None])
    if not arrays.repeats:
        return LogitAdjustments(jnp.where(masked_items, items, 0), None)
    event_types = jnp.asarray(batch.event_types)[:, None]
    repeat_bias = inputs.expert.repeat_bias(event_types, inputs.target_event_types[..., None], ages)
    return LogitAdjustments(
        items, jnp.where(masked_items, NEG_INF, jnp.where(masked, 0, repeat_bias))
    )
