"""The model: items to vectors, events to a state, a state to a user vector.

A model is a list of experts. Every expert encodes the items from its own sources and reads the
events of a user with its own sequence encoder. The experts are trained apart and their scores are
added: the sum of their dot products is one dot product of concatenated vectors.
"""

from collections.abc import Sequence
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
from jaxrec.models.graph.build import both_directions
from jaxrec.models.graph.links import LinkDecoder
from jaxrec.models.inputs import Events, Nodes, Sizes
from jaxrec.models.items.build import build_item_encoder
from jaxrec.models.layers import Linear, Table, dropout, unit_norm
from jaxrec.models.sequence.build import build_sequence_encoder
from jaxrec.models.sequence.encoder import State
from jaxrec.models.sequence.experts import Scan, scan_experts
from jaxrec.models.sequence.masked_items import MaskedItems
from jaxrec.models.text.finetuned import TextTower
from jaxrec.partitioning import look_up, spread_rows
from jaxrec.types import ANY_EVENT_TYPE, NO_GAP, STATIC

REPEAT_EVENTS = 64  # latest events whose items get a repeat bias
AGES = REPEAT_EVENTS.bit_length()  # buckets of ages: 0, and the powers of two below 64
GAP_BUCKETS = 34  # unknown, and the powers of two up to 68 years


