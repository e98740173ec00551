"""Every implementation of a protocol, by name, through the same checks."""

from dataclasses import replace
from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.graph import EDGES, NODES, WIDTH, features, make_graph, randomised
from helpers.paths import GOLDEN

from jaxrec.config import ModelConfig
from jaxrec.models.graph.build import build_graph_encoder
from jaxrec.models.inputs import Nodes, Sizes
from jaxrec.models.items.build import SOURCES, build_item_encoder
from jaxrec.models.sequence.build import build_sequence_encoder
from jaxrec.models.text.bert import load_bert

CONFIG = ModelConfig(hidden_size=WIDTH, num_layers=2, dropout=0.5, num_graph_layers=2)
ITEMS = 5  # of the nodes; row 4 is unused
SIZES = Sizes(num_items=ITEMS, num_nodes=NODES, num_relations=1, num_event_types=1, text_width=3)


def names(option: str) -> tuple[str, ...]:
    """All values of an option of the model."""
    return get_args(get_type_hints(ModelConfig)[option])


# --- SequenceEncoder


@pytest.fixture(scope="module", params=names("sequence"))
def sequence(request):
    encoder = build_sequence_encoder(replace(CONFIG, sequence=request.param), nnx.Rngs(0))
    # parameters that begin as constants count, as they do after some training
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


def test_every_leaf_of_a_state_has_the_batch_as_first_axis(sequence):
    state = sequence.initial_state(3)
    _, after = sequence.scan(state, random_events(3, 2))
    shapes = [leaf.shape for leaf in jax.tree.leaves(state)]
    assert {shape[0] for shape in shapes} == {3}
    assert [leaf.shape for leaf in jax.tree.leaves(after)] == shapes


def test_a_future_event_never_moves_an_earlier_output(sequence):
    length = 6
    state = sequence.initial_state(1)
    jacobian = jax.jacobian(lambda events: sequence.scan(state, events)[0][0])(
        random_events(1, length)
    )
    influence = np.abs(jacobian[:, :, 0]).max((1, 3))  # [step of the output, step of the event]
    assert (influence[np.triu_indices(length, 1)] == 0).all()
    assert (influence[np.tril_indices(length)] > 1e-6).all()


def test_packed_sequences_equal_one_sequence_a_row(sequence):
    lengths = [3, 1, 4]
    begins = np.cumsum([0, *lengths[:-1]])
    events = random_events(1, 10)
    starts = jnp.zeros((1, 10), bool).at[0, begins].set(True)
    packed, _ = sequence.scan(sequence.initial_state(1), events, starts=starts)
    for begin, length in zip(begins, lengths, strict=True):
        part = slice(begin, begin + length)
        alone, _ = sequence.scan(sequence.initial_state(1), events[:, part])
        np.testing.assert_allclose(packed[:, part], alone, atol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 17])
@pytest.mark.parametrize("padding", [0, 3])
def test_a_scan_equals_steps_one_by_one(sequence, length, padding):
    events = random_events(2, length + padding)
    expected = sequence.initial_state(2)
    expected_outputs = []
    for step in range(length):
        output, expected = sequence.scan(expected, events[:, step : step + 1])
        expected_outputs.append(output)
    valid = jnp.tile(jnp.arange(length + padding)[None] < length, (2, 1))
    outputs, state = sequence.scan(sequence.initial_state(2), events, valid=valid)
    assert outputs.shape == (2, length + padding, 2 * WIDTH)
    assert_states_equal(state, expected)
    np.testing.assert_allclose(outputs[:, :length], jnp.concatenate(expected_outputs, 1), atol=1e-5)
    np.testing.assert_allclose(sequence.last_output(state), outputs[:, length - 1], atol=1e-5)


def test_rows_of_any_length_are_scanned_together(sequence):
    """Row 0 has no event in the second chunk, row 1 some, row 2 all; row 3 never has one."""
    lengths = np.array([2, 5, 6, 0])
    events = random_events(4, 6)
    state = sequence.initial_state(4)
    for chunk in (np.arange(0, 3), np.arange(3, 6)):
        valid = jnp.asarray(chunk[None] < lengths[:, None])
        _, state = sequence.scan(state, events[:, chunk], valid=valid)
    for row, length in enumerate(lengths):
        expected = sequence.initial_state(1)
        if length:
            _, expected = sequence.scan(expected, events[row : row + 1, :length])
        assert_states_equal(jax.tree.map(lambda part, r=row: part[r : r + 1], state), expected)


