"""What training minimises: the weighted losses of all tasks, summed over the experts."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxrec.models.inputs import Events, Nodes
from jaxrec.models.recommender import Expert, Recommender
from jaxrec.models.text.finetuned import FinetunedText, TextTower, encode_finetuned_rows
from jaxrec.training.item_sampling import StepItems, step_items
from jaxrec.training.tasks.base import ExpertBatch, TrainArrays, half_hidden
from jaxrec.types import ANY_EVENT_TYPE, NO_GAP, Batch


def objective(
    model: Recommender,
    arrays: TrainArrays,
    text: Float[Array, "I text"],
    batch: Batch,
    finetune_items: int,
    key: Array,
    items: StepItems | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The loss of a batch, and its parts by task and expert, such as `next_item/0`.

    Args:
        text: whitened text vectors of the items.
        finetune_items: items whose text is encoded with gradient, if the text encoder trains.
        items: those that the step encodes; None for all, which the full softmax needs.
    """
    text_key, *expert_keys = jax.random.split(key, 1 + len(model.experts))
    tower, finetuned = model.text_tower, arrays.finetuned_text
    nodes = replace(arrays.catalog.nodes, text=text)
    nodes = nodes if items is None else items.of(nodes)
    if tower is not None and finetuned is not None:
        text = finetuned_rows(tower, finetuned, nodes.text, batch, finetune_items, text_key, items)
        nodes = replace(nodes, text=text)
    loss, parts = jnp.zeros(()), {}
    for number, (expert, expert_key) in enumerate(zip(model.experts, expert_keys, strict=True)):
        inputs = expert_batch(expert, nodes, arrays, batch, expert_key, items)
        for task in arrays.tasks:
            part = task.loss(inputs)
            loss += task.weight * part
            parts[f"{task.name}/{number}"] = part
    return loss, parts


def draw_items(arrays: TrainArrays, batch: Batch, key: Array) -> StepItems | None:
    """The items that a step encodes; None for all."""
    if arrays.item_sampler is None:
        return None
    item_key, link_key = jax.random.split(key)
    links = None if arrays.link_sampler is None else arrays.link_sampler.sample(link_key)
    ids = arrays.catalog.nodes.items
    return step_items(arrays.item_sampler, batch, arrays.candidates, ids, links, item_key)


def expert_batch(
    expert: Expert,
    nodes: Nodes,
    arrays: TrainArrays,
    batch: Batch,
    key: Array,
    items: StepItems | None = None,
) -> ExpertBatch:
    """The node vectors of an expert, and the user vectors after every event of a batch.

    A random half of the user vectors know the event type of their target, and an independent half
    know the time to it, so that the model serves requests with and without them.

    Args:
        nodes: those that the step encodes.
        items: see `objective`.
    """
    id_key, event_key, layer_key, target_key = jax.random.split(key, 4)
    graph, links = arrays.catalog.graph, None
    if arrays.link_sampler is not None:
        drawn = arrays.link_sampler.sample(jax.random.fold_in(event_key, 2))
        links = drawn if items is None else items.links
        graph = arrays.link_sampler.visible(graph, links.hidden)
    if arrays.edge_sampler is not None:
        graph = arrays.edge_sampler.sample(graph, jax.random.fold_in(event_key, 1))
    vectors = expert.encode_nodes(nodes, graph, id_key)
    events = expert.event_vectors(
        vectors[: len(nodes.items)],
        Events(places(items, batch.items), batch.event_types, batch.gaps),
        event_key,
    )
    state = expert.sequence.initial_state(len(batch.items))
    starts = jnp.asarray(batch.starts)
    outputs, _ = expert.sequence.scan(state, events, starts=starts, key=layer_key)
    event_types = half_hidden(target_key, jnp.asarray(batch.target_event_types), ANY_EVENT_TYPE)
    gap_key, task_key = (jax.random.fold_in(target_key, number) for number in (1, 2))
    gaps = half_hidden(gap_key, jnp.asarray(batch.target_gaps), NO_GAP)
    users = expert.user_vectors(outputs, event_types, gaps)
    return ExpertBatch(expert, arrays, batch, vectors, users, event_types, task_key, links, items)


def places(
    items: StepItems | None, rows: Int[Array | np.ndarray, "*shape"]
) -> Int[Array, "*shape"]:
    """Where items stand among those that a step encodes."""
    return jnp.asarray(rows) if items is None else items.places(jnp.asarray(rows))


def finetuned_rows(
    tower: TextTower,
    finetuned: FinetunedText,
    text: Float[Array, "n text"],
    batch: Batch,
    count: int,
    key: Array,
    items: StepItems | None = None,
) -> Float[Array, "n text"]:
    """The text vectors, up to `count` of them encoded again so that the gradient reaches `tower`.

    The targets of the batch come first, then random items, which serve as negatives.

    Args:
        text: of the items that the step encodes; all if `items` is None.
    """
    last = len(finetuned.mask) - 1  # rows of padding have no text
    rows = jnp.arange(last + 1) if items is None else items.encoded
    targets = places(items, batch.targets.reshape(-1))
    priority = jax.random.uniform(key, rows.shape) + jnp.zeros(len(rows)).at[targets].set(1.0)
    priority = jnp.where(rows > last, -1.0, priority)
    _, chosen = jax.lax.top_k(priority, min(count, len(rows)))
    encoded = encode_finetuned_rows(tower, finetuned, jnp.minimum(rows[chosen], last))
    return text.at[chosen].set(encoded.astype(text.dtype))
