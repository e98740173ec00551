"""What a training step draws: edges to read, edges to predict, items to score, neighbourhoods."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from jaxtyping import Bool, Int

from jaxrec.config import Config
from jaxrec.data.packing import Packing
from jaxrec.data.shared_files import SharedFiles
from jaxrec.inference.encoding import CatalogArrays
from jaxrec.models.graph.build import reach
from jaxrec.models.graph.link_sampling import LinkSampler, link_sampler
from jaxrec.models.graph.neighbourhoods import (
    Counts,
    NeighbourhoodSampler,
    neighbourhood_sampler,
)
from jaxrec.models.graph.sampling import EdgeSampler, edge_sampler
from jaxrec.training.item_sampling import ItemSampler, item_sampler, windows_of_items
from jaxrec.training.privacy.sampling import UserSampling
from jaxrec.training.step_items import most_entities, most_items
from jaxrec.training.tasks.base import Task
from jaxrec.training.tasks.next_entity import NextEntity
from jaxrec.types import KnowledgeGraph


class Samplers(TypedDict):
    """The fields of `TrainArrays` that draw; None for what a training does not draw."""

    edge_sampler: EdgeSampler | None
    link_sampler: LinkSampler | None
    item_sampler: ItemSampler | None
    neighbourhoods: NeighbourhoodSampler | None


def build_samplers(
    config: Config,
    graph: KnowledgeGraph,
    arrays: CatalogArrays,
    candidates: Bool[np.ndarray, " I"],
    packing: Packing | UserSampling,
    tasks: Sequence[Task],
    files: SharedFiles,
) -> Samplers:
    """The samplers of a training.

    Args:
        arrays: of the same graph.
        candidates: items that can be predicted.
        files: where processes share what they derive from the events.
    """
    train, num_items = config.train, len(candidates)
    samples_edges = train.fan_out and reads_graph(config)
    edges = edge_sampler(arrays.graph, train.fan_out, train.seed) if samples_edges else None
    has_links = train.link_weight and len(graph.heads)
    links = link_sampler(graph, arrays.graph, train.seed) if has_links else None
    items = around = None
    if train.loss == "sampled_softmax":
        assert isinstance(packing, Packing)  # a private training has the full softmax
        windows = files.arrays("items", lambda: {"windows": windows_of_items(packing, num_items)})
        items = item_sampler(
            train, packing, windows["windows"], candidates, encodes_all=encodes_all(config)
        )
    if items is not None and edges is not None:
        entities = predicted_entities(tasks)
        around = neighbourhood_sampler(
            arrays.graph,
            edges,
            entities=entities,
            num_items=num_items,
            num_nodes=graph.num_nodes,
            hops=reach(config.model),
            start=Counts(
                most_items(items, links, num_items),
                most_entities(len(entities), links, graph.num_nodes - num_items),
            ),
        )
    return Samplers(
        edge_sampler=edges, link_sampler=links, item_sampler=items, neighbourhoods=around
    )


def predicted_entities(tasks: Sequence[Task]) -> Int[np.ndarray, " entities"]:
    """Node ids of the entities that tasks predict, ascending."""
    nodes = [np.asarray(task.nodes) for task in tasks if isinstance(task, NextEntity)]
    return np.unique(np.concatenate(nodes)) if nodes else np.zeros(0, np.int32)


def reads_graph(config: Config) -> bool:
    """Whether an expert reads the edges of the graph; the prediction of links reads them apart."""
    return "graph" in config.model.sources


def encodes_all(config: Config) -> bool:
    """Whether a step with a sampled loss encodes all items, as it reads all edges."""
    return reads_graph(config) and not config.train.fan_out


def sampling_notes(config: Config) -> list[str]:
    """Notes on `fan_out`: where it has no effect, and where a step encodes all items without it."""
    if config.train.fan_out and not reads_graph(config):
        return ["no expert reads the graph, so train.fan_out has no effect"]
    if config.train.loss == "full_softmax" or not encodes_all(config):
        return []
    return [
        "an expert reads the whole graph, so every step encodes all items and scores a sample of "
        "them; with train.fan_out it would encode only their neighbourhoods"
    ]
