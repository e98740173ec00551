"""The nodes that a training step with a sampled loss encodes."""

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import jraph
from jaxtyping import Array, Int

from jaxrec.models.graph.link_sampling import Links, LinkSampler
from jaxrec.models.graph.neighbourhoods import Neighbourhood, distinct
from jaxrec.models.inputs import Nodes
from jaxrec.partitioning import WHOLE, look_up
from jaxrec.training.item_sampling import ItemSample, ItemSampler
from jaxrec.types import STATIC


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepItems:
    """The items that a step scores, and the nodes that it encodes for them."""

    sample: ItemSample
    encoded: Int[Array, " M"]  # distinct items, ascending, those of the sample among them
    ids: Int[Array, " M"]  # their rows in the id tables
    entities: Int[Array, " entities"] | None  # ids of the other nodes, ascending; None for all
    graph: jraph.GraphsTuple | None  # between these nodes; None where it is the whole graph
    links: Links | None  # edges to predict, whose ends are encoded
    own_ids: bool = field(metadata=STATIC)  # see `Nodes`
    num_items: int = field(metadata=STATIC)  # of the catalogue, padded
    all_items: bool = field(metadata=STATIC)  # whether the whole catalogue is encoded

    def of(self, nodes: Nodes) -> Nodes:
        """The nodes that the step encodes."""
        if self.all_items:
            return replace(nodes, items=self.ids)
        entities = nodes.entities
        return Nodes(
            self.ids,
            entities if self.entities is None else entities[self.entities - self.num_items],
            look_up(nodes.text, self.encoded, spec=WHOLE),
            {n: look_up(values, self.encoded, spec=WHOLE) for n, values in nodes.features.items()},
            self.own_ids,
        )

    def places(self, nodes: Int[Array, "*shape"]) -> Int[Array, "*shape"]:
        """Where nodes, by their ids, stand among those that the step encodes."""
        if self.all_items:
            return nodes
        behind = nodes - self.num_items
        if self.entities is not None:
            behind = jnp.searchsorted(self.entities, nodes)
        items = jnp.searchsorted(self.encoded, nodes)
        return jnp.where(nodes < self.num_items, items, len(self.encoded) + behind)


def step_items(
    sample: ItemSample,
    ids: Int[Array, " I"],
    links: Links | None,
    part: Neighbourhood | None = None,
    *,
    all_items: bool,
) -> StepItems:
    """What a step encodes: all items, those of a neighbourhood, or just the needed ones.

    Args:
        ids: rows of all items in the id tables.
    """
    num_items, entities, graph = len(ids), None, None
    if all_items:
        encoded = jnp.arange(num_items)
    elif part is not None:
        encoded, entities, graph = part
    else:
        encoded = needed_items(sample, links, num_items)
    return StepItems(
        sample,
        encoded,
        ids[encoded],
        entities,
        graph,
        links,
        own_ids=all_items,
        num_items=num_items,
        all_items=all_items,
    )


def needed_items(sample: ItemSample, links: Links | None, num_items: int) -> Int[Array, " M"]:
    """The items to score and those at the ends of links, ascending."""
    if links is None:
        return sample.rows
    ends = link_ends(links)
    needed = jnp.concatenate([sample.rows, jnp.where(ends < num_items, ends, 0)])
    return distinct(needed, min(len(needed), num_items), num_items - 1)


def needed_entities(
    entities: Int[Array, " n"], links: Links | None, num_items: int, num_nodes: int
) -> Int[Array, " m"]:
    """The entities to predict and those at the ends of links, ascending."""
    if links is None:
        return entities
    ends, last = link_ends(links), num_nodes - 1
    needed = jnp.concatenate([entities, jnp.where(ends < num_items, last, ends)])
    return distinct(needed, min(len(needed), num_nodes - num_items), last)


def most_items(sampler: ItemSampler, links: LinkSampler | None, num_items: int) -> int:
    """The length of `needed_items`."""
    return sampler.size if links is None else min(sampler.size + links.num_ends, num_items)


def most_entities(count: int, links: LinkSampler | None, num_entities: int) -> int:
    """The length of `needed_entities` where tasks predict `count` entities."""
    return count if links is None else min(count + links.num_ends, num_entities)


def link_ends(links: Links) -> Int[Array, " ends"]:
    """The nodes whose vectors link prediction compares."""
    return jnp.concatenate([links.heads, links.tails, links.candidates])
