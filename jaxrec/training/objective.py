"""What training minimises: every expert's next-event loss and its auxiliary losses."""

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrec.config import Config, TrainConfig
from jaxrec.inference.encoding import CatalogArrays
from jaxrec.inference.text_features import FinetunedText, encode_finetuned_rows
from jaxrec.models.recommender import Events, Expert, Nodes, Recommender
from jaxrec.models.text.finetuned import TextTower
from jaxrec.training.losses import (
    NEG_INF,
    LogitAdjustments,
    blocked_cross_entropy,
    positions_at_a_time,
    weighted_mean,
)
from jaxrec.types import ANY_EVENT_TYPE, NO_GAP, Batch


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Auxiliary:
    """A node type to predict beside the next item."""

    of_item: Int[Array, " I"]  # local id of every item's own entity, 0 for none
    nodes: Int[Array, " n"]  # node ids of the type's block
    valid: Bool[Array, " n"]  # rows of the block that are entities


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainArrays:
    """What a training step reads and does not change."""

    catalog: CatalogArrays
    candidates: Bool[Array, " I"]  # items that occur in training
    auxiliary: dict[str, Auxiliary]
    masked_event_types: Bool[Array, " event_types"]  # whose items a ranking leaves out
    finetuned_text: FinetunedText | None
    # whether a ranking leaves some of a user's items in
    repeats: bool = field(metadata={"static": True})


