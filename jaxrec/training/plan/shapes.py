"""What a training step takes, as shapes: a context of sizes alone, without data."""

from functools import partial

import jax
import jax.numpy as jnp
import jraph
import numpy as np
from jax.sharding import Mesh

from jaxrec.config import Config, PlanConfig
from jaxrec.data.dataset import Dataset
from jaxrec.data.features import width_of
from jaxrec.errors import ConfigError
from jaxrec.inference.encoding import CatalogArrays
from jaxrec.models.build import model_layout
from jaxrec.models.graph.build import both_directions, reach
from jaxrec.models.graph.link_sampling import (
    CANDIDATES,
    HELD_OUT_SHARE,
    HIDDEN_SHARE,
    LINKS,
    MAX_HELD_OUT,
    LinkSampler,
)
from jaxrec.models.graph.neighbourhoods import (
    Counts,
    NeighbourhoodSampler,
    sizes_by_hop,
)
from jaxrec.models.graph.sampling import EdgeSampler
from jaxrec.models.inputs import Nodes, Sizes
from jaxrec.ranking.adjustments import masked_event_types
from jaxrec.training.context import StepContext, experts_with_source
from jaxrec.training.item_sampling import ItemSampler
from jaxrec.training.optimizer import make_optimizer
from jaxrec.training.samplers import Samplers, encodes_all, reads_graph
from jaxrec.training.step_items import most_entities, most_items
from jaxrec.training.tasks.base import TrainArrays
from jaxrec.training.tasks.build import full_softmax, weighted_tasks
from jaxrec.training.tasks.next_entity import NextEntity
from jaxrec.types import Batch, padded_size


def counted(dataset: Dataset, min_events_for_id: int = 0) -> PlanConfig:
    """The sizes of a data set; `min_events_for_id` as in `ModelConfig`."""
    catalog, log = dataset.catalog, dataset.split.log
    types = catalog.graph.types[1:]
    return PlanConfig(
        users=log.num_users,
        items=catalog.num_items - 1,
        frequent_items=int(np.count_nonzero(dataset.with_own_id(min_events_for_id))),
        events=int(np.count_nonzero(dataset.split.in_training)),
        entities={node_type.name: node_type.count - 1 for node_type in types},
        edges=len(catalog.graph.heads),
        relations=len(catalog.graph.relations),
        event_types=log.event_type_names,
        vectors={name: width_of(catalog.items[name]) for name in dataset.features.vectors},
    )


def rows_of(count: int) -> int:
    """The rows of a block of nodes: row 0 is the unknown node, and the last one is unused."""
    return padded_size(count + 2)


def plan_sizes(config: Config, plan: PlanConfig) -> Sizes:
    """The shapes of the model; text and vectors have all the components that may be kept."""
    num_items = rows_of(plan.items)
    columns = plan.vectors.items()
    frequent = plan.frequent_items or plan.items
    return Sizes(
        num_items=num_items,
        num_nodes=num_items + sum(map(rows_of, plan.entities.values())),
        num_relations=plan.relations,
        num_event_types=len(plan.event_types),
        text_width=config.text.whiten if "text" in config.model.sources else 1,
        vectors=tuple((name, min(width, config.text.whiten) + 1) for name, width in columns),
        numbers=config.data.numeric_columns if "numbers" in config.model.sources else (),
        num_ids=padded_size(1 + frequent) if config.model.min_events_for_id else 0,
    )


def plan_experts(config: Config, plan: PlanConfig) -> tuple[str, ...]:
    """The experts that would have a source in the data.

    Raises:
        ConfigError: the plan lacks a size, the text encoder trains, or training is private.
        DataError: no expert has a source.
    """
    if config.text.mode == "finetune" and "text" in config.model.sources:
        raise ConfigError("text.mode finetune cannot be planned yet; plan with text.mode frozen")
    if config.train.privacy.epsilon:
        raise ConfigError("train.privacy cannot be planned yet; plan without it")
    if plan.edges and not plan.relations:
        raise ConfigError("plan.relations: a graph with edges has one relation or more")
    sources = {"id", "text", *plan.vectors, *(("graph",) if plan.edges else ())}
    sources |= {"numbers"} if config.data.numeric_columns else set()
    return experts_with_source(config.model.experts, sources, tuple(plan.vectors))


