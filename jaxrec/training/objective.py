"""What training minimises: the weighted losses of all tasks, summed over the experts."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jraph
import numpy as np
from jaxtyping import Array, Float, Int

from jaxrec.models.graph.link_sampling import Links
from jaxrec.models.inputs import Events, Nodes
from jaxrec.models.recommender import Expert, Recommender
from jaxrec.models.text.finetuned import FinetunedText, TextTower, encode_finetuned_rows
from jaxrec.training.step_items import StepItems, needed_entities, needed_items, step_items
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
    for number, inputs in enumerate(
        expert_batches(model, nodes, arrays, batch, expert_keys, items)
    ):
        for task in arrays.tasks:
            part = task.loss(inputs)
            loss += task.weight * part
            parts[f"{task.name}/{number}"] = part
    return loss, parts


def draw_items(arrays: TrainArrays, batch: Batch, key: Array) -> StepItems | None:
    """The items that a step scores and encodes, with their neighbourhoods; None for all."""
    sampler, ids = arrays.item_sampler, arrays.catalog.nodes.items
    if sampler is None:
        return None
    item_key, link_key, edge_key = jax.random.split(key, 3)
    sample = sampler.sample(batch, arrays.candidates, item_key)
    graph, links = arrays.catalog.graph, None
    if arrays.link_sampler is not None:
        links = arrays.link_sampler.sample(link_key)
        graph = arrays.link_sampler.visible(graph, links.hidden)
    around = arrays.neighbourhoods
    if sampler.takes_all or sampler.encodes_all or around is None:
        return step_items(sample, ids, links, all_items=sampler.takes_all or sampler.encodes_all)
    items = needed_items(sample, links, len(ids))
    entities = needed_entities(around.entities, links, len(ids), around.num_nodes)
    part = around.sample(graph, items, entities, edge_key)
    return step_items(sample, ids, links, part, all_items=False)


def expert_batches(
    model: Recommender,
    nodes: Nodes,
    arrays: TrainArrays,
    batch: Batch,
    keys: Sequence[Array],
    items: StepItems | None = None,
) -> list[ExpertBatch]:
    """The node vectors of every expert, and its user vectors after every event of a batch.

    Args:
        nodes: those that the step encodes.
        keys: one an expert.
        items: see `objective`.
    """
    by_expert = [jax.random.split(key, 4) for key in keys]
    encoded = [
        encode_events(expert, nodes, arrays, batch, (id_key, event_key), items)
        for expert, (id_key, event_key, *_) in zip(model.experts, by_expert, strict=True)
    ]
    scans = model.scan(
        model.initial_state(len(batch.items)),
        [one.events for one in encoded],
        jnp.asarray(batch.starts),
        keys=[layer_key for _, _, layer_key, _ in by_expert],
    )
    batches = []
    for expert, one, (outputs, _), (*_, target_key) in zip(
        model.experts, encoded, scans, by_expert, strict=True
    ):
        users, event_types = batch_users(expert, outputs, batch, target_key)
        task_key = jax.random.fold_in(target_key, 2)
        batches.append(
            ExpertBatch(
                expert, arrays, batch, one.nodes, users, event_types, task_key, one.links, items
            )
        )
    return batches


class EncodedEvents(NamedTuple):
    """The events of a batch as an expert encodes them, and what it encodes them from."""

    nodes: Float[Array, "n D"]
    links: Links | None  # edges to predict, which `nodes` do not know of
    events: Float[Array, "B T D"]


def encode_events(
    expert: Expert,
    nodes: Nodes,
    arrays: TrainArrays,
    batch: Batch,
    keys: tuple[Array, Array],
    items: StepItems | None,
) -> EncodedEvents:
    """The vectors of nodes and events; `keys` are for the dropout of ids and of events."""
    id_key, event_key = keys
    graph, links = step_graph(arrays, items, event_key)
    vectors = expert.encode_nodes(nodes, graph, id_key)
    events = Events(places(items, batch.items), batch.event_types, batch.gaps)
    of_items = vectors[: len(nodes.items)]
    return EncodedEvents(vectors, links, expert.event_vectors(of_items, events, event_key))


def batch_users(
    expert: Expert, outputs: Float[Array, "B T out"], batch: Batch, key: Array
) -> tuple[Float[Array, "B T D"], Int[Array, "B T"]]:
    """The user vectors after every event, and the target event types that they know.

    A random half of the user vectors know the event type of their target, and an independent half
    know the time to it, so that the model serves requests with and without them.
    """
    event_types = half_hidden(key, jnp.asarray(batch.target_event_types), ANY_EVENT_TYPE)
    gaps = half_hidden(jax.random.fold_in(key, 1), jnp.asarray(batch.target_gaps), NO_GAP)
    return expert.user_vectors(outputs, event_types, gaps), event_types


def step_graph(
    arrays: TrainArrays, items: StepItems | None, key: Array
) -> tuple[jraph.GraphsTuple, Links | None]:
    """The edges that a step reads, and those that it predicts."""
    if items is not None and items.graph is not None:
        return items.graph, items.links
    graph, links = arrays.catalog.graph, None
    if arrays.link_sampler is not None:
        drawn = arrays.link_sampler.sample(jax.random.fold_in(key, 2))
        links = drawn if items is None or items.links is None else items.links
        graph = arrays.link_sampler.visible(graph, links.hidden)
    if arrays.edge_sampler is not None:
        graph = arrays.edge_sampler.sample(graph, jax.random.fold_in(key, 1))
    return graph, links


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
