"""The model that serves: the selected model of a run, trained on with more events."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from orbax.checkpoint import CheckpointManager

from jaxrec.artifacts import run_directory
from jaxrec.artifacts.files import locked, write_json
from jaxrec.artifacts.run_directory import REFIT, Progress
from jaxrec.config import Config
from jaxrec.config.train import RefitEvents
from jaxrec.data.tables import Tables
from jaxrec.errors import ConfigError, RunError
from jaxrec.inference.loading import read_calibration
from jaxrec.processes import entered_by_first, from_first
from jaxrec.training import logging as report
from jaxrec.training.evaluator import test_metrics
from jaxrec.training.forecast import fit_decoder
from jaxrec.training.loop import Refit, load, open_run, refresh_text, train
from jaxrec.training.optimizer import make_optimizer
from jaxrec.training.shops import test_shops, write_refits
from jaxrec.training.state import TrainContext, TrainState, process_local, schedule
from jaxrec.training.warm_start import Base, continued, copy_calibration

EPOCHS = 1 / 4  # of those of the selected model
RATE = 1 / 2  # of the peak learning rate
TRAINED_ON = {"validation": "training and validation events", "all": "all events"}


def refit(
    config: Config,
    run: Path,
    *,
    tables: Tables | Mapping[str, Tables] | None = None,
    events: RefitEvents | None = None,
) -> dict[str, Any]:
    """Train the selected model of a finished run on more events; the result serves then.

    The refit begins with the parameters and moments of the selected model and has a quarter of its
    epochs. The learning rate falls from half of its peak. No event is left to validate the refit,
    so it takes over the calibration of the selected model. If the test events are left out, they
    measure it. An interrupted refit continues.

    Args:
        events: which events train beside the training events; None: what the option says.

    Returns:
        The content of `metrics.json`, whose `serves` says which weights serve.

    Raises:
        ConfigError: the run is private, and its budget covers one training.
        RunError: training has not ended, or an interrupted refit began with other data.
        DataError: the data are not usable.
        Interrupted: Ctrl-C or SIGTERM came; the refit can be continued.
        Diverged: the loss is not finite.
    """
    _refuse_private(config, run)
    events = events or refit_events(config)
    config = replace(config, train=replace(config.train, refit=events))
    results, directory = _results(run), run / REFIT
    with run_directory.reading(run, "metrics.json"):
        selected = dict(results["selected"])
        epochs = math.ceil(EPOCHS * int(selected.pop("epoch")))
    if run_directory.served(run) == directory:
        report.notes.print(f"note: {directory} is complete; remove it to fit it again")
        return results
    if not epochs:
        reason = "no epoch improved on the base of the warm start"
        report.notes.print(f"note: {reason}, so the selected model serves")
        return results
    report.console.print(f"refit on {TRAINED_ON[events]}: {epochs} epochs")
    context = _open(config, Refit(run, events), tables, epochs)
    with (
        entered_by_first(locked(run)),
        run_directory.open_checkpoints(directory) as manager,
    ):
        state, progress = _start(context, run, manager)
        with report.open_log(directory, int(state.step), validated=not progress.step) as log:
            train(context, state, progress, manager, log, selected)
        own, state = process_local(context, load(context, manager, manager.best_step())[0])
    figures = {"events": events, **_test(own, state, run)}
    served = {**results, "serves": REFIT, REFIT: figures}
    from_first(lambda: _finish(own, state, run, served))
    return served


def refit_events(config: Config) -> RefitEvents:
    """The events that a refit of a run trains on."""
    return "all" if config.train.refit == "none" else config.train.refit


def _refuse_private(config: Config, run: Path) -> None:
    if config.train.privacy.epsilon:
        raise ConfigError(
            f"{run} is private, and its budget covers one training of its users, so there is no "
            "refit; train another run"
        )


def _open(
    config: Config, refit: Refit, tables: Tables | Mapping[str, Tables] | None, epochs: int
) -> TrainContext:
    """The context of a refit, new or interrupted."""
    directory = refit.run / REFIT
    context = open_run(config, directory, tables, resume=directory.exists(), refit=refit)
    # the moments of the optimizer are warm
    rates = replace(config.train, learning_rate=RATE * schedule(config)[1], warmup_steps=0)
    optimizer = make_optimizer(rates, epochs * context.packing.steps_per_epoch)
    return replace(context, epochs=epochs, optimizer=optimizer)


def _start(
    context: TrainContext, run: Path, manager: CheckpointManager
) -> tuple[TrainState, Progress]:
    """The state and the position that a refit begins or continues with."""
    if (last := manager.latest_step()) is not None:
        return load(context, manager, last)
    selected = Base(run, run_directory.read_config(run), run_directory.read_artifacts(run))
    return refresh_text(context, continued(selected, context)), Progress()


def _finish(context: TrainContext, state: TrainState, run: Path, results: dict[str, Any]) -> None:
    """Write what a refit needs beside its checkpoints, and the results of its run."""
    directory = run / REFIT
    if context.shops:
        write_refits(context, state, run)
    else:
        fit_decoder(context, state, directory, read_calibration(run)[0])
    copy_calibration(run, directory)  # the last file: from now on the refit serves
    write_json(run / "metrics.json", results)
    report.console.print(f"the model that serves is in {directory}")


def _test(context: TrainContext, state: TrainState, run: Path) -> dict[str, Any]:
    """The metrics of a refit on the test events that it has not learned from."""
    if context.shops:
        return test_shops(context, state, run)
    metrics = test_metrics(context, state, read_calibration(run)[1])
    for name, scores in metrics.items():
        report.console.print(
            f"{name} of the refit: ndcg@10 {scores['ndcg@10']:.4f}, recall@10 "
            f"{scores['recall@10']:.4f}"
        )
    return metrics


def _results(run: Path) -> dict[str, Any]:
    path = run / "metrics.json"
    if not path.is_file():
        raise RunError(f"{run}: its training has not ended; continue it with --resume {run}")
    with run_directory.reading(run, "metrics.json"):
        return json.loads(path.read_text())
