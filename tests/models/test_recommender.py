from dataclasses import replace
from itertools import combinations

import jax
import jax.numpy as jnp
import jraph
import numpy as np
import pytest
from flax import nnx

from jaxrec.config import ModelConfig
from jaxrec.models.inputs import Events, Nodes, Sizes
from jaxrec.models.items.build import expert_sources
from jaxrec.models.recommender import GAP_BUCKETS, Recommender, cast_products, gap_buckets
from jaxrec.models.sequence.lstm import BareLSTM
from jaxrec.types import ANY_EVENT_TYPE, NO_GAP

# items 0-5, of which 0 is unknown; entities 6-9, of which 9 is for padding edges
SIZES = Sizes(num_items=6, num_nodes=10, num_relations=1, num_event_types=3, text_width=5)
CONFIG = ModelConfig(
    experts=("id+graph", "text+graph"), hidden_size=8, num_layers=1, dropout=0.0, temperature=0.25
)
EVENTS = Events(
    items=jnp.array([[1, 2, 3], [4, 4, 5]]),
    event_types=jnp.array([[0, 1, 2], [0, 0, 1]]),
    gaps=jnp.array([[-1, 60, 86400], [-1, 0, 7]]),
)


def make_graph() -> jraph.GraphsTuple:
    """Items 1, 2, 3 have brand 7 and items 4, 5 brand 8, in both directions."""
    items, brands = np.array([1, 2, 3, 4, 5]), np.array([7, 7, 7, 8, 8])
    return jraph.GraphsTuple(
        nodes=None,
        edges=jnp.array([1] * 5 + [0] * 5 + [2]),
        senders=jnp.asarray([*brands, *items, 9]),
        receivers=jnp.asarray([*items, *brands, 9]),
        globals=None,
        n_node=jnp.array([9, 1]),
        n_edge=jnp.array([10, 1]),
    )


def make_nodes() -> Nodes:
    text = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    text = jnp.asarray(text).at[0].set(0)
    return Nodes(jnp.arange(6), jnp.arange(4), text)


def make_model(config: ModelConfig = CONFIG) -> Recommender:
    """A recommender with random values in the tables whose initial value is zero."""
    model = Recommender(config, SIZES, nnx.Rngs(0))
    for number, expert in enumerate(model.experts):
        keys = jax.random.split(jax.random.key(number), 4)
        tables = [expert.event_type_table, expert.target_type_table]
        if config.time_gaps:
            tables.append(expert.gap_table)
        if config.time_since_last:
            tables.append(expert.time_since_last_table)
        for key, table in zip(keys, tables, strict=False):
            table[...] = jax.random.normal(key, table[...].shape)
    return model


def user_vectors(model: Recommender, items: jax.Array, events: Events = EVENTS) -> jax.Array:
    outputs, _ = model.update(model.initial_state(len(events.items)), items, events)
    return model.user_vectors(outputs, jnp.full(events.items.shape, ANY_EVENT_TYPE))


def test_an_unknown_source_is_named_with_the_known_ones():
    assert expert_sources("text+id") == ("text", "id")
    with pytest.raises(ValueError, match=r"'id\+picture' names \['picture'\].*id, text, graph"):
        Recommender(replace(CONFIG, experts=("id", "id+picture")), SIZES, nnx.Rngs(0))


@pytest.mark.thorough
def test_one_dot_product_is_the_sum_of_the_experts_scores():
    model, nodes, graph = make_model(), make_nodes(), make_graph()
    items = model.encode_items(nodes, graph)[: SIZES.num_items]
    scores = user_vectors(model, items) @ items.T
    expected = jnp.zeros_like(scores)
    for expert in model.experts:
        vectors = expert.encode_nodes(nodes, graph)[: SIZES.num_items]
        outputs, _ = expert.sequence.scan(
            expert.sequence.initial_state(2), expert.event_vectors(vectors, EVENTS)
        )
        users = expert.user_vectors(outputs, jnp.full(EVENTS.items.shape, ANY_EVENT_TYPE))
        expected += users @ vectors.T
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_every_node_has_a_unit_vector_in_every_expert():
    """Without ids, an item without any feature has the zero vector."""
    model = make_model()
    vectors = model.encode_items(make_nodes(), make_graph())
    assert vectors.shape == (SIZES.num_nodes, 2 * CONFIG.hidden_size)
    lengths = jnp.linalg.norm(vectors.reshape(SIZES.num_nodes, 2, CONFIG.hidden_size), axis=-1)
    expected = np.ones((SIZES.num_nodes, 2))
    expected[0, 1] = 0
    np.testing.assert_allclose(lengths, expected, atol=1e-5)


