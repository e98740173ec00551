"""Draws edges to predict, and hides them from the messages of the same step."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import jraph
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxrec.models.graph.message_passing import WeightedEdges
from jaxrec.types import STATIC, KnowledgeGraph

LINKS = 1024  # most edges to predict in a step
HIDDEN_SHARE = 0.1  # of the edges, at most: the other tasks of the step read the rest
CANDIDATES = 256  # most candidates of a node type
HELD_OUT_SHARE, MAX_HELD_OUT = 0.01, 1000  # edges that no step reads or predicts


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Links:
    """Edges to predict, and the tails to tell them from."""

    heads: Int[Array, " links"]  # node ids
    relations: Int[Array, " links"]  # numbers of messages: r, and R + r for a reversed edge
    tails: Int[Array, " links"]
    tail_types: Int[Array, " links"]  # positions in the node types of the graph
    candidates: Int[Array, " C"]  # node ids
    candidate_types: Int[Array, " C"]
    hidden: Bool[Array, " pairs"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LinkSampler:
    """Draws edges and, for every node type, candidates.

    The edges between two nodes are a pair. An edge that is predicted is hidden with all edges of
    its pair: its reverse, and other relations of the same two nodes, would reveal it.

    Small types have all their nodes among the candidates. Others have nodes drawn evenly.
    """

    heads: Int[Array, " E"]  # of the edges that can be predicted
    relations: Int[Array, " E"]
    tails: Int[Array, " E"]
    pairs: Int[Array, " E"]
    held_out: Bool[Array, " pairs"]  # pairs that are always hidden
    message_pairs: Int[Array, " messages"]  # of the edges that message passing reads
    offsets: Int[Array, " node_types"]
    first_candidates: Int[Array, " C"]  # a candidate is drawn from `spans` nodes from here on
    spans: Int[Array, " C"]
    num_relations: int = field(metadata=STATIC)
    num_links: int = field(metadata=STATIC)  # edges to predict in a step

    @property
    def num_ends(self) -> int:
        """The nodes that a step compares, with repeats."""
        return 2 * self.num_links + len(self.spans)

    def sample(self, key: Array) -> Links:
        """Edges in a random direction, drawn with replacement."""
        edge_key, turn_key, candidate_key = jax.random.split(key, 3)
        drawn = jax.random.randint(edge_key, (self.num_links,), 0, len(self.heads))
        heads, tails, relations = self.heads[drawn], self.tails[drawn], self.relations[drawn]
        turned = jax.random.bernoulli(turn_key, 0.5, drawn.shape)
        tails, heads = jnp.where(turned, heads, tails), jnp.where(turned, tails, heads)
        shifts = jax.random.randint(candidate_key, self.spans.shape, 0, self.spans)
        candidates = self.first_candidates + shifts
        return Links(
            heads,
            jnp.where(turned, relations + self.num_relations, relations),
            tails,
            self.types_of(tails),
            candidates,
            self.types_of(candidates),
            self.held_out.at[self.pairs[drawn]].set(True),
        )

    def visible(self, graph: jraph.GraphsTuple, hidden: Bool[Array, " pairs"]) -> jraph.GraphsTuple:
        """The graph without the edges of hidden pairs: their weight is 0."""
        # padding edges have a number beyond the last pair
        is_hidden = jnp.pad(hidden, (0, 1))[self.message_pairs]
        weights = jnp.where(is_hidden, 0.0, 1.0)
        return graph._replace(edges=WeightedEdges(graph.edges, weights))

    def types_of(self, nodes: Int[Array, " n"]) -> Int[Array, " n"]:
        """The positions of nodes' types."""
        return jnp.searchsorted(self.offsets, nodes, side="right") - 1


def link_sampler(graph: KnowledgeGraph, messages: jraph.GraphsTuple, seed: int) -> LinkSampler:
    """A sampler over a graph with one edge or more.

    Args:
        messages: the edges of `graph` in both directions, padded.
        seed: of the choice of the edges that are held out.
    """
    pairs, numbers = np.unique(_pairs(graph.heads, graph.tails, graph), return_inverse=True)
    held_out = np.zeros(len(pairs), bool)
    held_out[numbers[held_out_edges(graph, seed)]] = True
    known = ~held_out[numbers]
    ends = _pairs(np.asarray(messages.receivers), np.asarray(messages.senders), graph)
    places = np.minimum(np.searchsorted(pairs, ends), len(pairs) - 1)
    message_pairs = np.where(pairs[places] == ends, places, len(pairs))
    firsts, spans = [], []
    for node_type in graph.types:
        nodes = node_type.offset + np.flatnonzero(node_type.valid)
        if len(nodes) > CANDIDATES:
            firsts.append(np.full(CANDIDATES, nodes[0]))
            spans.append(np.full(CANDIDATES, len(nodes)))
        else:
            firsts.append(nodes)
            spans.append(np.ones(len(nodes), np.int64))
    count = min(LINKS, max(int(known.sum() * HIDDEN_SHARE), 1))

    def numbers_of(values: np.ndarray) -> Int[Array, " n"]:
        return jnp.asarray(values, jnp.int32)

    return LinkSampler(
        heads=numbers_of(graph.heads[known]),
        relations=numbers_of(graph.edge_relations[known]),
        tails=numbers_of(graph.tails[known]),
        pairs=numbers_of(numbers[known]),
        held_out=jnp.asarray(held_out),
        message_pairs=numbers_of(message_pairs),
        offsets=numbers_of(np.array([node_type.offset for node_type in graph.types])),
        first_candidates=numbers_of(np.concatenate(firsts)),
        spans=numbers_of(np.concatenate(spans)),
        num_relations=len(graph.relations),
        num_links=count,
    )


def held_out_edges(graph: KnowledgeGraph, seed: int) -> Int[np.ndarray, " held_out"]:
    """Numbers of the edges that measure link prediction; none of a graph with few edges."""
    num_edges = len(graph.heads)
    count = min(int(num_edges * HELD_OUT_SHARE), MAX_HELD_OUT)
    return np.sort(np.random.default_rng(seed).permutation(num_edges)[:count])


def _pairs(
    ends: Int[np.ndarray, " n"], other_ends: Int[np.ndarray, " n"], graph: KnowledgeGraph
) -> Int[np.ndarray, " n"]:
    """One number for both directions between two nodes."""
    low, high = np.minimum(ends, other_ends), np.maximum(ends, other_ends)
    return low.astype(np.int64) * graph.num_nodes + high
