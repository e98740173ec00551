"""The experts and their composition: items to vectors, events to a state, a state to scores.

An expert encodes the catalogue from its own sources and reads a user's events with its own LSTM
blocks. Experts are trained apart; their scores are added, which is one dot product of
concatenated vectors.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import jraph
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jaxrec.config import ModelConfig
from jaxrec.models.graph.layers import GraphEncoder
from jaxrec.models.layers import Linear, dropout, unit_norm
from jaxrec.models.sequence.lstm import InterestState, LSTMEncoder
from jaxrec.models.text.finetuned import TextTower
from jaxrec.types import NO_GAP

SOURCES = ("id", "graph", "text")
LOOKED_UP = re.compile(r"_table|message")  # paths of parameters
REPEAT_EVENTS = 64  # newest events whose items are familiar
AGES = REPEAT_EVENTS.bit_length()  # none, and the powers of two below
GAP_BUCKETS = 34  # none, and the powers of two up to 68 years


@dataclass(frozen=True)
class Sizes:
    """What the data decide of a model's shapes."""

    num_items: int  # capacity of the item block
    num_nodes: int  # capacity of all blocks
    num_relations: int  # forward ones
    num_event_types: int
    text_width: int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Nodes:
    """What a model is told of the nodes of a graph, items first: the rows of its id tables, a
    node's own or that of its type's `unknown`. The graph may be larger than that of training."""

    items: Int[Array, " I"]
    entities: Int[Array, " N-I"]
    text: Float[Array, "I Dt"]  # whitened text vectors of the items; zero where unknown


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Events:
    """Events as the encoder reads them, B rows of T slots."""

    items: Int[Array | np.ndarray, "B T"]
    event_types: Int[Array | np.ndarray, "B T"]
    gaps: Int[Array | np.ndarray, "B T"]  # seconds since the event before, negative if unknown


