"""Resumption: a run that is stopped or killed and then resumed equals an uninterrupted run."""

import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers.paths import ROOT
from helpers.training import TINY, config, scalars

import jaxrec
from jaxrec.training import logging as report
from jaxrec.training import loop as training


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
    with pytest.raises(training.Interrupted) as stop:
        training.fit(config(), tmp_path / "parts", tables=tables)
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
    training.fit(options, whole, tables=tables)
    write = report.RunLog.write

    def stop_then_write(self, step, row):
        write(self, step, row)
        if step == 2 and "loss" in row:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(report.RunLog, "write", stop_then_write)
    with pytest.raises(training.Interrupted):
        training.fit(options, parts, tables=tables)
    monkeypatch.undo()
    jaxrec.fit(data=tables, resume=parts)
    assert scalars(parts) == scalars(whole)
    params = (jaxrec.load(run).model.params for run in (whole, parts))
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
        "import os, signal, sys, jaxrec.training.loop as t, jaxrec.training.logging as r\n"
        "from jaxrec.config import parse\nfrom pathlib import Path\n"
        "write = r.RunLog.write\n"
        "def kill(self, step, row):\n"
        "    write(self, step, row)\n"
        "    if step == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "r.RunLog.write = kill\n"
        "import json\n"
        "t.fit(parse(layers=[json.loads(sys.argv[1])]), Path(sys.argv[2]))\n"
    )
    options = json.dumps(TINY | {"data.source": str(data)})
    arguments = [sys.executable, "-c", program, options, str(tmp_path / "killed")]
    killed = subprocess.run(arguments, capture_output=True, cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    jaxrec.fit(resume=tmp_path / "killed")
    assert scalars(tmp_path / "killed") == scalars(whole_run)
