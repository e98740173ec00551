"""Resumption: a run that is stopped or killed and then resumed equals an uninterrupted run."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest
from helpers import disks, pods
from helpers.paths import ROOT
from helpers.training import TINY, config, scalars

import jaxrec
from jaxrec.artifacts import run_directory
from jaxrec.errors import Diverged, Interrupted
from jaxrec.training import evaluator, loop
from jaxrec.training import logging as report
from jaxrec.training.fit import fit


@pytest.mark.thorough
@pytest.mark.parametrize(
    "stop_after",
    [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (4, "an epoch", "the last epoch"))],
)
def test_stopped_and_resumed_equals_uninterrupted(
    tables, whole_run, tmp_path, monkeypatch, stop_after
):
    write = report.RunLog.write
    if isinstance(stop_after, str):
        ends = [row["step"] for row in scalars(whole_run) if "validation/ndcg@10" in row]
        stop_after = ends[0 if stop_after == "an epoch" else -1]

    def stop_then_write(self, step, row):
        write(self, step, row)
        if step == stop_after and "loss" in row:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(report.RunLog, "write", stop_then_write)
    with pytest.raises(Interrupted) as stop:
        fit(config(), tmp_path / "parts", tables=tables)
    assert stop.value.code == 143
    monkeypatch.undo()
    jaxrec.fit(data=tables, resume=tmp_path / "parts")
    runs = whole_run, tmp_path / "parts"
    whole, parts = map(scalars, runs)
    assert parts == whole
    whole, parts = (jaxrec.load(run).model.params for run in runs)
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    whole, parts = ((run / "metrics.json").read_text() for run in runs)
    assert parts == whole


@pytest.mark.slow
def test_a_signal_ends_a_validation_which_is_done_again(tables, whole_run, tmp_path, monkeypatch):
    rank, calls = evaluator.rank_queries, []

    def stop_then_rank(*arguments, **options):
        calls.append(len(calls))
        os.kill(os.getpid(), signal.SIGTERM)
        calls.append("not stopped")
        return rank(*arguments, **options)

    monkeypatch.setattr(evaluator, "rank_queries", stop_then_rank)
    with pytest.raises(Interrupted) as stop:
        fit(config(), tmp_path / "parts", tables=tables)
    assert stop.value.code == 143 and calls == [0]
    for resumed in (1, 2):  # the same state is saved once
        with pytest.raises(Interrupted):
            jaxrec.fit(data=tables, resume=tmp_path / "parts")
        assert calls == list(range(resumed + 1))
    monkeypatch.undo()
    jaxrec.fit(data=tables, resume=tmp_path / "parts")
    assert scalars(tmp_path / "parts") == scalars(whole_run)
    parts, whole = ((run / "metrics.json").read_text() for run in (tmp_path / "parts", whole_run))
    assert parts == whole


@pytest.mark.slow
def test_a_run_that_diverges_keeps_its_last_checkpoint(tables, whole_run, tmp_path, monkeypatch):
    """And says which parameter was the first that is not finite."""
    make = loop.make_train_step
    name = "['experts'][0]['user_output']['kernel'].value"

    def poisoned(path, leaf):
        return leaf * np.nan if jax.tree_util.keystr(path) == name else leaf

    def make_poisoned(context):
        step = make(context)

        def with_poison(state, arrays, batch):
            if int(state.step) == steps + 2:
                state = replace(
                    state, params=jax.tree_util.tree_map_with_path(poisoned, state.params)
                )
            return step(state, arrays, batch)

        return with_poison

    steps = next(row["step"] for row in scalars(whole_run) if "validation/ndcg@10" in row)
    monkeypatch.setattr(loop, "make_train_step", make_poisoned)
    message = (
        rf"the loss is nan at step {steps + 3}; the first tensor that is not finite is the "
        r"parameter experts\.0\.user_output\.kernel; the last checkpoint is kept"
    )
    jax.config.update("jax_debug_nans", False)
    with pytest.raises(Diverged, match=message):
        fit(config(), tmp_path / "run", tables=tables)
    jax.config.update("jax_debug_nans", True)
    monkeypatch.undo()
    with run_directory.open_checkpoints(tmp_path / "run", read_only=True) as manager:
        assert manager.all_steps() == [steps]
    jaxrec.fit(data=tables, resume=tmp_path / "run")
    assert scalars(tmp_path / "run") == scalars(whole_run)


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_checkpoint(tables, whole_run, tmp_path):
    with disks.small_disk(tmp_path / "disk", "4m") as disk:
        run, ballast = disk / "run", disk / "ballast"
        arguments = pods.new_run(pods.write_data(tables, tmp_path / "data"), run)
        with pods.started(arguments, tmp_path / "logs", count=1, devices=4) as [process]:
            pods.wait_for_step(run, 1)
            disks.fill(ballast)
            assert process.wait(pods.HANGS) == 2
        shown = (tmp_path / "logs" / "0.txt").read_text().splitlines()
        error = f"error: no space left at {run}; make room and continue with --resume {run}"
        assert shown[-1] == error and not any("Traceback" in line for line in shown)
        ballast.unlink()
        disks.remount(disk, "size=99m")
        jaxrec.fit(resume=run)
        rows, expected = scalars(run), scalars(whole_run)
        assert [row["step"] for row in rows] == [row["step"] for row in expected]
        # another process may round otherwise
        losses = ([row["loss"] for row in part if "loss" in row] for part in (rows, expected))
        np.testing.assert_allclose(*losses, rtol=1e-4)


@pytest.mark.slow
def test_a_run_with_a_sampled_loss_draws_the_same_items_after_a_stop(tables, tmp_path, monkeypatch):
    """The optimiser state of lazy Adam comes back too."""
    options = config(
        **{
            "model.experts": ["id+graph", "id"],
            "train.loss": "sampled_softmax",
            "train.negatives": 4,
            "train.fan_out": 2,
            "train.sparse_rows": True,
            "train.epochs": 2,
        }
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(options, whole, tables=tables)
    write = report.RunLog.write

    def stop_then_write(self, step, row):
        write(self, step, row)
        if step == 2 and "loss" in row:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(report.RunLog, "write", stop_then_write)
    with pytest.raises(Interrupted):
        fit(options, parts, tables=tables)
    monkeypatch.undo()
    jaxrec.fit(data=tables, resume=parts)
    assert scalars(parts) == scalars(whole)
    params = (jaxrec.load(run).model.params for run in (whole, parts))
    jax.tree.map(np.testing.assert_array_equal, *params)


@pytest.mark.thorough
def test_a_run_that_fails_goes_on_at_its_last_checkpoint_inside_an_epoch(
    tables, whole_run, tmp_path, monkeypatch
):
    write, run = report.RunLog.write, tmp_path / "run"
    first_epoch = next(row["step"] for row in scalars(whole_run) if "validation/ndcg@10" in row)
    fails_at = first_epoch + 3

    def fail_then_write(self, step, row):
        if step == fails_at:
            raise OSError("the machine is gone")
        write(self, step, row)

    monkeypatch.setattr(report.RunLog, "write", fail_then_write)
    with pytest.raises(OSError, match="is gone"):
        fit(config(**{"train.checkpoint_steps": 2}), run, tables=tables)
    monkeypatch.undo()
    with run_directory.open_checkpoints(run, read_only=True) as manager:
        assert manager.all_steps() == [first_epoch, first_epoch + 2]
    jaxrec.fit(data=tables, resume=run)
    assert scalars(run) == scalars(whole_run)
    params = (jaxrec.load(path).model.params for path in (whole_run, run))
    jax.tree.map(np.testing.assert_array_equal, *params)


@pytest.mark.slow
def test_a_run_resumes_after_kill_9(tables, whole_run, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("events", "items", "triples"):
        frame = getattr(tables, name)
        if frame is not None:
            frame.write_parquet(data / f"{name}.parquet")
    program = (
        "import os, signal, sys, jaxrec.training.logging as r\n"
        "from jaxrec.config import parse\nfrom jaxrec.training.fit import fit\n"
        "from pathlib import Path\n"
        "write = r.RunLog.write\n"
        "def kill(self, step, row):\n"
        "    write(self, step, row)\n"
        "    if step == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "r.RunLog.write = kill\n"
        "import json\n"
        "fit(parse(layers=[json.loads(sys.argv[1])]), Path(sys.argv[2]))\n"
    )
    options = json.dumps(TINY | {"data.source": str(data)})
    arguments = [sys.executable, "-c", program, options, str(tmp_path / "killed")]
    killed = subprocess.run(arguments, capture_output=True, cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    jaxrec.fit(resume=tmp_path / "killed")
    assert scalars(tmp_path / "killed") == scalars(whole_run)
