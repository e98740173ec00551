"""Short training runs."""

import json
from pathlib import Path

from filelock import FileLock

from jaxrec.artifacts import run_directory
from jaxrec.artifacts.run_directory import Progress
from jaxrec.config import parse
from jaxrec.data.tables import Tables
from jaxrec.training import logging as report
from jaxrec.training.checkpoints import save
from jaxrec.training.fit import fit, open_run
from jaxrec.training.loop import make_train_step
from jaxrec.training.prefetch import prefetch
from jaxrec.training.state import initial_state

TINY = {
    "split.scheme": "leave_one_out",
    "model.experts": ["id+graph", "id"],
    "model.hidden_size": 8,
    "model.num_layers": 1,
    "model.sequence_window": 4,
    "train.batch_size": 4,
    "train.sequence_length": 16,
    "train.epochs": 3,
    "train.refit": "none",
    "train.patience": 9,
    "train.warmup_steps": 2,
}


def config(**options):
    return parse(layers=[TINY, options])


def complete_run(tables, tmp_path_factory, worker_id) -> Path:
    """A complete run, trained once for all processes; no test may change it."""
    own = tmp_path_factory.getbasetemp()
    run = (own if worker_id == "master" else own.parent) / "whole"
    with FileLock(run.with_suffix(".lock")):
        if not run.exists():
            results = fit(config(), run, tables=tables)
            assert json.loads((run / "metrics.json").read_text()) == results
    return run


def untrained_run(run: Path, tables: Tables, **options) -> Path:
    """A run that saved the parameters it begins with, and no more."""
    context = open_run(config(**options), run, tables)
    with run_directory.open_checkpoints(run) as manager:
        scores = {run_directory.SELECTED_BY: 0.0}
        save(context, manager, initial_state(context), Progress(), scores)
    return run


def scalars(run):
    """Logged scalars without the speed and the cost."""
    left_out = ("events_per_second", "input_wait", "seconds", "joules")
    return [{k: v for k, v in row.items() if k not in left_out} for row in report.read_log(run)]


def first_steps(context, count=3):
    """Losses of the first steps from the initial state."""
    step = make_train_step(context)
    state = initial_state(context)
    losses = []
    for batch, _ in prefetch(context, 0, range(count)):
        state, metrics = step(state, context.arrays, batch)
        losses.append(float(metrics["loss"]))
    return losses, step
