"""The items of a step: what is drawn, and that encoding them alone changes nothing."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.objective import CONFIG, KEY, SIZES, make_arrays, make_batch, make_finetuned_text
from helpers.paths import GOLDEN
from helpers.shop import make_tables
from helpers.training import config

from jaxrec.config import TrainConfig
from jaxrec.data.dataset import prepare
from jaxrec.models.graph.build import reach
from jaxrec.models.graph.link_sampling import LinkSampler
from jaxrec.models.graph.neighbourhoods import Counts, neighbourhood_sampler
from jaxrec.models.graph.sampling import edge_sampler
from jaxrec.models.recommender import Recommender
from jaxrec.training.batches import make_packing
from jaxrec.training.context import make_context
from jaxrec.training.item_sampling import (
    LEVELS,
    ItemSampler,
    item_sampler,
    largest_batch,
    windows_of_items,
)
from jaxrec.training.losses.full_softmax import FullSoftmax
from jaxrec.training.objective import StepInputs, draw_items, finetuned_rows, objective
from jaxrec.training.samplers import predicted_entities
from jaxrec.training.state import initial_state
from jaxrec.training.tasks.link_prediction import LinkPrediction
from jaxrec.training.tasks.masked_item import MaskedItem

FEW = jnp.uint32(np.array([0, 0, 0, 0, 2**31, 2**31, LEVELS - 1, LEVELS - 1]))  # draws 4 or 6


draw = jax.jit(draw_items)


def make_sampler(**options) -> ItemSampler:
    """Of the items of `make_arrays`: with two windows of three in a batch."""
    fields = {
        "windows": jnp.array([0.0, 2, 2, 1, 2, 2, 1, 0]),
        "levels": FEW,
        "num_windows": 7,
        "negatives": 2,
        "size": 7,
        "takes_all": False,
        "encodes_all": False,
    }
    return ItemSampler(**fields | options)


def losses(model, arrays, batch, sampler):
    """The objective, its parts and its gradients; without a sampler, of the full softmax."""
    graphdef, params = nnx.split(model)
    arrays = replace(arrays, item_sampler=sampler)

    @jax.jit
    def compute(params):
        def loss(params):
            model, items = nnx.merge(graphdef, params), draw_items(arrays, batch, KEY)
            text = arrays.catalog.nodes.text
            return objective(model, StepInputs(arrays, text, batch, KEY, items, 4))

        return jax.value_and_grad(loss, has_aux=True)(params)

    return compute(params)


def assert_equal(actual, expected):
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("repeats", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_with_all_items_the_sampled_softmax_is_the_full_softmax(repeats):
    """Losses of all tasks and gradients: with repeat biases; with a mask, for two experts."""
    experts = ("id+graph+text",) if repeats else ("id+graph", "text")
    options = replace(CONFIG.model, experts=experts)
    model = Recommender(options, SIZES, nnx.Rngs(0), masked_items=not repeats)
    arrays = replace(
        make_arrays(), masked_event_types=jnp.array([not repeats, True]), repeats=repeats
    )
    if not repeats:
        masked = MaskedItem(FullSoftmax(8), 0.5)
        arrays = replace(arrays, tasks=(*arrays.tasks, masked))
    expected = losses(model, arrays, make_batch(), None)
    every = make_sampler(size=8, takes_all=True, encodes_all=True)
    assert_equal(losses(model, arrays, make_batch(), every), expected)


@pytest.fixture(scope="module")
def short_batch():
    """Two windows that read and predict the items 1, 2 and 3 alone."""
    items = np.array([[1, 2, 0], [3, 2, 0]])
    used = (items > 0).astype(np.float32)
    batch = jax.tree.map(lambda values: values[:, :3], make_batch())
    return replace(
        batch,
        items=items,
        targets=np.array([[2, 3, 0], [2, 1, 0]]),
        weights=used,
        first_weights=used,
    )


@pytest.mark.thorough
def test_encoding_the_sample_alone_equals_encoding_all(short_batch):
    """For all tasks; the ends of links are encoded, but not scored as the next item."""
    options = replace(CONFIG.model, experts=("id+text",), id_dropout=0.0, dropout=0.0)
    model = Recommender(options, SIZES, nnx.Rngs(0), links=True)
    arrays = make_arrays()
    links = LinkSampler(
        heads=jnp.array([5]),
        relations=jnp.array([0]),
        tails=jnp.array([10]),
        pairs=jnp.array([0]),
        held_out=jnp.zeros(1, bool),
        message_pairs=jnp.ones(len(arrays.catalog.graph.edges), int),
        offsets=jnp.array([0, 8]),
        first_candidates=jnp.array([1, 6, 9, 10]),
        spans=jnp.ones(4, int),
        num_relations=1,
        num_links=1,
    )
    arrays = replace(arrays, tasks=(*arrays.tasks, LinkPrediction(0.5)), link_sampler=links)
    part = losses(model, arrays, short_batch, make_sampler())
    assert_equal(part, losses(model, arrays, short_batch, make_sampler(encodes_all=True)))
    items = draw(replace(arrays, item_sampler=make_sampler()), short_batch, KEY)
    scored, encoded = ({*np.asarray(rows)} for rows in (items.sample.rows, items.encoded))
    assert scored < encoded == scored | {5, 6}


@pytest.mark.slow
@pytest.mark.parametrize(
    "layer",
    [{}, {"num_graph_layers": 2, "graph_layer": "sage"}],
    ids=str,
)
def test_encoding_neighbourhoods_of_all_edges_equals_encoding_all(short_batch, layer):
    """Brands are predicted, so their items are encoded too."""
    options = replace(CONFIG.model, id_dropout=0.0, dropout=0.0, **layer)
    model, arrays = Recommender(options, SIZES, nnx.Rngs(0)), make_arrays()
    edges = edge_sampler(arrays.catalog.graph, 3, 0)
    entities = predicted_entities(arrays.tasks)
    around = neighbourhood_sampler(
        arrays.catalog.graph,
        edges,
        entities=entities,
        num_items=8,
        num_nodes=12,
        hops=reach(options),
        start=Counts(7, len(entities)),
    )
    known = replace(arrays, edge_sampler=edges, neighbourhoods=around)
    part = losses(model, known, short_batch, make_sampler())
    assert_equal(part, losses(model, known, short_batch, make_sampler(encodes_all=True)))
    items = draw(replace(known, item_sampler=make_sampler()), short_batch, KEY)
    assert {*np.asarray(items.encoded)} >= {1, 2, 3, 4, 5}  # all items of two brands


def test_no_array_is_passed_to_a_step_twice(tables):
    """An array in two places, such as the texts, would take the memory of a device twice."""
    options = {"train.loss": "sampled_softmax", "train.negatives": 4, "train.fan_out": 2}
    text = {"model.experts": ["id+graph", "text"], "text.pretrained": str(GOLDEN / "tiny_bert")}
    recipe = config(**options, **text, **{"train.batch_size": 2})
    context = make_context(recipe, prepare(recipe, tables))
    assert context.arrays.neighbourhoods is not None
    everything = (initial_state(context).text, context.arrays)
    kept = [np.asarray(leaf) for leaf in jax.tree.leaves(everything) if leaf.size > 256]
    contents = [leaf.tobytes() for leaf in kept if np.ptp(leaf)]
    assert len(contents) == len(set(contents))


def test_edges_lie_along_items(tables):
    recipe = config(**{"train.fan_out": 2, "train.item_shards": 4})
    arrays = make_context(recipe, prepare(recipe, tables)).arrays
    graph = arrays.catalog.graph
    for edges in (graph.senders, graph.receivers, graph.edges, arrays.edge_sampler.edges):
        assert {len(part.data) for part in edges.addressable_shards} == {len(edges) // 4}


@pytest.mark.parametrize("links", [0.0, 0.5])
def test_edges_that_no_expert_reads_are_on_no_device(tables, links):
    options = {"train.fan_out": 2, "train.link_weight": links}
    recipe = config(**{"model.experts": ["id"]}, **options)
    dataset = prepare(recipe, tables)
    context = make_context(recipe, dataset)
    assert "no expert reads the graph, so train.fan_out has no effect" in context.notes
    arrays = context.arrays
    assert arrays.edge_sampler is None
    padding = dataset.catalog.graph.num_nodes - 1
    assert (arrays.catalog.graph.senders == padding).all()


def test_a_sample_holds_the_batch_and_what_is_drawn(short_batch):
    valid = make_arrays().candidates
    drawn = set()
    for number in range(20):
        sample = make_sampler().sample(short_batch, valid, jax.random.key(number))
        rows, kept = np.asarray(sample.rows), set(np.asarray(sample.rows[sample.valid]))
        assert {1, 2, 3} <= kept <= {1, 2, 3, 4, 6}
        assert list(rows) == sorted(rows) and rows[0] == 0 and not sample.valid[0]
        np.testing.assert_array_equal(rows[sample.places(short_batch.items)], short_batch.items)
        again = make_sampler().sample(short_batch, valid, jax.random.key(number))
        np.testing.assert_array_equal(again.rows, rows)
        drawn |= {frozenset(kept - {1, 2, 3})}
    assert drawn == {frozenset({4}), frozenset({6}), frozenset({4, 6})}


@pytest.mark.thorough
def test_texts_of_the_targets_of_a_sample_are_encoded_again(tower, short_batch):
    """Three targets come first; then other items of the sample, but no padding."""
    arrays = replace(make_arrays(), item_sampler=make_sampler())
    items = draw(arrays, short_batch, KEY)
    text = items.of(arrays.catalog.nodes).text
    finetuned = make_finetuned_text()
    known = replace(finetuned, hidden=finetuned.hidden[:7], mask=finetuned.mask[:7])
    for count in (4, 9):
        encoded = finetuned_rows(tower, known, text, short_batch, count, KEY, items)
        changed = np.asarray(items.encoded)[np.asarray(jnp.any(encoded != text, axis=1))]
        assert {1, 2, 3} <= {*changed} <= {0, 1, 2, 3, 4, 6, 7}
    whole = tower(known.hidden.astype(jnp.float32), known.mask) @ known.projection
    places = items.places(jnp.arange(1, 4))
    np.testing.assert_allclose(encoded[places], whole[1:4], atol=1e-5)


def test_a_batch_without_events_has_no_loss_and_finite_gradients(model):
    batch = jax.tree.map(np.zeros_like, make_batch())
    (loss, parts), gradients = losses(model, make_arrays(), batch, make_sampler())
    assert loss == 0 and not any(parts.values())
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.fixture(scope="module")
def packing():
    recipe = config(**{"train.batch_size": 3, "train.sequence_length": 6, "train.burn_in": 1})
    return make_packing(recipe, prepare(recipe, make_tables()))


def test_windows_are_counted_as_batches_hold_them(packing):
    """Over an epoch, every window is in one batch; and no batch has more events than expected."""
    expected, most = np.zeros(256), 0
    for step in range(packing.steps_per_epoch):
        batch = packing.batch(0, step)
        window = np.cumsum(batch.starts, 1)
        events = 0
        for row, number in {*zip(*np.nonzero(window), strict=True)}:
            if batch.starts[row, number]:
                own = (window[row] == window[row, number]) & (batch.items[row] > 0)
                items = {*batch.items[row][own], *batch.targets[row][own]}
                expected[list(items)] += 1
                events += own.sum() + 1
        most = max(most, events)
    np.testing.assert_array_equal(windows_of_items(packing, 256), expected)
    assert 0 < most <= largest_batch(packing) <= 3 * 12


def test_items_are_drawn_by_a_power_of_their_windows(packing):
    counts = windows_of_items(packing, 256)
    candidates = (np.arange(256) > 0) & (np.arange(256) < 20)
    for power in (0.0, 0.5, 1.0):
        options = TrainConfig(loss="sampled_softmax", negatives=9, negative_power=power)
        sampler = item_sampler(options, packing, counts, candidates)
        chances = np.where(candidates, np.maximum(counts, 1.0) ** power, 0)
        probability = np.asarray(sampler.draw_probability(jnp.arange(256)))
        np.testing.assert_allclose(probability, chances / chances.sum(), atol=1e-6)
        assert not sampler.takes_all
    options = replace(options, negatives=19)
    assert item_sampler(options, packing, counts, candidates).takes_all
