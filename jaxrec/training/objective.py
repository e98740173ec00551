"""What training minimises: the weighted losses of all tasks, summed over the experts."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jraph
import numpy as np
from jaxtyping import Array, Float, Int

from jaxrec.models.graph.link_sampling import Links
from jaxrec.models.inputs import Events, NodeVectors
from jaxrec.models.recommender import Expert, Recommender
from jaxrec.models.text.finetuned import FinetunedText, TextTower, encode_finetuned_rows
from jaxrec.partitioning import put_rows, whole
from jaxrec.training.micro_batches import WHOLE_BATCH, MicroBatch, half_hidden
from jaxrec.training.step_items import StepItems, needed_entities, needed_items, step_items
from jaxrec.training.tasks.base import ExpertBatch, TrainArrays
from jaxrec.types import ANY_EVENT_TYPE, NO_GAP, STATIC, Batch


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepInputs:
    """What a step reads beside the parameters."""

    arrays: TrainArrays
    text: Float[Array, "I text"]  # whitened text vectors of the items
    batch: Batch
    key: Array
    items: StepItems | None = None  # those that the step encodes; None: all, as the full softmax
    # items whose text is encoded with gradient, if the text encoder trains
    finetune_items: int = field(default=0, metadata=STATIC)


class ExpertKeys(NamedTuple):
    """The keys of what a step draws for an expert."""

    nodes: Array
    events: Array
    layers: Array
    targets: Array
    gaps: Array
    tasks: Array


Losses = tuple[Float[Array, ""], dict[str, Float[Array, ""]]]
"""The loss of a batch, and its parts by task and expert, such as `next_item/0`."""


def objective(model: Recommender, inputs: StepInputs) -> Losses:
    """The loss of a batch."""
    return task_losses(expert_batches(model, *encode_nodes(model, inputs), inputs))


def encode_nodes(
    model: Recommender, inputs: StepInputs
) -> tuple[tuple[NodeVectors, ...], tuple[Links | None, ...]]:
    """The nodes as every expert encodes them, and the edges that it predicts."""
    arrays, items = inputs.arrays, inputs.items
    text_key, keys = split_key(inputs.key, len(model.experts))
    tower, finetuned = model.text_tower, arrays.finetuned_text
    nodes = replace(arrays.catalog.nodes, text=inputs.text)
    nodes = nodes if items is None else items.of(nodes)
    if tower is not None and finetuned is not None:
        count = inputs.finetune_items
        text = finetuned_rows(tower, finetuned, nodes.text, inputs.batch, count, text_key, items)
        nodes = replace(nodes, text=text)
    graphs = [step_graph(arrays, items, own.events) for own in keys]
    vectors = (
        expert.item_encoder.apart(nodes, graph, own.nodes)
        for expert, (graph, _), own in zip(model.experts, graphs, keys, strict=True)
    )
    return tuple(vectors), tuple(links for _, links in graphs)


def task_losses(batches: Sequence[ExpertBatch]) -> Losses:
    """The loss of a batch, or what a part of it adds, from the batches of all experts."""
    loss, parts = jnp.zeros(()), {}
    for number, batch in enumerate(batches):
        for task in batch.arrays.tasks:
            value = task.loss(batch)
            loss += task.weight * value
            parts[f"{task.name}/{number}"] = value
    return loss, parts


def total_weights(inputs: StepInputs, experts: int) -> list[dict[str, Float[Array, ""]]]:
    """The sums of the weights of the whole batch, by task, for every expert."""
    keys, tasks = split_key(inputs.key, experts)[1], inputs.arrays.tasks
    return [
        {task.name: task.weights(inputs.batch, own.tasks, WHOLE_BATCH).sum() for task in tasks}
        for own in keys
    ]


def split_key(key: Array, experts: int) -> tuple[Array, list[ExpertKeys]]:
    """The key of the texts, and those of every expert."""
    text_key, *expert_keys = jax.random.split(key, 1 + experts)
    keys = []
    for own in expert_keys:
        nodes, events, layers, targets = jax.random.split(own, 4)
        gaps, tasks = (jax.random.fold_in(targets, number) for number in (1, 2))
        keys.append(ExpertKeys(nodes, events, layers, targets, gaps, tasks))
    return text_key, keys


def draw_items(arrays: TrainArrays, batch: Batch, key: Array) -> StepItems | None:
    """The items that a step scores and encodes, with their neighbourhoods; None for all.

    Every device draws all of them.
    """
    return jax.tree.map(whole, _drawn_items(arrays, batch, key))


def _drawn_items(arrays: TrainArrays, batch: Batch, key: Array) -> StepItems | None:
    sampler, ids = arrays.item_sampler, arrays.catalog.nodes.items
    if sampler is None:
        return None
    item_key, link_key, edge_key = jax.random.split(key, 3)
    sample = sampler.sample(batch, arrays.candidates, item_key)
    graph, links = arrays.catalog.graph, None
    if arrays.link_sampler is not None:
        links = arrays.link_sampler.sample(link_key)
        graph = arrays.link_sampler.visible(graph, links.hidden)
    around, all_items = arrays.neighbourhoods, sampler.takes_all or sampler.encodes_all
    if all_items or around is None or arrays.edge_sampler is None:
        return step_items(sample, ids, links, all_items=all_items)
    items = needed_items(sample, links, len(ids))
    entities = needed_entities(around.entities, links, len(ids), around.num_nodes)
    part = around.sample(graph, arrays.edge_sampler, items, entities, edge_key)
    return step_items(sample, ids, links, part, all_items=False)


def expert_batches(
    model: Recommender,
    vectors: Sequence[NodeVectors],
    links: Sequence[Links | None],
    inputs: StepInputs,
    part: MicroBatch = WHOLE_BATCH,
    totals: Sequence[dict[str, Float[Array, ""]]] | None = None,
) -> list[ExpertBatch]:
    """A batch, or a part of it, as every expert encodes it.

    Args:
        vectors, links: as `encode_nodes` gives them.
        totals: of a part, the weights of the whole batch; see `total_weights`.
    """
    keys = split_key(inputs.key, len(model.experts))[1]
    batch = jax.tree.map(part.of, inputs.batch)
    events = Events(places(inputs.items, batch.items), batch.event_types, batch.gaps)
    scans = model.scan(
        model.initial_state(len(batch.items)),
        [
            expert.event_vectors(nodes.items, events, part.key(own.events))
            for expert, nodes, own in zip(model.experts, vectors, keys, strict=True)
        ],
        jnp.asarray(batch.starts),
        keys=[part.key(own.layers) for own in keys],
    )
    totals_or_none: Sequence[dict[str, Array] | None] = totals or [None] * len(keys)
    batches = []
    for expert, nodes, edges, own, (outputs, _), weights in zip(
        model.experts, vectors, links, keys, scans, totals_or_none, strict=True
    ):
        users, event_types = batch_users(expert, outputs, batch, own, part)
        batches.append(
            ExpertBatch(
                expert=expert,
                arrays=inputs.arrays,
                batch=batch,
                vectors=nodes,
                user_vectors=users,
                target_event_types=event_types,
                key=own.tasks,
                links=edges,
                step_items=inputs.items,
                part=part,
                totals=weights,
            )
        )
    return batches


def batch_users(
    expert: Expert,
    outputs: Float[Array, "B T out"],
    batch: Batch,
    keys: ExpertKeys,
    part: MicroBatch,
) -> tuple[Float[Array, "B T D"], Int[Array, "B T"]]:
    """The user vectors after every event, and the target event types that they know.

    A random half of the user vectors know the event type of their target, and an independent half
    know the time to it, so that the model serves requests with and without them.
    """
    target_types = jnp.asarray(batch.target_event_types)
    event_types = half_hidden(keys.targets, target_types, ANY_EVENT_TYPE, part)
    gaps = half_hidden(keys.gaps, jnp.asarray(batch.target_gaps), NO_GAP, part)
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
    return jax.tree.map(whole, graph), links


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
    return put_rows(text, chosen, encoded.astype(text.dtype))