def objective(
    model: Recommender,
    arrays: TrainArrays,
    text: Float[Array, "I Dt"],
    batch: Batch,
    config: Config,
    key: Array,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The loss of a batch and its parts by name."""
    text_key, *expert_keys = jax.random.split(key, 1 + len(model.experts))
    tower, live = model.text_tower, arrays.finetuned_text
    if tower is not None and live is not None:
        text = finetuned_rows(tower, live, text, batch, config.text.finetune_items, text_key)
    nodes = replace(arrays.catalog.nodes, text=text)
    parts: dict[str, Float[Array, ""]] = {}
    loss = jnp.zeros(())
    for number, (expert, expert_key) in enumerate(zip(model.experts, expert_keys, strict=True)):
        next_item, others = expert_losses(expert, nodes, arrays, batch, config.train, expert_key)
        loss += next_item + config.train.auxiliary_weight * sum(others.values())
        losses = {"next_item": next_item, **others}
        parts |= {f"{name}/{number}": value for name, value in losses.items()}
    return loss, parts


def expert_losses(
    expert: Expert,
    nodes: Nodes,
    arrays: TrainArrays,
    batch: Batch,
    config: TrainConfig,
    key: Array,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Of one expert: the loss of the next item, and those beside it by name: of a user's first item
    and of the next entities. Each is a weighted mean."""
    targets, weights, starts = map(jnp.asarray, (batch.targets, batch.weights, batch.starts))
    id_key, event_key, block_key, wanted_key = jax.random.split(key, 4)
    vectors = expert.encode_nodes(nodes, arrays.catalog.graph, id_key)
    items = vectors[: len(arrays.candidates)]
    events = expert.event_vectors(
        items, Events(batch.items, batch.event_types, batch.gaps), event_key
    )
    state = expert.encoder.initial_state(len(batch.items))
    outputs, _ = expert.encoder.fold(state, events, starts=starts, key=block_key)
    # half of the slots are asked for the event_type that came, half for any: both are served
    first_key = jax.random.fold_in(wanted_key, 2)
    asked = jax.random.bernoulli(wanted_key, 0.5, targets.shape)
    told = jax.random.bernoulli(jax.random.fold_in(wanted_key, 1), 0.5, targets.shape)
    wanted = jnp.where(asked, batch.target_event_types, ANY_EVENT_TYPE)
    users = expert.read(outputs, wanted, jnp.where(told, batch.target_gaps, NO_GAP))

    def mean_loss(
        vectors: Float[Array, "K D"],
        targets: Int[Array, "B T"],
        valid: Bool[Array, " K"],
        weights: Float[Array, "B T"],
        adjusted: LogitAdjustments | None = None,
    ) -> Float[Array, ""]:
        block = positions_at_a_time(len(vectors), config.loss_logits)
        total = blocked_cross_entropy(users, vectors, targets, weights, valid, block, adjusted)
        return total / jnp.maximum(weights.sum(), 1e-9)

    next_item = mean_loss(
        items, targets, arrays.candidates, weights, history_mask(expert, arrays, batch, wanted)
    )
    others = {"first_item": first_item_loss(expert, items, arrays, batch, first_key)}
    for name, auxiliary in arrays.auxiliary.items():
        entities = auxiliary.of_item[targets]
        others[f"next_{name}"] = mean_loss(
            vectors[auxiliary.nodes], entities, auxiliary.valid, weights * (entities > 0)
        )
    return next_item, others


def first_item_loss(
    expert: Expert, items: Float[Array, "I D"], arrays: TrainArrays, batch: Batch, key: Array
) -> Float[Array, ""]:
    """The mean loss of users' first items, as a newcomer is asked for them.

    Half of them are asked for the event_type that came, half for any, as the next items are.
    """
    newcomer = expert.encoder.initial_state(1).output
    event_types = jnp.arange(ANY_EVENT_TYPE, len(arrays.masked_event_types))
    users = expert.read(jnp.repeat(newcomer, len(event_types), 0), event_types)
    logits = jnp.where(arrays.candidates, users @ items.T, NEG_INF).astype(jnp.float32)
    losses = -jax.nn.log_softmax(logits)
    asked = jax.random.bernoulli(key, 0.5, batch.items.shape)
    wanted = jnp.where(asked, batch.event_types, ANY_EVENT_TYPE)
    return weighted_mean(
        losses[wanted - ANY_EVENT_TYPE, batch.items], jnp.asarray(batch.first_weights)
    )


def history_mask(
    expert: Expert, arrays: TrainArrays, batch: Batch, wanted: Int[Array, "B T"]
) -> LogitAdjustments:
    """The items of a packed window so far, at every slot, as a ranking treats them.

    Those that it leaves out are out of the softmax as well, and so are not pushed away from the
    interest that they have shaped; a slot's own target is never out, nor is it familiar then, or
    what is left in would tell the target. The others are familiar.
    """
    sequence = jnp.cumsum(batch.starts, 1)
    slots = jnp.arange(sequence.shape[1])
    ages = (slots[:, None] - slots[None])[None]
    own = (sequence[:, :, None] == sequence[:, None]) & (ages >= 0)
    items = jnp.where(own, jnp.asarray(batch.items)[:, None], 0)
    masked = arrays.masked_event_types[batch.event_types][:, None]
    masked_items = masked & (items != batch.targets[..., None])
    if not arrays.repeats:
        return LogitAdjustments(jnp.where(masked_items, items, 0), None)
    event_types = jnp.asarray(batch.event_types)[:, None]
    repeat_bias = expert.repeat_bias(event_types, wanted[..., None], ages)
    return LogitAdjustments(
        items, jnp.where(masked_items, NEG_INF, jnp.where(masked, 0, repeat_bias))
    )


def finetuned_rows(
    tower: TextTower,
    live: FinetunedText,
    text: Float[Array, "I Dt"],
    batch: Batch,
    count: int,
    key: Array,
) -> Float[Array, "I Dt"]:
    """The text table with up to `count` rows encoded anew, through which the gradient flows.

    The batch's targets come first, random items after them as negatives.
    """
    is_target = jnp.zeros(len(live.mask)).at[batch.targets.reshape(-1)].set(1.0)
    priority = is_target + jax.random.uniform(key, is_target.shape)
    _, rows = jax.lax.top_k(priority, min(count, len(priority)))
    return text.at[rows].set(encode_finetuned_rows(tower, live, rows).astype(text.dtype))