class Expert(nnx.Module):
    """One item encoder and one interest encoder with parameters of their own."""

    def __init__(self, sources: tuple[str, ...], config: ModelConfig, sizes: Sizes, rngs: nnx.Rngs):
        width = config.hidden_size
        self.sources = sources
        self.config = config
        num_entities = sizes.num_nodes - sizes.num_items
        self.has_entities = num_entities > 0
        if self.has_entities:
            self.entity_table = _table(num_entities, width, rngs)
        if "id" in sources:
            self.item_table = _table(sizes.num_items, width, rngs)
        if "text" in sources:
            self.text_hidden = Linear(sizes.text_width, 2 * width, rngs=rngs)
            self.text_output = Linear(2 * width, width, rngs=rngs)
        if "graph" in sources:
            # both directions of every relation, and the padding
            num_relations = 2 * sizes.num_relations + 1
            self.graph_encoder = GraphEncoder(
                config.graph_layer,
                config.num_graph_layers,
                width,
                num_relations,
                config.aggregate,
                rngs,
            )
        self.event_type_table = nnx.Param(jnp.zeros((sizes.num_event_types, width)))
        self.target_type_table = nnx.Param(jnp.zeros((sizes.num_event_types + 1, width)))
        if config.time_gaps:
            self.gap_table = nnx.Param(jnp.zeros((GAP_BUCKETS, width)))
        if config.time_since_last:
            self.time_since_last_table = nnx.Param(jnp.zeros((GAP_BUCKETS, width)))
        self.encoder = LSTMEncoder(
            width, config.num_layers, config.dropout, rngs, config.memory_decays
        )
        self.read_norm = nnx.LayerNorm(width, rngs=rngs)
        self.read_output = Linear(width, width, rngs=rngs)
        self.memory_gate = Linear(width, 1, kernel_init=nnx.initializers.zeros, rngs=rngs)
        self.repeat_bias_table = nnx.Param(
            jnp.zeros((sizes.num_event_types + 1, sizes.num_event_types, AGES))
        )
        self.log_scale = nnx.Param(-jnp.log(jnp.full((), config.temperature, jnp.float32)))

    @property
    def dtype(self) -> jnp.dtype:
        """Of the matrix products; vectors of nodes are float32, as many of them are summed."""
        return self.read_output.kernel[...].dtype

    def encode_nodes(
        self, nodes: Nodes, graph: jraph.GraphsTuple, key: Array | None = None
    ) -> Float[Array, "N D"]:
        """Unit vectors of all nodes, in float32; `key` hides some items' ids."""
        items = nodes.items
        features = jnp.zeros((len(items), self.config.hidden_size))
        if "id" in self.sources:
            if key is not None:
                hidden = jax.random.bernoulli(key, self.config.id_dropout, items.shape)
                items = jnp.where(hidden, 0, items)
            features += self.item_table[...][items]
        if "text" in self.sources:
            text = nodes.text.astype(self.dtype)
            features += self.text_output(nnx.gelu(self.text_hidden(text)))
        if self.has_entities:
            features = jnp.concatenate([features, self.entity_table[...][nodes.entities]])
        if "graph" in self.sources:
            features += self.graph_encoder(features, graph)
        return unit_norm(features)

    def event_vectors(
        self, items: Float[Array, "I D"], events: Events, key: Array | None = None
    ) -> Float[Array, "B T D"]:
        """What was touched, how, and how long after the event before."""
        # unit vectors have entries of 1 / sqrt(D); the blocks expect entries near 1
        vectors = items[events.items] * self.config.hidden_size**0.5
        vectors += self.event_type_table[...][events.event_types]
        if self.config.time_gaps:
            vectors += self.gap_table[...][gap_buckets(events.gaps)]
        return dropout(vectors.astype(self.dtype), self.config.dropout, key)

    def read(
        self,
        output: Float[Array, "*rows 2D"],
        wanted: Int[Array, "*rows"],
        time_since_last: Int[Array, "*rows"] | int = NO_GAP,
    ) -> Float[Array, "*rows D"]:
        """User vectors of the encoder's outputs, for the wanted event type or ANY_EVENT_TYPE.

        How much is recalled depends on the interest and on what is asked: who has carted an item
        is likely to buy it, and not to cart it again.

        Args:
            time_since_last: seconds since the last event, if the model is to know; see `time_since_last`.
        """
        asked = self.target_type_table[...][wanted + 1]
        if self.config.time_since_last:
            buckets = gap_buckets(jnp.broadcast_to(jnp.asarray(time_since_last), wanted.shape))
            asked += self.time_since_last_table[...][buckets]
        interest, recalled = jnp.split(output, 2, axis=-1)
        heard = (self.read_norm(interest) + asked).astype(self.dtype)
        vectors = self.read_output(heard)
        # events are as long as the square root of D, see `event_vectors`
        recalled = jnp.exp(self.memory_gate(heard)) * recalled / self.config.hidden_size**0.5
        return (unit_norm(vectors) + recalled) * jnp.exp(self.log_scale[...])

    def repeat_bias(
        self,
        event_types: Int[Array, "*shape"],
        wanted: Int[Array, "*shape"],
        ages: Int[Array, "*shape"],
    ) -> Float[Array, "*shape"]:
        """What an event adds to the score of its item, as people come back to what they know.

        Vectors of some hundred entries cannot tell an item from what is chosen with it by as much
        as this takes (RepeatNet, arXiv:1812.02646).

        Args:
            event_types: of the event.
            wanted: the event_type that is asked for, or ANY_EVENT_TYPE.
            ages: how many events ago it was, 0 for the last one.
        """
        buckets = 32 - jax.lax.clz(jnp.maximum(ages, 0))
        table = jnp.pad(self.repeat_bias_table[...], ((0, 0), (0, 0), (0, 1)))
        learned = table[wanted + 1, event_types, jnp.minimum(buckets, AGES)]
        return learned * jnp.exp(self.log_scale[...])


