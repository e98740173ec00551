"""What training minimises: every expert's next-event loss and its auxiliary losses."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxrec.config import Config, TrainConfig
from jaxrec.encoding import CatalogArrays
from jaxrec.losses import MASKED, blocked_cross_entropy, weighted_mean
from jaxrec.models.recommender import Events, Expert, Nodes, Recommender
from jaxrec.text_features import LiveText, encode_live_rows
from jaxrec.types import ANY_KIND, Batch


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
    live_text: LiveText | None


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
    if arrays.live_text is not None:
        text = live_rows(
            model, arrays.live_text, text, batch, config.text.finetune_items, text_key
        )
    nodes = Nodes(arrays.catalog.nodes.ids, text)
    parts: dict[str, Float[Array, ""]] = {}
    for number, (expert, expert_key) in enumerate(zip(model.experts, expert_keys, strict=True)):
        for name, value in expert_losses(expert, nodes, arrays, batch, config.train, expert_key).items():
            parts[f"{name}/{number}"] = value
    loss = sum(
        value if name.startswith("next_item") else config.train.auxiliary_weight * value
        for name, value in parts.items()
    )
    return jnp.asarray(loss), parts


def expert_losses(
    expert: Expert,
    nodes: Nodes,
    arrays: TrainArrays,
    batch: Batch,
    config: TrainConfig,
    key: Array,
) -> dict[str, Float[Array, ""]]:
    """Next item, first item and next entities of one expert, each a weighted mean."""
    id_key, event_key, block_key, wanted_key = jax.random.split(key, 4)
    vectors = expert.encode_nodes(nodes, arrays.catalog.graph, id_key)
    items = vectors[: len(arrays.candidates)]
    events = expert.event_vectors(items, Events(batch.items, batch.kinds, batch.gaps), event_key)
    state = expert.encoder.initial_state(len(batch.items))
    outputs, _ = expert.encoder.fold(state, events, starts=batch.starts, key=block_key)
    # half of the slots are asked for the kind that came, half for any: both are served
    asked = jax.random.bernoulli(wanted_key, 0.5, batch.targets.shape)
    users = expert.read(outputs, jnp.where(asked, batch.target_kinds, ANY_KIND))

    next_items = blocked_cross_entropy(
        users, items, batch.targets, arrays.candidates, config.loss_block
    )
    first_user = expert.read(state.output[0], jnp.asarray(ANY_KIND))
    first_logits = jnp.where(arrays.candidates, items @ first_user, MASKED).astype(jnp.float32)
    first_items = -jax.nn.log_softmax(first_logits)[batch.items]
    losses = {
        "next_item": weighted_mean(next_items, batch.weights),
        "first_item": weighted_mean(first_items, batch.starts.astype(jnp.float32)),
    }
    for name, auxiliary in arrays.auxiliary.items():
        targets = auxiliary.of_item[batch.targets]
        values = blocked_cross_entropy(
            users, vectors[auxiliary.nodes], targets, auxiliary.valid, config.loss_block
        )
        losses[f"next_{name}"] = weighted_mean(values, batch.weights * (targets > 0))
    return losses


def live_rows(
    model: Recommender,
    live: LiveText,
    text: Float[Array, "I Dt"],
    batch: Batch,
    count: int,
    key: Array,
) -> Float[Array, "I Dt"]:
    """The text table with `count` rows encoded anew, through which the gradient flows.

    The batch's targets come first, random items after them as negatives.
    """
    is_target = jnp.zeros(len(text)).at[batch.targets.reshape(-1)].set(1.0)
    _, rows = jax.lax.top_k(is_target + jax.random.uniform(key, is_target.shape), count)
    return text.at[rows].set(encode_live_rows(model.text_tower, live, rows).astype(text.dtype))
