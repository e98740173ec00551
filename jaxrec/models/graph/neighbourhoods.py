"""The part of a graph that the vectors of some nodes depend on, by neighbour sampling."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jraph
import numpy as np
from jaxtyping import Array, Float, Int

from jaxrec.models.graph.message_passing import selected_edges
from jaxrec.models.graph.sampling import EdgeSampler
from jaxrec.partitioning import WHOLE, look_up
from jaxrec.types import STATIC


class Neighbourhood(NamedTuple):
    """Nodes, each once and ascending, and edges between their places: items first, then entities.

    The last item and the last entity of the catalogue, which are unused, fill up.
    """

    items: Int[Array, " M"]
    entities: Int[Array, " entities"]  # node ids
    graph: jraph.GraphsTuple  # with `WeightedEdges`


class Counts(NamedTuple):
    """Numbers of items and of entities."""

    items: int
    entities: int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NeighbourhoodSampler:
    """Draws the neighbourhoods of nodes as an `EdgeSampler` draws edges of the whole graph.

    This is the mini-batch of GraphSAGE (Hamilton et al., arXiv:1706.02216, algorithm 2). The cost
    depends on the number of nodes and on the fan-out, not on the size of the graph.
    """

    entities: Int[Array, " m"]  # that are encoded in every step, because tasks predict them
    first: Int[Array, " firsts"]  # the first group of edges to every node, and their number
    num_items: int = field(metadata=STATIC)
    num_groups: int = field(metadata=STATIC)  # most groups of edges to a node
    width: int = field(metadata=STATIC)  # most edges to draw of a node
    sizes: tuple[Counts, ...] = field(metadata=STATIC)  # nodes after every hop, at most
    num_edges: int = field(metadata=STATIC)  # of a neighbourhood, at most

    def sample(
        self,
        graph: jraph.GraphsTuple,
        edge_sampler: EdgeSampler,
        items: Int[Array, " n"],
        entities: Int[Array, " m"],
        key: Array,
    ) -> Neighbourhood:
        """The neighbourhood of nodes, which are distinct and ascending, up to the unused ones.

        Args:
            edge_sampler: of the edges of the whole graph, that of `neighbourhood_sampler`.
        """
        last_item, last_entity = self.num_items - 1, self.num_nodes - 1
        for size in self.sizes:
            receivers = jnp.concatenate([items, entities])
            drawn, weights = self.draw(edge_sampler, receivers, key)
            senders = look_up(graph.senders, drawn, spec=WHOLE).reshape(-1)
            is_drawn = weights.reshape(-1) > 0
            is_item = senders < self.num_items
            new_items = jnp.where(is_drawn & is_item, senders, last_item)
            new_entities = jnp.where(is_drawn & ~is_item, senders, last_entity)
            items = distinct(jnp.concatenate([items, new_items]), size.items, last_item)
            entities = jnp.concatenate([entities, new_entities])
            entities = distinct(entities, size.entities, last_entity)
        # most nodes have fewer edges than the width; edges keep their order, and the last one fills
        kept = jnp.flatnonzero(weights > 0, size=self.num_edges, fill_value=weights.size - 1)
        is_edge = jnp.arange(self.num_edges) < (weights > 0).sum()
        edges, weights = drawn.reshape(-1)[kept], jnp.where(is_edge, weights.reshape(-1)[kept], 0)
        senders = look_up(graph.senders, edges, spec=WHOLE)
        ends = (jnp.where(is_edge, senders, 0), receivers[kept // self.width])
        senders, receivers = (self.places(items, entities, end) for end in ends)
        part = graph._replace(
            edges=selected_edges(graph.edges, edges, weights),
            senders=senders,
            receivers=receivers,
            n_node=jnp.array([len(items) + len(entities), 0]),
            n_edge=jnp.array([self.num_edges, 0]),
        )
        return Neighbourhood(items, entities, part)

    @property
    def num_nodes(self) -> int:
        """The nodes of the graph, padded."""
        return len(self.first) - 1

    def draw(
        self, sampler: EdgeSampler, nodes: Int[Array, " n"], key: Array
    ) -> tuple[Int[Array, "n width"], Float[Array, "n width"]]:
        """Numbers of edges to some nodes, and their weights: 0 where a node has fewer edges.

        A node gets the same edges whatever the others are.
        """
        groups = self.first[nodes][:, None] + jnp.arange(self.num_groups)[None]
        is_group = groups < self.first[nodes + 1][:, None]
        groups = jnp.minimum(groups, len(sampler.starts) - 2)
        starts = sampler.starts[groups]
        sizes = sampler.starts[groups + 1] - starts
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, groups.reshape(-1))
        words = jax.vmap(lambda own: jax.random.bits(own, (), jnp.uint32))(keys)
        shifts = (words.reshape(groups.shape) % sizes.astype(jnp.uint32)).astype(jnp.int32)
        counts = jnp.where(is_group, jnp.minimum(sizes, sampler.fan_out), 0)
        ends = jnp.cumsum(counts, axis=1)
        ranks = jnp.arange(self.width)[None] + jnp.zeros_like(groups[:, :1])
        is_edge = ranks < ends[:, -1:]
        # the group of each edge to draw, as a number among those of its node
        own = (ranks[:, :, None] >= ends[:, None]).sum(2)
        own = jnp.minimum(own, self.num_groups - 1)

        def of_edge(values: Array) -> Array:
            return jnp.take_along_axis(values, own, axis=1)

        ranks -= of_edge(ends - counts)
        places = of_edge(starts) + (of_edge(shifts) + ranks) % of_edge(sizes)
        weights = of_edge(sizes / jnp.maximum(counts, 1))
        return look_up(sampler.edges, places, spec=WHOLE), jnp.where(is_edge, weights, 0)

    def places(
        self, items: Int[Array, " M"], entities: Int[Array, " n"], nodes: Int[Array, "*shape"]
    ) -> Int[Array, "*shape"]:
        """Where nodes, by their ids, stand among items and the entities behind them."""
        behind = len(items) + jnp.searchsorted(entities, nodes)
        return jnp.where(nodes < self.num_items, jnp.searchsorted(items, nodes), behind)


def distinct(values: Int[Array, " n"], size: int, fill: int) -> Int[Array, " size"]:
    """The distinct values, ascending; `fill`, which is above all others, fills up."""
    return jnp.unique(values, size=size, fill_value=fill) if size else values[:0]


def neighbourhood_sampler(
    graph: jraph.GraphsTuple,
    edges: EdgeSampler,
    *,
    entities: Int[np.ndarray, " m"],
    num_items: int,
    num_nodes: int,
    hops: int,
    start: Counts,
) -> NeighbourhoodSampler:
    """A sampler of neighbourhoods.

    Args:
        edges: sampler of the edges of the whole graph.
        entities: node ids of those to encode in every step, ascending.
        hops: how many edges away a vector reads.
        start: the number of nodes whose neighbourhoods are drawn.
    """
    starts = np.asarray(edges.starts)
    senders = np.asarray(graph.senders)[np.asarray(edges.edges)]
    receivers = np.asarray(graph.receivers)[np.asarray(edges.edges)[starts[:-1]]]  # of the groups
    drawn = np.minimum(np.diff(starts), edges.fan_out)
    total = np.bincount(receivers, drawn, num_nodes).astype(np.int64)
    groups = np.bincount(receivers, minlength=num_nodes)
    has_item = np.minimum.reduceat(senders, starts[:-1]) < num_items
    has_entity = np.maximum.reduceat(senders, starts[:-1]) >= num_items
    reads = [drawn * has_item, drawn * has_entity, drawn]
    by_node = (np.bincount(receivers, counts, num_nodes).astype(np.int64) for counts in reads)
    most = [[_largest_sums(part) for part in np.split(of, [num_items])] for of in by_node]

    def most_of(kind: int, nodes: Counts) -> int:
        by_kind = zip(most[kind], nodes, strict=True)
        return sum(int(sums[min(count, len(sums) - 1)]) for sums, count in by_kind)

    limits = Counts(num_items, num_nodes - num_items)
    sizes = sizes_by_hop(start, (partial(most_of, 0), partial(most_of, 1)), limits, hops)
    return NeighbourhoodSampler(
        entities=jnp.asarray(entities, jnp.int32),
        first=jnp.asarray(np.concatenate([[0], np.cumsum(groups)]), jnp.int32),
        num_items=num_items,
        num_groups=int(groups.max()),
        width=int(total.max()),
        sizes=sizes,
        num_edges=max(most_of(2, (start, *sizes)[-2]), 1),
    )


def sizes_by_hop(
    start: Counts,
    most: tuple[Callable[[Counts], int], Callable[[Counts], int]],
    limits: Counts,
    hops: int,
) -> tuple[Counts, ...]:
    """Room for the nodes after every hop.

    Args:
        most: of items and of entities, how many some nodes read at most.
        limits: the items and the entities of the graph.
    """
    sizes = []
    for _ in range(hops):
        start = Counts(
            min(start.items + most[0](start), limits.items),
            min(start.entities + most[1](start), limits.entities),
        )
        sizes.append(start)
    return tuple(sizes)


def _largest_sums(values: Int[np.ndarray, " n"]) -> Int[np.ndarray, " sums"]:
    """The sums of the 0, 1, 2, ... largest values."""
    return np.concatenate([[0], np.cumsum(np.sort(values)[::-1])])