def test_a_user_vector_has_the_length_of_the_inverse_temperature_without_a_readout():
    model = make_model()
    items = model.encode_items(make_nodes(), make_graph())[: SIZES.num_items]
    users = user_vectors(model, items)
    lengths = jnp.linalg.norm(users.reshape(2, 3, 2, CONFIG.hidden_size), axis=-1)
    np.testing.assert_allclose(lengths, np.full((2, 3, 2), 4), rtol=1e-4)


def test_the_readout_adds_similarities_to_past_items():
    """One decay that keeps only the last event, weight 2, and event vectors without gaps."""
    plain = Recommender(replace(CONFIG, memory_decays=1, time_gaps=False), SIZES, nnx.Rngs(0))
    with_memory = nnx.clone(plain)
    for expert in with_memory.experts:
        expert.sequence.memory.decay_logits[...] = jnp.full(1, -100.0)
        expert.sequence.memory.weights[...] = jnp.full((1, CONFIG.hidden_size), 2.0)
    items = plain.encode_items(make_nodes(), make_graph())[: SIZES.num_items]
    before, after = (user_vectors(model, items) @ items.T for model in (plain, with_memory))
    similarity = items @ items.T  # of both experts together
    added = (after - before) * CONFIG.temperature / 2
    np.testing.assert_allclose(added, similarity[EVENTS.items], atol=1e-5)


def test_the_weight_of_the_memory_depends_on_the_target_event_type():
    expert = make_model().experts[0]
    width = CONFIG.hidden_size
    interest, readout = jax.random.normal(jax.random.key(0), (2, width))
    output = jnp.concatenate([interest, readout])
    without_readout = jnp.concatenate([interest, jnp.zeros(width)])

    def added(event_type):
        target = jnp.asarray(event_type)
        return expert.user_vectors(output, target) - expert.user_vectors(without_readout, target)

    before = added(0)
    np.testing.assert_allclose(added(1), before, atol=1e-5)
    hidden = [
        expert.user_norm(interest) + expert.target_type_table[...][event_type + 1]
        for event_type in (0, 1)
    ]
    expert.memory_gate.kernel[...] = jax.random.normal(jax.random.key(1), (width, 1)) / width
    for event_type in (0, 1):
        weight = jnp.exp(hidden[event_type] @ expert.memory_gate.kernel[...])
        np.testing.assert_allclose(added(event_type), weight * before, rtol=1e-3, atol=1e-5)
    assert jnp.abs(added(1) - added(0)).max() > 1e-3


def test_id_dropout_hides_ids_only_with_a_key():
    config = replace(CONFIG, experts=("id",), id_dropout=0.5)
    expert = make_model(config).experts[0]
    nodes, graph, items = make_nodes(), make_graph(), slice(0, SIZES.num_items)
    plain = np.asarray(expert.encode_nodes(nodes, graph))
    hidden = np.zeros(SIZES.num_items)
    for seed in range(20):
        noisy = np.asarray(expert.encode_nodes(nodes, graph, jax.random.key(seed)))
        changed = (noisy[items] != plain[items]).any(1)
        np.testing.assert_array_equal(noisy[items][changed], np.tile(plain[0], (changed.sum(), 1)))
        np.testing.assert_array_equal(noisy[SIZES.num_items :], plain[SIZES.num_items :])
        hidden += changed
    assert hidden[0] == 0  # the unknown item has no id to hide
    assert ((hidden[1:] > 0) & (hidden[1:] < 20)).all()


def test_without_id_dropout_a_key_hides_nothing():
    expert = make_model(replace(CONFIG, experts=("id",), id_dropout=0.0)).experts[0]
    plain = expert.encode_nodes(make_nodes(), make_graph())
    noisy = expert.encode_nodes(make_nodes(), make_graph(), jax.random.key(0))
    np.testing.assert_array_equal(noisy, plain)


def test_gap_buckets():
    gaps = jnp.array([-1, 0, 1, 2, 3, 4, 7, 8, 86_400, 2**31 - 1], jnp.int32)
    expected = [0, 1, 2, 3, 3, 4, 4, 5, 18, 32]
    np.testing.assert_array_equal(gap_buckets(gaps), expected)
    assert max(expected) < GAP_BUCKETS


@pytest.mark.parametrize("source", ["text", "graph"])
def test_a_new_item_is_known_by_its_text_and_graph(source):
    """Items 3 and 5 were never trained; they differ in text and in brand."""
    nodes, graph = make_nodes(), make_graph()
    new = replace(nodes, items=nodes.items.at[jnp.array([3, 5])].set(0))
    by_id = make_model(replace(CONFIG, experts=("id",))).encode_items(new, graph)
    np.testing.assert_array_equal(by_id[3], by_id[0])
    np.testing.assert_array_equal(by_id[5], by_id[0])
    vectors = make_model(replace(CONFIG, experts=(f"id+{source}",))).encode_items(new, graph)
    assert jnp.abs(vectors[3] - vectors[5]).max() > 0.01
    assert jnp.abs(vectors[3] - vectors[0]).max() > 0.01