class Recommender(nnx.Module):
    """Experts side by side; the score of an item is the sum of the experts' scores.

    Args:
        text_tower: the layers of the text encoder that are trained as well, if any.

    Raises:
        ValueError: an expert names an unknown source.
    """

    def __init__(
        self,
        config: ModelConfig,
        sizes: Sizes,
        rngs: nnx.Rngs,
        text_tower: TextTower | None = None,
    ):
        self.experts = nnx.List(
            [Expert(expert_sources(name), config, sizes, rngs) for name in config.experts]
        )
        self.text_tower = text_tower

    def encode_items(self, nodes: Nodes, graph: jraph.GraphsTuple) -> Float[Array, "N F"]:
        """Concatenated vectors of all nodes, items first, for retrieval by dot product."""
        return jnp.concatenate([e.encode_nodes(nodes, graph) for e in self.experts], -1)

    def initial_state(self, batch_size: int) -> tuple[InterestState, ...]:
        """The state of users without events, one part an expert."""
        return tuple(e.encoder.initial_state(batch_size) for e in self.experts)

    def fold(
        self,
        state: tuple[InterestState, ...],
        items: Float[Array, "I F"],
        events: Events,
        starts: Bool[Array, "B T"] | None = None,
        valid: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T 2ED"], tuple[InterestState, ...]]:
        """Read T events a row: outputs after each of them, and the state after all.

        Masks as in `LSTMEncoder.fold`.
        """
        outputs, states = [], []
        parts = jnp.split(items, len(self.experts), axis=-1)
        for expert, before, vectors in zip(self.experts, state, parts, strict=True):
            x, after = expert.encoder.fold(
                before, expert.event_vectors(vectors, events), starts, valid
            )
            outputs.append(x)
            states.append(after)
        return jnp.concatenate(outputs, -1), tuple(states)

    def read(
        self,
        outputs: Float[Array, "*rows 2ED"],
        wanted: Int[Array, "*rows"],
        time_since_last: Int[Array, "*rows"] | int = NO_GAP,
    ) -> Float[Array, "*rows F"]:
        """User vectors; a dot product with `encode_items` is the sum of the experts' scores."""
        parts = jnp.split(outputs, len(self.experts), axis=-1)
        vectors = [
            e.read(part, wanted, time_since_last)
            for e, part in zip(self.experts, parts, strict=True)
        ]
        return jnp.concatenate(vectors, -1)

    def repeat_bias(self, wanted: Int[Array, ""] | int) -> Float[Array, "event_types A"]:
        """What events add to the scores of their items, by event_type and by how many events ago they
        were, when a event_type is asked for; see `Expert.repeat_bias`."""
        event_types = jnp.arange(len(self.experts[0].event_type_table[...]))[:, None]
        ages, wanted = jnp.arange(REPEAT_EVENTS)[None], jnp.full((1, 1), wanted)
        return jnp.stack([e.repeat_bias(event_types, wanted, ages) for e in self.experts]).sum(0)


Params = nnx.State | dict[str, Any]
"""Parameters; where small calls are many, a plain dict of them, which JAX takes apart faster."""


class ModelDef:
    """All of a model but its parameters, as a static argument of jitted functions.

    Hashed once: to hash the graph anew took most of the time of a small call.
    """

    def __init__(self, graphdef: nnx.GraphDef[Recommender]):
        self.graphdef = graphdef
        self.hash = hash(graphdef)

    def merge(self, params: Params) -> Recommender:
        """The model with these parameters."""
        return nnx.merge(self.graphdef, params)

    def __hash__(self) -> int:
        return self.hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, ModelDef) and self.graphdef == other.graphdef)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Model:
    """A model as jitted functions take it: the definition is static, the parameters are traced."""

    definition: ModelDef = field(metadata={"static": True})
    params: Params

    def merge(self) -> Recommender:
        """The module with its parameters."""
        return self.definition.merge(self.params)


def split(model: Recommender) -> tuple[ModelDef, nnx.State]:
    """A model as jitted functions take it."""
    graphdef, params = nnx.split(model)
    return ModelDef(graphdef), params


def cast_products(params: nnx.State, dtype: DTypeLike) -> nnx.State:
    """Parameters in the dtype of the products; what is looked up by many stays in float32.

    The gradient of a look-up is a sum over all that looked, which bfloat16 cannot hold.
    """

    def cast(path: tuple, leaf: Array) -> Array:
        return leaf if LOOKED_UP.search(jax.tree_util.keystr(path)) else leaf.astype(dtype)

    return jax.tree_util.tree_map_with_path(cast, params)


def expert_sources(name: str) -> tuple[str, ...]:
    """The sources of an expert named `id+graph` and the like."""
    sources = tuple(name.split("+"))
    unknown = [source for source in sources if source not in SOURCES]
    if unknown:
        raise ValueError(f"expert {name!r} names {unknown}; the sources are {', '.join(SOURCES)}")
    return sources


def gap_buckets(gaps: Int[Array | np.ndarray, "*shape"]) -> Int[Array, "*shape"]:
    """0 where the gap is unknown, else 1 + the number of binary digits of the seconds."""
    digits = 32 - jax.lax.clz(jnp.maximum(gaps, 0))
    return jnp.where(gaps < 0, 0, 1 + digits)


def _table(rows: int, width: int, rngs: nnx.Rngs) -> nnx.Param:
    return nnx.Param(jax.random.normal(rngs.params(), (rows, width)) * 0.02)
