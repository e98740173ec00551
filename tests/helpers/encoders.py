"""Sequence and graph encoders with random parameters."""

from dataclasses import replace
from typing import get_args, get_type_hints

import jax
import numpy as np
import pytest
from flax import nnx

from helpers.graph import NODES, WIDTH, randomised
from jaxrec.config import ModelConfig
from jaxrec.models.graph.build import build_context_encoder, build_graph_encoder
from jaxrec.models.graph.context import ContextEncoder
from jaxrec.models.graph.encoder import GraphEncoder
from jaxrec.models.inputs import Sizes
from jaxrec.models.sequence.build import build_sequence_encoder
from jaxrec.models.sequence.encoder import SequenceEncoder

WINDOW = 4  # of attention; the histories of tests are longer
CONFIG = ModelConfig(
    hidden_size=WIDTH,
    num_layers=2,
    dropout=0.5,
    num_graph_layers=2,
    graph_heads=2,
    sequence_window=WINDOW,
)
ITEMS = 5  # of the nodes; row 4 is unused
SIZES = Sizes(num_items=ITEMS, num_nodes=NODES, num_relations=1, num_event_types=1, text_width=3)


def values_of(option: str) -> tuple[str, ...]:
    """All values of an option of the model."""
    return get_args(get_type_hints(ModelConfig)[option])


def make_sequence_encoder(name: str) -> SequenceEncoder:
    """An encoder whose constant initial parameters are random, as after some training."""
    encoder = build_sequence_encoder(replace(CONFIG, sequence=name), nnx.Rngs(0))
    keys = iter(jax.random.split(jax.random.key(0), 100))
    noisy = jax.tree.map(
        lambda p: p + 0.5 * jax.random.normal(next(keys), p.shape), nnx.state(encoder)
    )
    nnx.update(encoder, noisy)
    return encoder


def random_events(batch_size: int, length: int) -> jax.Array:
    return jax.random.normal(jax.random.key(0), (batch_size, length, WIDTH))


def assert_states_equal(state, expected):
    for part, expected_part in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(part, expected_part, atol=1e-5)


SEQUENCE_ENCODERS = [  # an RNN differs from a GRU by its cell alone
    pytest.param(name, marks=pytest.mark.slow) if name == "rnn" else name
    for name in values_of("sequence")
]
LAYERS = {
    **{name: {"graph_layer": name} for name in values_of("graph_layer")},
    "sage, max": {"graph_layer": "sage", "aggregate": "max"},
    # of a ReLU between layers, a width of 4 leaves one entry, which then is 1 in any case
    "sage, normalized": {"graph_layer": "sage", "normalize_nodes": True, "num_graph_layers": 1},
}
GRAPH_ENCODERS = {**LAYERS, "context": {"context": "replace", "context_layers": 2}}


def make_graph_encoder(name: str, width: int = WIDTH) -> GraphEncoder | ContextEncoder:
    config = replace(CONFIG, hidden_size=width, **GRAPH_ENCODERS[name])
    build = build_graph_encoder if config.context == "off" else build_context_encoder
    return randomised(build(config, SIZES.num_relations, nnx.Rngs(0)))
