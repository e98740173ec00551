"""The arrays that a training step reads and does not change."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from jaxrec.config import Config
from jaxrec.data.dataset import Dataset
from jaxrec.data.extend import entity_rows
from jaxrec.data.packing import Packing
from jaxrec.inference.encoding import catalog_arrays
from jaxrec.inference.item_features import catalog_features
from jaxrec.inference.text_features import ItemText
from jaxrec.models.items.features import FeatureMaps
from jaxrec.models.items.id import id_rows
from jaxrec.ranking.adjustments import masked_event_types
from jaxrec.training.privacy.sampling import UserSampling
from jaxrec.training.samplers import build_samplers, reads_graph
from jaxrec.training.tasks.base import TrainArrays
from jaxrec.training.tasks.build import build_tasks
from jaxrec.types import Catalog


def train_arrays(
    config: Config,
    dataset: Dataset,
    text: ItemText,
    features: FeatureMaps,
    packing: Packing | UserSampling,
) -> TrainArrays:
    """The arrays that a training step reads and does not change."""
    catalog, split, trained = dataset.catalog, dataset.split, dataset.trained
    padding = catalog.graph.types[0].padded_size - len(trained)
    masked = masked_event_types(config.evaluation.mask, split.log.event_type_names)
    columns = catalog_features(catalog.items, features)
    graphs = [shop.catalog.graph for shop in dataset.shops.values()]
    # nodes of the same name in several shops share a row of the entity table
    entities = entity_rows(catalog.graph, catalog.graph) if graphs else None
    least = config.model.min_events_for_id
    ids = id_rows(dataset.with_own_id(least), least)
    read = catalog if reads_graph(config) else without_edges(catalog)
    # the state has the vectors of the texts, and devices would hold them twice
    arrays = catalog_arrays(read, text.vectors[:, :0], ids, entities, columns)
    arrays = replace(arrays, nodes=replace(arrays.nodes, own_ids=not least))
    candidates = np.pad(trained, (0, padding))
    tasks = build_tasks(config.train, catalog.graph, graphs)
    return TrainArrays(
        catalog=arrays,
        candidates=jnp.asarray(candidates),
        tasks=tasks,
        masked_event_types=jnp.asarray(masked),
        finetuned_text=text.finetuned,
        repeats=not masked.all(),
        **build_samplers(config, catalog.graph, arrays, candidates, packing, tasks, dataset.files),
    )


def without_edges(catalog: Catalog) -> Catalog:
    """A catalogue whose graph has no edges, which every device would hold."""
    graph = catalog.graph
    heads, relations, tails = graph.heads[:0], graph.edge_relations[:0], graph.tails[:0]
    graph = replace(graph, heads=heads, edge_relations=relations, tails=tails)
    return replace(catalog, graph=graph)
