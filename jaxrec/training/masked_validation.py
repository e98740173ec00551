"""The loss of held-out items that are hidden at the end of their histories."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxrec.data.packing import event_gaps
from jaxrec.models.inputs import Events
from jaxrec.models.recommender import Model
from jaxrec.models.sequence.masked_items import NO_SEQUENCE
from jaxrec.training.context import TrainContext
from jaxrec.training.losses.full_softmax import FullSoftmax
from jaxrec.training.tasks.build import full_softmax
from jaxrec.types import NO_GAP

QUERIES = 256  # at a time


def masked_item_loss(
    context: TrainContext, model: Model, items: Float[Array | np.ndarray, "I F"]
) -> dict[str, float]:
    """The mean loss of the items of the validation events, each hidden behind the events before it.

    It is the mean over the experts too. Items without a training event are left out. Empty for a
    run that does not learn this task, or that has nothing to validate on.

    Args:
        items: the item vectors of all experts.
    """
    queries, log = context.dataset.split.validation, context.dataset.split.log
    if not context.config.train.masked_item_weight or not len(queries):
        return {}
    length = context.config.train.sequence_length
    begins = np.maximum(log.offsets[queries.users], queries.positions - length + 1)
    numbers = begins[:, None] + np.arange(length)[None]
    used = numbers <= queries.positions[:, None]
    numbers = np.where(used, numbers, 0)
    sums = np.zeros(2)
    for start in range(0, len(queries), QUERIES):
        part = slice(start, start + QUERIES)
        own = used[part]
        users = np.broadcast_to(queries.users[part, None], own.shape)
        gaps = event_gaps(log, numbers[part], users)
        events = Events(
            np.where(own, log.items[numbers[part]], 0),
            np.where(own, log.event_types[numbers[part]], 0).astype(np.int32),
            np.where(own, gaps, NO_GAP),
        )
        padded = jax.tree.map(lambda x: np.pad(x, ((0, QUERIES - len(x)), (0, 0))), (events, own))
        loss, count = last_item_loss(
            model,
            jnp.asarray(items),
            *padded,
            context.arrays.candidates,
            criterion=full_softmax(context.config.train),
        )
        sums += float(loss), float(count)
    return {"masked_item/loss": float(sums[0] / max(sums[1], 1))}


@partial(jax.jit, static_argnames="criterion")
def last_item_loss(
    model: Model,
    items: Float[Array, "I F"],
    events: Events,
    used: Bool[Array, "B T"],
    candidates: Bool[Array, " I"],
    *,
    criterion: FullSoftmax,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The sum over rows of the loss of the last item, the mean of the experts, and how many count.

    Args:
        used: the steps that hold an event, the first ones of each row.
    """
    last: Int[Array, "B 1"] = jnp.maximum(used.sum(1, keepdims=True) - 1, 0)
    hidden = jnp.arange(used.shape[1])[None] == last
    sequences = jnp.where(used, 0, NO_SEQUENCE)
    targets = jnp.take_along_axis(jnp.asarray(events.items), last, 1)
    weights = used.any(1, keepdims=True) * candidates[targets].astype(jnp.float32)
    experts, total = model.merge().experts, jnp.zeros(())
    for expert, vectors in zip(experts, jnp.split(items, len(experts), 1), strict=True):
        assert expert.masked_items is not None
        queries = expert.masked_items(expert.event_vectors(vectors, events), hidden, sequences)
        queries = jnp.take_along_axis(queries, last[..., None], 1) * jnp.exp(expert.log_scale[...])
        total += criterion(queries, vectors, targets, weights, candidates)
    return total / len(experts), weights.sum()
