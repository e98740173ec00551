"""Lazy Adam: rows that a step reads move as in Adam, and the others stay."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.objective import CONFIG, SIZES, make_arrays, make_batch
from helpers.training import config

from jaxrec.config import TrainConfig
from jaxrec.data.dataset import prepare
from jaxrec.errors import ConfigError
from jaxrec.models.recommender import Recommender, split
from jaxrec.training.context import make_context
from jaxrec.training.item_sampling import LEVELS, ItemSampler
from jaxrec.training.optimizer import make_optimizer
from jaxrec.training.sparse_rows import rows_of, with_rows
from jaxrec.training.step import TrainState, build_step

MODEL = replace(CONFIG.model, experts=("id",))


def make_sampler(num_items: int, size: int, *, takes_all: bool) -> ItemSampler:
    """Every draw is item 6."""
    return ItemSampler(
        windows=jnp.ones(num_items),
        levels=jnp.asarray(np.where(np.arange(num_items) < 6, 0, LEVELS - 1), jnp.uint32),
        num_windows=7,
        negatives=2,
        size=size,
        takes_all=takes_all,
        encodes_all=False,
    )


def make_step(sampler, num_items=8, *, sparse):
    """A step, its state and its arrays for a model of ids."""
    recipe = replace(
        CONFIG,
        model=MODEL,
        train=TrainConfig(
            loss="sampled_softmax", sparse_rows=sparse, weight_decay=0.1, warmup_steps=0
        ),
    )
    sizes = replace(SIZES, num_items=num_items, num_nodes=num_items + 4)
    definition, params = split(Recommender(MODEL, sizes, nnx.Rngs(0)))
    optimizer, arrays = make_optimizer(recipe.train, 10), make_arrays()
    nodes = replace(
        arrays.catalog.nodes,
        items=jnp.arange(num_items),
        text=jnp.zeros((num_items, 3)),
    )
    arrays = replace(
        arrays,
        catalog=replace(arrays.catalog, nodes=nodes),
        candidates=jnp.arange(num_items) % (num_items - 1) > 0,
        tasks=arrays.tasks[:1],
        item_sampler=sampler,
    )
    state = TrainState(jnp.zeros((), int), params, optimizer.init(params), nodes.text)
    return build_step(recipe, definition, optimizer), state, arrays


def id_tables(state):
    """The id table and its two moments."""
    leaves, _ = jax.tree_util.tree_flatten_with_path((state.params, state.opt_state))
    return [np.asarray(leaf) for path, leaf in leaves if "item_table" in jax.tree_util.keystr(path)]


@pytest.mark.thorough
def test_if_every_step_reads_all_rows_it_equals_adam():
    sampler = make_sampler(8, 8, takes_all=True)
    states = []
    for sparse in (False, True):
        step, state, arrays = make_step(sampler, sparse=sparse)
        step = jax.jit(step)
        for _ in range(3):
            state, _ = step(state, arrays, make_batch())
        states.append(state)
    for dense, lazy in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(lazy, dense, rtol=1e-5, atol=1e-7)


def test_rows_that_a_step_does_not_read_stay_and_the_others_move_as_in_adam():
    """Items 1 to 3 are in the batch, 6 is drawn, 0 is the unknown item, and 7 fills up."""
    batch = jax.tree.map(lambda values: values[:1, :3], make_batch())
    batch = replace(batch, targets=np.array([[2, 3, 1]]))
    after = []
    for sparse in (False, True):
        step, state, arrays = make_step(make_sampler(8, 7, takes_all=False), sparse=sparse)
        before, step = id_tables(state), jax.jit(step)
        for _ in range(3):
            state, _ = step(state, arrays, batch)
        after.append(id_tables(state))
    dense, lazy = after
    assert len(before) == len(lazy) == 3
    for first, adam, own in zip(before, dense, lazy, strict=True):
        np.testing.assert_array_equal(own[[4, 5]], first[[4, 5]])
        read = [0, 1, 2, 3, 6]
        np.testing.assert_allclose(own[read], adam[read], rtol=1e-4, atol=1e-7)
        assert (own[[1, 2, 3, 6]] != first[[1, 2, 3, 6]]).any(1).all()
    assert (dense[0][[4, 5]] != before[0][[4, 5]]).any()  # the weight decay moves all rows


def test_a_step_copies_no_table():
    """Its temporary memory is far below that of one table, as the state is donated."""
    num_items = 2**16
    step, state, arrays = make_step(
        make_sampler(num_items, 16, takes_all=False), num_items, sparse=True
    )
    program = jax.jit(step, donate_argnums=0).lower(state, arrays, make_batch()).compile()
    table = id_tables(state)[0].nbytes
    assert table > 2**20
    assert program.memory_analysis().temp_size_in_bytes < table / 4


def test_only_tables_of_ids_are_cut():
    tree = {"item_table": jnp.arange(8.0).reshape(4, 2), "kernel": jnp.ones((4, 2))}
    rows = jnp.array([1, 3])
    part = rows_of(tree, rows)
    assert part["item_table"].shape == (2, 2) and part["kernel"].shape == (4, 2)
    new = with_rows(tree, rows, jax.tree.map(lambda x: x + 10, part))
    np.testing.assert_array_equal(new["item_table"], [[0, 1], [12, 13], [4, 5], [16, 17]])
    np.testing.assert_array_equal(new["kernel"], np.full((4, 2), 11))


def test_what_reads_all_rows_is_refused():
    with pytest.raises(ConfigError, match=r"sparse_rows: full_softmax"):
        TrainConfig(sparse_rows=True)
    options = {"train.loss": "sampled_softmax", "train.sparse_rows": True}
    with pytest.raises(ConfigError, match=r"sparse_rows: .* graph"):
        config(**options)
    assert config(**options, **{"train.fan_out": 4}).train.sparse_rows


def test_experts_with_a_graph_encode_all_items_or_neighbourhoods(tables):
    recipe = config(**{"train.loss": "sampled_softmax", "train.negatives": 4})
    dataset = prepare(recipe, tables)
    context = make_context(recipe, dataset)
    assert context.arrays.item_sampler.encodes_all and context.arrays.neighbourhoods is None
    assert any("encodes all items" in note for note in context.notes)
    context = make_context(replace(recipe, train=replace(recipe.train, fan_out=4)), dataset)
    assert not context.arrays.item_sampler.encodes_all
    assert context.arrays.neighbourhoods is not None and not context.notes
