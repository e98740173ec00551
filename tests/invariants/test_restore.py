"""Restoring: a run goes on with other devices or processes, and serving reads parameters alone."""

import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import pods
from helpers.training import config, scalars

import jaxrec
from jaxrec.artifacts import run_directory
from jaxrec.artifacts.run_directory import Progress
from jaxrec.data.dataset import prepare
from jaxrec.sharding import make_mesh
from jaxrec.training.checkpoints import load
from jaxrec.training.context import make_context


@pytest.mark.thorough
def test_a_checkpoint_restores_on_any_mesh(tables, whole_run, tmp_path):
    """From 4 devices to 4 with the tables in parts, to 2, to 1 and back, unchanged each time."""
    context = make_context(config(**{"train.item_shards": 4}), prepare(config(), tables))
    run = tmp_path / "run"
    shutil.copytree(whole_run, run)
    with run_directory.open_checkpoints(run) as manager:
        first, progress = load(context, manager, manager.best_step())
        assert isinstance(progress, Progress)
        trained = jaxrec.load(whole_run).model.params
        jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(first.params), trained)
        state = first
        for devices, shards in ((4, 2), (2, 2), (1, 1), (4, 4)):
            rest = {"step": state.step, "opt_state": state.opt_state}
            step = manager.latest_step() + 1
            vectors = {"nodes": jnp.zeros(nodes_shape(context)), "text": state.text}
            run_directory.save(manager, step, state.params, rest, vectors, progress)
            mesh = make_mesh(shards, jax.devices()[:devices])
            state, _ = load(replace(context, mesh=mesh), manager, step)
            assert {leaf.sharding.mesh for leaf in jax.tree.leaves(state)} == {mesh}
        jax.tree.map(np.testing.assert_array_equal, state, first)


def nodes_shape(context):
    model = context.config.model
    return context.sizes.num_nodes, model.hidden_size * len(model.experts)


def test_a_run_serves_without_its_optimiser_state(whole_run, tables, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole_run, run)
    for directory in (run / "checkpoints").glob("*/rest"):
        shutil.rmtree(directory)
    lists, expected = (jaxrec.load(path).recommend(tables.events, k=3) for path in (run, whole_run))
    assert lists.equals(expected)


def test_scoring_divides_tables_and_vectors_along_items(whole_run, tables):
    model = jaxrec.load(whole_run, item_shards=4)
    params, _ = jax.tree_util.tree_flatten_with_path(model.model.params)
    ids = [leaf for path, leaf in params if "item_table" in jax.tree_util.keystr(path)]
    for rows in (model.index.vectors, model.index.items.vectors, model.index.text, ids[0]):
        assert {len(part.data) for part in rows.addressable_shards} == {len(rows) // 4}
    lists, expected = (m.recommend(tables.events, k=3) for m in (model, jaxrec.load(whole_run)))
    np.testing.assert_allclose(lists["score"], expected["score"], rtol=1e-4)


OPTIONS = {"train.batch_size": 8, "train.epochs": 12, "train.patience": 99}


@pytest.fixture(scope="module")
def data(tables, tmp_path_factory):
    return pods.write_data(tables, tmp_path_factory.mktemp("restored") / "data")


@pytest.fixture(scope="module")
def one(data):
    """The run of one process with one device."""
    run = data.parent / "one"
    pods.train(pods.new_run(data, run, **OPTIONS), data.parent / "logs", count=1, devices=1)
    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    "parts",
    [((1, 8), (1, 4), (1, 1), (1, 8)), ((2, 2), (1, 1), (2, 4))],
    ids=["devices", "processes"],
)
def test_a_training_goes_on_with_any_processes_and_devices(data, one, tmp_path, parts):
    """The parts of a training, each by so many processes of so many devices."""
    run, logs = tmp_path / "run", tmp_path / "logs"
    arguments = pods.new_run(data, run, **OPTIONS)
    for number, (count, devices) in enumerate(parts[:-1]):
        pods.train_until(run, 1 + 8 * number, arguments, logs, count, devices)
        arguments = ["--resume", str(run)]
    pods.train(arguments, logs, *parts[-1])
    rows, expected = scalars(run), scalars(one)
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    # sums in another order differ in their last digits, and the differences grow
    losses = ([row["loss"] for row in part if "loss" in row] for part in (rows, expected))
    np.testing.assert_allclose(*losses, rtol=1e-2)