def test_a_scan_drops_out_only_with_a_key(sequence):
    events, state = random_events(1, 5), sequence.initial_state(1)
    plain, again = (sequence.scan(state, events)[0] for _ in range(2))
    noisy = sequence.scan(state, events, key=jax.random.key(0))[0]
    np.testing.assert_array_equal(plain, again)
    assert jnp.abs(plain - noisy).max() > 1e-3


# --- GraphLayer


@pytest.fixture(scope="module", params=names("graph_layer"))
def graph_encoder(request):
    config = replace(CONFIG, graph_layer=request.param)
    return randomised(build_graph_encoder(config, SIZES.num_relations, nnx.Rngs(0)))


def test_a_permuted_graph_gives_permuted_vectors(graph_encoder):
    nodes = features()
    new_number = np.random.default_rng(2).permutation(NODES)
    permuted_nodes = np.empty_like(nodes)
    permuted_nodes[new_number] = nodes
    permuted_edges = [(new_number[s], r, new_number[t]) for s, r, t in EDGES]
    permuted = graph_encoder(jnp.asarray(permuted_nodes), make_graph(permuted_edges))
    expected = graph_encoder(jnp.asarray(nodes), make_graph(EDGES))
    np.testing.assert_allclose(permuted[new_number], expected, rtol=1e-4, atol=1e-4)


def test_padding_edges_change_no_real_node(graph_encoder):
    nodes = jnp.asarray(features())
    expected = graph_encoder(nodes, make_graph(EDGES))[:-1]
    padded = graph_encoder(nodes, make_graph(EDGES, 5))[:-1]
    np.testing.assert_allclose(padded, expected, rtol=1e-5)


# --- ItemSource


@pytest.fixture(scope="module", params=[name for name in SOURCES if name != "graph"])
def source(request):
    (only,) = build_item_encoder(request.param, CONFIG, SIZES, nnx.Rngs(0)).sources
    return randomised(only)


def make_nodes() -> Nodes:
    text = np.random.default_rng(0).normal(size=(ITEMS, 3)).astype(np.float32)
    return Nodes(jnp.arange(ITEMS), jnp.arange(NODES - ITEMS), jnp.asarray(text))


def test_a_source_gives_every_item_a_vector(source):
    vectors = source(make_nodes(), None)
    assert vectors.shape == (ITEMS, WIDTH) and vectors.dtype == jnp.float32
    assert jnp.isfinite(vectors).all()
    np.testing.assert_array_equal(vectors, source(make_nodes(), None))


def test_an_unused_row_moves_no_item(source):
    nodes = make_nodes()
    changed = replace(nodes, items=nodes.items.at[-1].set(0), text=nodes.text.at[-1].set(9))
    moved = (source(changed, None) != source(nodes, None)).any(1)
    np.testing.assert_array_equal(moved, [False] * (ITEMS - 1) + [True])


# --- TextEncoder


@pytest.fixture(scope="module", params=["tiny_bert"])
def text_encoder(request):
    return load_bert(GOLDEN / request.param)


def make_tokens() -> tuple[jax.Array, jax.Array]:
    record = np.load(GOLDEN / "tiny_bert" / "outputs.npz")
    return jnp.asarray(record["ids"]), jnp.asarray(record["mask"])


def test_more_padding_leaves_the_vectors_of_tokens(text_encoder):
    ids, mask = make_tokens()
    padded_ids = jnp.pad(ids, ((0, 0), (0, 9)), constant_values=7)
    padded = text_encoder(padded_ids, jnp.pad(mask, ((0, 0), (0, 9))))[:, : ids.shape[1]]
    np.testing.assert_allclose(padded[mask], text_encoder(ids, mask)[mask], atol=1e-5)


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_layers_compose(text_encoder, cut):
    ids, mask = make_tokens()
    lower = text_encoder.layers(text_encoder.embed(ids), mask, stop=cut)
    np.testing.assert_array_equal(
        text_encoder.layers(lower, mask, start=cut), text_encoder(ids, mask)
    )
