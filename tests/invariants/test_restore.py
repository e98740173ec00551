"""Restoring: a checkpoint restores unchanged on another number of devices."""

import jax
import numpy as np
from flax import nnx
from helpers.training import config

import jaxrec
from jaxrec.artifacts import run_directory
from jaxrec.artifacts.run_directory import Progress
from jaxrec.data.dataset import prepare
from jaxrec.training import loop as training
from jaxrec.training.state import make_context


def test_a_checkpoint_restores_on_another_mesh(tables, whole_run):
    context = make_context(config(**{"train.item_shards": 4}), prepare(config(), tables))
    with run_directory.open_checkpoints(whole_run, read_only=True) as manager:
        state, progress = training.load(context, manager, manager.best_step())
    assert isinstance(progress, Progress)
    trained = jaxrec.load(whole_run).model.params
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(state.params), trained)