class Expert(nnx.Module):
    """One item encoder, one sequence encoder and one user head.

    Args:
        name: the item sources, such as `id+graph`.
        links: whether the expert also learns to predict the edges of the graph.
        masked_items: whether it also learns to predict hidden items of a sequence.

    Raises:
        ConfigError: the name holds an unknown source.
    """

    def __init__(
        self,
        name: str,
        config: ModelConfig,
        sizes: Sizes,
        rngs: nnx.Rngs,
        *,
        links: bool = False,
        masked_items: bool = False,
    ):
        width, num_event_types = config.hidden_size, sizes.num_event_types
        self.config = config
        self.item_encoder = build_item_encoder(name, config, sizes, rngs)
        self.event_type_table = Table(jnp.zeros((num_event_types, width)))
        # row 0 is ANY_EVENT_TYPE, here and in the repeat bias
        self.target_type_table = Table(jnp.zeros((num_event_types + 1, width)))
        if config.time_gaps:
            self.gap_table = Table(jnp.zeros((GAP_BUCKETS, width)))
        if config.time_since_last:
            self.time_since_last_table = Table(jnp.zeros((GAP_BUCKETS, width)))
        self.sequence = build_sequence_encoder(config, rngs)
        self.user_norm = nnx.LayerNorm(width, rngs=rngs)
        self.user_output = Linear(width, width, rngs=rngs)
        self.memory_gate = Linear(width, 1, kernel_init=nnx.initializers.zeros, rngs=rngs)
        self.repeat_bias_table = Table(jnp.zeros((num_event_types + 1, num_event_types, AGES)))
        self.log_scale = nnx.Param(-jnp.log(jnp.full((), config.temperature, jnp.float32)))
        has_links = links and sizes.num_relations > 0
        num_messages = both_directions(sizes.num_relations)
        self.links = LinkDecoder(num_messages, width, config.temperature) if has_links else None
        # the last one, so that all other parameters are drawn as without it
        self.masked_items = MaskedItems(config, rngs) if masked_items else None

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of the matrix products; item vectors are float32 in any case."""
        return self.user_output.kernel[...].dtype

    def encode_nodes(
        self, nodes: Nodes, graph: jraph.GraphsTuple, key: Array | None = None
    ) -> Float[Array, "N D"]:
        """Unit vectors of all nodes, items first, in float32; `key` is for id dropout."""
        return self.item_encoder(nodes, graph, key)

    def event_vectors(
        self, items: Float[Array, "I D"], events: Events, key: Array | None = None
    ) -> Float[Array, "B T D"]:
        """x_t = Drop(v_item + event type + time gap); `key` is for dropout."""
        # unit vectors have entries near 1 / sqrt(D); the sequence encoder expects entries near 1
        vectors = look_up(items, jnp.asarray(events.items)) * self.config.hidden_size**0.5
        vectors = spread_rows(vectors)
        vectors += self.event_type_table[...][events.event_types]
        if self.config.time_gaps:
            vectors += self.gap_table[...][gap_buckets(events.gaps)]
        return dropout(vectors.astype(self.dtype), self.config.dropout, key)

    def user_vectors(
        self,
        outputs: Float[Array, "*rows out"],
        target_event_types: Int[Array, "*rows"],
        time_since_last: Int[Array, "*#rows"] | int = NO_GAP,
    ) -> Float[Array, "*rows D"]:
        """u = scale (Norm(W h) + exp(g h) readout) with h = Norm(interest) + context.

        The context is the sum of the vectors of the target event type and of the time since the
        last event. It also decides the weight of the memory readout: users often buy an item that
        is in their cart, but rarely add it to the cart again.

        Args:
            outputs: outputs of the sequence encoder: interest [D] and memory readout [D].
            target_event_types: the event types to predict, or ANY_EVENT_TYPE.
            time_since_last: seconds since the last event, NO_GAP if unknown; used by models with
                `time_since_last`.
        """
        context = self.target_type_table[...][target_event_types - ANY_EVENT_TYPE]
        if self.config.time_since_last:
            seconds = jnp.broadcast_to(jnp.asarray(time_since_last), target_event_types.shape)
            context += self.time_since_last_table[...][gap_buckets(seconds)]
        interest, readout = jnp.split(outputs, 2, axis=-1)
        hidden = (self.user_norm(interest) + context).astype(self.dtype)
        vectors = self.user_output(hidden)
        # event vectors, and so the readout, are sqrt(D) times longer than item vectors
        readout = jnp.exp(self.memory_gate(hidden)) * readout / self.config.hidden_size**0.5
        return (unit_norm(vectors) + readout) * jnp.exp(self.log_scale[...])

    def repeat_bias(
        self,
        event_types: Int[Array, "*#shape"],
        target_event_types: Int[Array, "*#shape"],
        ages: Int[Array, "*#shape"],
    ) -> Float[Array, "*shape"]:
        """What a past event adds to the score of its own item (RepeatNet, arXiv:1812.02646).

        Users come back to items. A dot product of short vectors cannot score one item far enough
        above the items similar to it, so the amounts come from a table.

        Args:
            target_event_types: the event types to predict, or ANY_EVENT_TYPE.
            ages: how many events ago the past events were, 0 for the last one.
        """
        buckets = 32 - jax.lax.clz(jnp.maximum(ages, 0))
        table = jnp.pad(self.repeat_bias_table[...], ((0, 0), (0, 0), (0, 1)))  # 0 beyond AGES
        targets = target_event_types - ANY_EVENT_TYPE
        bias = table[targets, event_types, jnp.minimum(buckets, AGES)]
        return bias * jnp.exp(self.log_scale[...])


class Recommender(nnx.Module):
    """Experts side by side; F is the width of their concatenated vectors.

    Args:
        text_tower: the layers of the text encoder that train with the model, if any.
        links: whether the experts also learn to predict the edges of the graph.
        masked_items: whether they also learn to predict hidden items of a sequence.

    Raises:
        ConfigError: an expert names an unknown source.
    """

    def __init__(
        self,
        config: ModelConfig,
        sizes: Sizes,
        rngs: nnx.Rngs,
        text_tower: TextTower | None = None,
        *,
        links: bool = False,
        masked_items: bool = False,
    ):
        experts = [
            Expert(name, config, sizes, rngs, links=links, masked_items=masked_items)
            for name in config.experts
        ]
        self.experts = nnx.List(experts)
        self.text_tower = text_tower

    def encode_items(self, nodes: Nodes, graph: jraph.GraphsTuple) -> Float[Array, "N F"]:
        """Concatenated vectors of all nodes, items first, for retrieval by dot product."""
        return jnp.concatenate([e.encode_nodes(nodes, graph) for e in self.experts], -1)

    def initial_state(self, batch_size: int) -> tuple[State, ...]:
        """The states of users without events, one of every expert."""
        return tuple(e.sequence.initial_state(batch_size) for e in self.experts)

    def update(
        self,
        states: tuple[State, ...],
        items: Float[Array, "I F"],
        events: Events,
        starts: Bool[Array, "B T"] | None = None,
        valid: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T out"], tuple[State, ...]]:
        """The outputs after each of T events, for `user_vectors`, and the states after all.

        Masks as in `SequenceEncoder.scan`.
        """
        parts = zip(self.experts, jnp.split(items, len(self.experts), -1), strict=True)
        vectors = [expert.event_vectors(part, events) for expert, part in parts]
        outputs, after = zip(*self.scan(states, vectors, starts, valid), strict=True)
        return jnp.concatenate(outputs, -1), after

    def scan(
        self,
        states: tuple[State, ...],
        events: Sequence[Float[Array, "B T D"]],
        starts: Bool[Array, "B T"] | None = None,
        valid: Bool[Array, "B T"] | None = None,
        keys: Sequence[Array] | None = None,
    ) -> list[Scan]:
        """The outputs and the state of every expert after its event vectors; see `scan_experts`."""
        encoders = [expert.sequence for expert in self.experts]
        return scan_experts(encoders, states, events, starts, valid, keys)

    def last_outputs(self, states: tuple[State, ...]) -> Float[Array, "B out"]:
        """The outputs after the last events of states, for `user_vectors`."""
        pairs = zip(self.experts, states, strict=True)
        return jnp.concatenate([e.sequence.last_output(state) for e, state in pairs], -1)

    def user_vectors(
        self,
        outputs: Float[Array, "*rows out"],
        target_event_types: Int[Array, "*rows"],
        time_since_last: Int[Array, "*#rows"] | int = NO_GAP,
    ) -> Float[Array, "*rows F"]:
        """User vectors; their dot product with `encode_items` is the sum of the experts' scores.

        Arguments as in `Expert.user_vectors`.
        """
        parts = jnp.split(outputs, len(self.experts), axis=-1)
        vectors = [
            e.user_vectors(part, target_event_types, time_since_last)
            for e, part in zip(self.experts, parts, strict=True)
        ]
        return jnp.concatenate(vectors, -1)

    def link_queries(
        self, heads: Float[Array, "K F"], relations: Int[Array, " K"]
    ) -> Float[Array, "K F"]:
        """Vectors whose products with node vectors are the sums of the experts' scores of edges.

        The experts must predict links; see `LinkDecoder`.
        """
        parts = zip(self.experts, jnp.split(heads, len(self.experts), -1), strict=True)
        vectors = [e.links(part, relations) for e, part in parts if e.links is not None]
        return jnp.concatenate(vectors, -1)

    def repeat_bias(self, target_event_type: Int[Array, ""] | int) -> Float[Array, "types A"]:
        """`Expert.repeat_bias` by event type and age for one target event type, of all experts."""
        event_types = jnp.arange(len(self.experts[0].event_type_table[...]))[:, None]
        ages, target = jnp.arange(REPEAT_EVENTS)[None], jnp.full((1, 1), target_event_type)
        return jnp.stack([e.repeat_bias(event_types, target, ages) for e in self.experts]).sum(0)


Params = nnx.State | dict[str, Any]
"""Parameters; JAX flattens a plain dict faster, which counts in many small calls."""


class ModelDef:
    """A model without its parameters, a static argument of jitted functions.

    The hash is computed once: hashing the graph took most of the time of a small call.
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
    """A definition (static) and its parameters (traced), as jitted functions take them."""

    definition: ModelDef = field(metadata=STATIC)
    params: Params

    def merge(self) -> Recommender:
        """The module with its parameters."""
        return self.definition.merge(self.params)


def split(model: Recommender) -> tuple[ModelDef, nnx.State]:
    """The definition and the parameters of a module."""
    graphdef, params = nnx.split(model)
    return ModelDef(graphdef), params


def cast_products(params: nnx.State, dtype: DTypeLike) -> nnx.State:
    """Parameters in the dtype of the matrix products; tables stay in float32, see `Table`."""

    def cast(param: nnx.Variable) -> nnx.Variable:
        return param if isinstance(param, Table) else jax.tree.map(lambda x: x.astype(dtype), param)

    return jax.tree.map(cast, params, is_leaf=lambda x: isinstance(x, nnx.Variable))


def gap_buckets(gaps: Int[Array | np.ndarray, "*shape"]) -> Int[Array, "*shape"]:
    """0 where the gap is unknown, else 1 + the number of binary digits of the seconds."""
    digits = 32 - jax.lax.clz(jnp.maximum(gaps, 0))
    return jnp.where(gaps < 0, 0, 1 + digits)
