"""Every implementation of a protocol passes the same checks."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.encoders import (
    CONFIG,
    GRAPH_ENCODERS,
    ITEMS,
    SEQUENCE_ENCODERS,
    SIZES,
    make_graph_encoder,
    make_sequence_encoder,
    random_events,
)
from helpers.graph import EDGES, NODES, WIDTH, features, make_graph, randomised
from helpers.paths import GOLDEN

from jaxrec.models.inputs import Nodes
from jaxrec.models.items.build import build_item_encoder
from jaxrec.models.recommender import cast_products
from jaxrec.models.text.build import load_text_encoder
from jaxrec.models.text.encoder import TextEncoder

# --- SequenceEncoder


@pytest.fixture(scope="module", params=SEQUENCE_ENCODERS)
def sequence(request):
    return make_sequence_encoder(request.param)


def test_every_leaf_of_a_state_has_the_batch_as_first_axis(sequence):
    state = sequence.initial_state(3)
    _, after = sequence.scan(state, random_events(3, 2))
    shapes = [leaf.shape for leaf in jax.tree.leaves(state)]
    assert {shape[0] for shape in shapes} == {3}
    assert [leaf.shape for leaf in jax.tree.leaves(after)] == shapes


def test_a_scan_drops_out_only_with_a_key(sequence):
    events, state = random_events(1, 5), sequence.initial_state(1)
    plain, again = (sequence.scan(state, events)[0] for _ in range(2))
    noisy = sequence.scan(state, events, key=jax.random.key(0))[0]
    np.testing.assert_array_equal(plain, again)
    assert jnp.abs(plain - noisy).max() > 1e-3


def test_gradients_through_packed_rows_are_finite(sequence):
    """Of all parameters, the events and the state; several sequences in a row, steps of padding."""
    graphdef, params = nnx.split(sequence)
    events, state = random_events(2, 9), sequence.initial_state(2)
    starts = jnp.zeros((2, 9), bool).at[:, [0, 3]].set(True)
    valid = jnp.arange(9)[None] < jnp.array([[9], [5]])

    def loss(params, events):
        encoder = nnx.merge(graphdef, params)
        outputs, after = encoder.scan(state, events, starts, valid)
        return (jnp.where(valid[..., None], outputs, 0) ** 2).sum() + (
            encoder.last_output(after) ** 2
        ).sum()

    gradients = jax.jit(jax.grad(loss, (0, 1)))(params, events)
    for leaf in jax.tree.leaves(gradients):
        assert jnp.isfinite(leaf).all()
    assert (jnp.abs(gradients[1]).max(-1) > 0)[valid].all()
    assert not jnp.any(gradients[1][~valid])


def test_bfloat16_goes_in_and_comes_out(sequence):
    graphdef, params = nnx.split(sequence)
    half = nnx.merge(graphdef, jax.tree.map(lambda p: p.astype(jnp.bfloat16), params))
    before = half.initial_state(2)
    outputs, after = jax.jit(half.scan)(before, random_events(2, 5).astype(jnp.bfloat16))
    assert outputs.dtype == jnp.bfloat16 and jnp.isfinite(outputs).all()
    assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, before)


# --- GraphLayer


@pytest.fixture(scope="module", params=GRAPH_ENCODERS)
def graph_encoder(request):
    return make_graph_encoder(request.param)


def test_padding_edges_change_no_real_node(graph_encoder):
    nodes = jnp.asarray(features())
    expected = graph_encoder(nodes, make_graph(EDGES))[:-1]
    padded = graph_encoder(nodes, make_graph(EDGES, 5))[:-1]
    np.testing.assert_allclose(padded, expected, rtol=1e-5)


def test_a_node_without_edges_depends_on_itself_alone(graph_encoder):
    """Node 5 has no edges."""
    nodes, graph = jnp.asarray(features()), make_graph(EDGES)
    vectors = graph_encoder(nodes, graph)
    alone = graph_encoder(nodes.at[:5, 0].add(1.0), graph)
    assert jnp.isfinite(vectors).all() and jnp.linalg.norm(vectors[5]) > 0.01
    np.testing.assert_allclose(alone[5], vectors[5], rtol=1e-5)


def test_gradients_equal_finite_differences(graph_encoder):
    definition, params = nnx.split(graph_encoder)
    nodes, graph = jnp.asarray(features()), make_graph(EDGES)
    weights, direction = jax.random.normal(jax.random.key(3), (2, *nodes.shape))
    towards = jax.tree.map(jnp.sin, params)  # any direction

    def loss(step):
        moved = jax.tree.map(lambda p, d: p + step * d, params, towards)
        return (nnx.merge(definition, moved)(nodes + step * direction, graph) * weights).sum()

    step = 1e-3
    difference = (loss(step) - loss(-step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(loss)(0.0), difference, rtol=0.02)


def test_bfloat16_is_near_float32(graph_encoder):
    definition, params = nnx.split(graph_encoder)
    nodes, graph = jnp.asarray(features()), make_graph(EDGES)
    full = graph_encoder(nodes, graph)
    half = nnx.merge(definition, cast_products(params, jnp.bfloat16))(nodes, graph)
    assert half.dtype == jnp.float32
    assert 0 < jnp.abs(half - full).max() < 0.05 * jnp.abs(full).max()


# --- ItemSource


@pytest.fixture(scope="module", params=["id", "text", "image", "numbers"])
def source(request):
    sizes = replace(SIZES, vectors=(("image", 4),), numbers=("price", "rating"))
    (only,) = build_item_encoder(request.param, CONFIG, sizes, nnx.Rngs(0)).sources
    return randomised(only)


def make_nodes() -> Nodes:
    text = np.random.default_rng(0).normal(size=(ITEMS, 3)).astype(np.float32)
    features = {
        "image": jnp.pad(jnp.asarray(text), ((0, 0), (0, 1))),
        "price": jnp.arange(ITEMS),
        "rating": jnp.zeros(ITEMS, jnp.int32),
    }
    return Nodes(jnp.arange(ITEMS), jnp.arange(NODES - ITEMS), jnp.asarray(text), features)


def test_a_source_gives_every_item_a_vector(source):
    vectors = source(make_nodes(), None)
    assert vectors.shape == (ITEMS, WIDTH) and vectors.dtype == jnp.float32
    assert jnp.isfinite(vectors).all()
    np.testing.assert_array_equal(vectors, source(make_nodes(), None))


def test_an_unused_row_moves_no_item(source):
    nodes = make_nodes()
    features = {name: values.at[-1].set(9) for name, values in nodes.features.items()}
    changed = replace(
        nodes,
        items=nodes.items.at[-1].set(0),
        text=nodes.text.at[-1].set(9),
        features=features,
    )
    moved = (source(changed, None) != source(nodes, None)).any(1)
    np.testing.assert_array_equal(moved, [False] * (ITEMS - 1) + [True])


def test_a_step_hides_what_it_says_and_inference_nothing(source):
    """With a share of 1, all items look like the unknown one."""
    source = nnx.clone(source)
    share = {"id_dropout", "dropout"} & vars(source).keys()
    if not share:
        return  # texts are never hidden
    setattr(source, share.pop(), 1.0)
    hidden = source(make_nodes(), jax.random.key(0))
    np.testing.assert_array_equal(hidden, jnp.tile(hidden[:1], (ITEMS, 1)))


# --- TextEncoder


@pytest.fixture(scope="module", params=["tiny_bert", "tiny_gpt"])
def text_encoder(request):
    return load_text_encoder(GOLDEN / request.param)


def make_tokens() -> tuple[jax.Array, jax.Array]:
    record = np.load(GOLDEN / "tiny_bert" / "outputs.npz")
    return jnp.asarray(record["ids"]), jnp.asarray(record["mask"])


def test_a_text_encoder_fits_its_protocol(text_encoder):
    assert isinstance(text_encoder, TextEncoder)


def test_more_padding_leaves_the_vectors_of_tokens(text_encoder):
    @jax.jit
    def encode(ids, mask):
        hidden = text_encoder(ids, mask)
        return hidden, text_encoder.pool(hidden, mask)

    ids, mask = make_tokens()
    hidden, pooled = encode(ids, mask)
    padded_ids = jnp.pad(ids, ((0, 0), (0, 9)), constant_values=7)
    padded = encode(padded_ids, jnp.pad(mask, ((0, 0), (0, 9))))
    np.testing.assert_allclose(padded[0][:, : ids.shape[1]][mask], hidden[mask], atol=1e-5)
    np.testing.assert_allclose(padded[1], pooled, atol=1e-5)


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_layers_compose(text_encoder, cut):
    ids, mask = make_tokens()
    lower = text_encoder.layers(text_encoder.embed(ids), mask, stop=cut)
    np.testing.assert_array_equal(
        text_encoder.layers(lower, mask, start=cut), text_encoder(ids, mask)
    )