def test_an_expert_without_ids_treats_new_and_old_items_alike():
    model, nodes, graph = make_model(replace(CONFIG, experts=("text",))), make_nodes(), make_graph()
    new = replace(nodes, items=nodes.items.at[3].set(0))
    np.testing.assert_array_equal(model.encode_items(new, graph), model.encode_items(nodes, graph))


@pytest.mark.parametrize("field", ["items", "event_types", "gaps"])
def test_item_event_type_and_gap_all_count(field):
    model = make_model()
    items = model.encode_items(make_nodes(), make_graph())[: SIZES.num_items]
    changed = np.array(getattr(EVENTS, field))
    changed[0, 1] = {"items": 5, "event_types": 2, "gaps": 6000}[field]
    other = replace(EVENTS, **{field: changed})
    moved = jnp.abs(user_vectors(model, items, other) - user_vectors(model, items)).max(-1) > 1e-4
    np.testing.assert_array_equal(moved, [[False, True, True], [False, False, False]])


def test_gaps_count_only_where_time_is_known():
    model = make_model(replace(CONFIG, time_gaps=False))
    items = model.encode_items(make_nodes(), make_graph())[: SIZES.num_items]
    other = replace(EVENTS, gaps=EVENTS.gaps + 1000)
    np.testing.assert_array_equal(user_vectors(model, items, other), user_vectors(model, items))


def test_the_target_event_type_moves_the_user_vector():
    model = make_model()
    output = jax.random.normal(jax.random.key(0), (1, 4 * CONFIG.hidden_size))
    vectors = [
        model.user_vectors(output, jnp.array([event_type]))
        for event_type in (ANY_EVENT_TYPE, 0, 1, 2)
    ]
    assert_all_differ(vectors)


def test_the_time_since_the_last_event_moves_the_user_vector_of_models_that_use_it():
    output = jax.random.normal(jax.random.key(0), (1, 4 * CONFIG.hidden_size))
    any_type = jnp.array([ANY_EVENT_TYPE])
    model = make_model(replace(CONFIG, time_since_last=True))
    vectors = [
        model.user_vectors(output, any_type, jnp.array([seconds]))
        for seconds in (NO_GAP, 60, 10**6)
    ]
    assert_all_differ(vectors)
    plain = make_model()
    assert not hasattr(plain.experts[0], "time_since_last_table")
    np.testing.assert_array_equal(
        plain.user_vectors(output, any_type, jnp.array([60])), plain.user_vectors(output, any_type)
    )


def assert_all_differ(vectors: list[jax.Array]) -> None:
    for vector, other in combinations(vectors, 2):
        assert jnp.abs(vector - other).max() > 0.01


def test_a_bare_lstm_is_a_model_too():
    model = make_model(replace(CONFIG, sequence="bare_lstm"))
    items = model.encode_items(make_nodes(), make_graph())[: SIZES.num_items]
    assert {type(layer) for e in model.experts for layer in e.sequence.layers} == {BareLSTM}
    assert user_vectors(model, items).shape == (2, 3, 2 * CONFIG.hidden_size)


@pytest.mark.thorough
def test_in_bfloat16_the_gradient_of_a_table_is_the_sum_over_its_look_ups():
    graphdef, params = nnx.split(make_model(replace(CONFIG, experts=("id+graph",))))
    graph = make_graph()
    shape = (8, 512)
    events = Events(jnp.ones(shape, int), jnp.ones(shape, int), jnp.full(shape, 60))

    def total(params, items, dtype):
        expert = nnx.merge(graphdef, cast_products(params, dtype)).experts[0]
        vectors = expert.event_vectors(items, events)
        assert vectors.dtype == dtype
        nodes = expert.encode_nodes(make_nodes(), graph)
        assert nodes.dtype == jnp.float32
        return vectors.astype(jnp.float32).sum() + nodes[:, 0].sum()

    gradient = jax.grad(total, (0, 1))
    items = jnp.ones((6, 8))
    exact = gradient(params, items, jnp.dtype("float32"))
    half = gradient(params, items, jnp.dtype("bfloat16"))
    for value, expected in zip(jax.tree.leaves(half), jax.tree.leaves(exact), strict=True):
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, expected, atol=0.05 * np.abs(expected).max() + 1e-6)