def plan_context(config: Config, plan: PlanConfig, mesh: Mesh) -> StepContext:
    """The context of a training step whose arrays are shapes; raises as `plan_experts`."""
    sizes, train = plan_sizes(config, plan), config.train
    steps = train.epochs * -(-plan.events // (train.batch_size * train.sequence_length))
    definition, _ = model_layout(config, sizes, None)
    return StepContext(
        config=config,
        sizes=sizes,
        tower=None,
        mesh=mesh,
        definition=definition,
        optimizer=make_optimizer(train, steps),
        arrays=jax.eval_shape(partial(train_zeros, config, plan)),
    )


def train_zeros(config: Config, plan: PlanConfig) -> TrainArrays:
    """Zeros of the shapes of `train_arrays`, for `jax.eval_shape`.

    The samplers of edges and links are as large as the sizes allow; data may need less.
    """
    sizes, train = plan_sizes(config, plan), config.train
    masked = masked_event_types(config.evaluation.mask, plan.event_types)
    return TrainArrays(
        catalog=catalog_zeros(sizes, messages_of(config, plan)),
        candidates=jnp.zeros(sizes.num_items, bool),
        tasks=weighted_tasks(train, entity_tasks(config, plan), has_edges=plan.edges > 0),
        masked_event_types=jnp.asarray(masked),
        finetuned_text=None,
        repeats=not masked.all(),
        **sampler_zeros(config, plan, sizes),
    )


def sampler_zeros(config: Config, plan: PlanConfig, sizes: Sizes) -> Samplers:
    """The largest samplers of `build_samplers`."""
    train = config.train
    messages, edges = messages_of(config, plan), None
    if train.fan_out and reads_graph(config):
        edges = edge_sampler_zeros(sizes, messages, train.fan_out)
    links = link_sampler_zeros(plan, messages) if train.link_weight and plan.edges else None
    items = item_sampler_zeros(config, sizes) if train.loss == "sampled_softmax" else None
    around = None
    if items is not None and edges is not None:
        around = neighbourhood_zeros(config, plan, sizes, items, edges, links)
    return Samplers(
        edge_sampler=edges, link_sampler=links, item_sampler=items, neighbourhoods=around
    )


def messages_of(config: Config, plan: PlanConfig) -> int:
    """The messages of the graph, padded; without an expert that reads it, only padding."""
    return padded_size(2 * plan.edges + 1 if reads_graph(config) else 1)


def catalog_zeros(sizes: Sizes, messages: int) -> CatalogArrays:
    """A catalogue of zeros; see `catalog_arrays`."""
    vectors = {name: jnp.zeros((sizes.num_items, width)) for name, width in sizes.vectors}
    bins = {name: whole(sizes.num_items) for name in sizes.numbers}
    return CatalogArrays(
        nodes=Nodes(
            items=whole(sizes.num_items),
            entities=whole(sizes.num_nodes - sizes.num_items),
            text=jnp.zeros((sizes.num_items, 0)),  # the state has them
            features=vectors | bins,
            own_ids=not sizes.num_ids,
        ),
        graph=jraph.GraphsTuple(
            nodes=None,
            edges=whole(messages),
            senders=whole(messages),
            receivers=whole(messages),
            globals=None,
            n_node=whole(2),
            n_edge=whole(2),
        ),
        valid=jnp.zeros(sizes.num_items, bool),
    )


def entity_tasks(config: Config, plan: PlanConfig) -> list[NextEntity]:
    """The tasks of the node types to predict, with zeros."""
    num_items, criterion = rows_of(plan.items), full_softmax(config.train)
    known = [name for name in config.train.auxiliary if name in plan.entities]
    blocks = {name: rows_of(plan.entities[name]) for name in known}
    return [
        NextEntity(
            name=f"next_{name}",
            criterion=criterion,
            weight=config.train.auxiliary_weight,
            entity_of_item=whole(num_items),
            nodes=whole(rows),
            valid=jnp.zeros(rows, bool),
        )
        for name, rows in blocks.items()
    ]


def edge_sampler_zeros(sizes: Sizes, messages: int, fan_out: int) -> EdgeSampler:
    """The largest sampler: every node has edges of every relation, as far as there are edges."""
    groups = min(messages, sizes.num_nodes * both_directions(sizes.num_relations))
    return EdgeSampler(
        edges=whole(messages),
        starts=whole(groups + 1),
        fan_out=fan_out,
        num_drawn=min(messages, groups * fan_out),
    )


def item_sampler_zeros(config: Config, sizes: Sizes) -> ItemSampler:
    """The largest sampler: no two events of a batch, and no two draws, are of one item."""
    train = config.train
    size = padded_size(1 + 2 * train.batch_size * train.sequence_length + train.negatives)
    return ItemSampler(
        windows=jnp.zeros(sizes.num_items),
        levels=jnp.zeros(sizes.num_items, jnp.uint32),
        num_windows=2,
        negatives=train.negatives,
        size=min(size, sizes.num_items),
        takes_all=train.negatives >= sizes.num_items,
        encodes_all=encodes_all(config),
    )


def neighbourhood_zeros(
    config: Config,
    plan: PlanConfig,
    sizes: Sizes,
    items: ItemSampler,
    edges: EdgeSampler,
    links: LinkSampler | None,
) -> NeighbourhoodSampler:
    """The largest sampler: all nodes have edges of every relation, to items and to entities."""
    groups = both_directions(sizes.num_relations)
    width = min(edges.fan_out * groups, edges.num_drawn)
    num_entities = sizes.num_nodes - sizes.num_items
    predicted = [name for name in config.train.auxiliary if name in plan.entities]
    count = sum(rows_of(plan.entities[name]) for name in predicted)
    start = Counts(
        most_items(items, links, sizes.num_items), most_entities(count, links, num_entities)
    )

    def most(nodes: Counts) -> int:
        return width * (nodes.items + nodes.entities)

    limits = Counts(sizes.num_items, num_entities)
    hops = sizes_by_hop(start, (most, most), limits, reach(config.model))
    return NeighbourhoodSampler(
        entities=whole(count),
        first=whole(sizes.num_nodes + 1),
        num_items=sizes.num_items,
        num_groups=groups,
        width=width,
        sizes=hops,
        num_edges=min(most((start, *hops)[-2]), edges.num_drawn),
    )


def link_sampler_zeros(plan: PlanConfig, messages: int) -> LinkSampler:
    """The largest sampler: no two edges join the same nodes."""
    held_out = min(int(plan.edges * HELD_OUT_SHARE), MAX_HELD_OUT)
    known, counts = plan.edges - held_out, (plan.items, *plan.entities.values())
    candidates = sum(min(count, CANDIDATES) for count in counts)
    return LinkSampler(
        heads=whole(known),
        relations=whole(known),
        tails=whole(known),
        pairs=whole(known),
        held_out=jnp.zeros(plan.edges, bool),
        message_pairs=whole(messages),
        offsets=whole(len(counts)),
        first_candidates=whole(candidates),
        spans=whole(candidates),
        num_relations=plan.relations,
        num_links=min(LINKS, max(int(known * HIDDEN_SHARE), 1)),
    )


def batch_zeros(config: Config) -> Batch:
    """A batch of zeros; see `Packing.batch`."""
    shape = (config.train.batch_size, config.train.sequence_length)
    numbers, amounts = jnp.zeros(shape, jnp.int32), jnp.zeros(shape)
    return Batch(
        users=numbers,
        items=numbers,
        event_types=numbers,
        gaps=numbers,
        starts=jnp.zeros(shape, bool),
        first_weights=amounts,
        targets=numbers,
        target_event_types=numbers,
        target_gaps=numbers,
        weights=amounts,
    )


def whole(count: int) -> jax.Array:
    """Zeros for `count` row, node or edge numbers."""
    return jnp.zeros(count, jnp.int32)
