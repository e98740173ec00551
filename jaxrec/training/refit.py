"""The model that serves: a run's training repeated on more events, after the epoch is selected."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxrec.artifacts import run_directory
from jaxrec.artifacts.files import locked, write_json
from jaxrec.artifacts.run_directory import CALIBRATION, REFIT
from jaxrec.config import Config
from jaxrec.config.train import RefitEvents
from jaxrec.data.tables import Tables
from jaxrec.errors import ConfigError, RunError
from jaxrec.inference.loading import read_calibration
from jaxrec.processes import entered_by_first, from_first
from jaxrec.training import logging as report
from jaxrec.training.calibration_file import copied_calibration
from jaxrec.training.checkpoints import load
from jaxrec.training.context import TrainContext
from jaxrec.training.evaluator import test_metrics
from jaxrec.training.fit import open_run, shared_files, start
from jaxrec.training.loop import train
from jaxrec.training.shops import test_shops, write_fitted, write_refits
from jaxrec.training.state import process_local
from jaxrec.training.step import TrainState
from jaxrec.training.warm_start import refuse_transferred

TRAINED_ON = {"validation": "training and validation events", "all": "all events"}


def refit(
    config: Config,
    run: Path,
    *,
    tables: Tables | Mapping[str, Tables] | None = None,
    events: RefitEvents | None = None,
) -> dict[str, Any]:
    """Train a finished run again on more events; that model serves then.

    The refit has as many epochs as the selected model, and so more steps. It begins where the run
    began: from scratch, or from the base of a warm start. No event is left to validate it, so it
    takes over the calibration of the selected model. If the test events are left out, they measure
    it. An interrupted refit continues.

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
        epochs = int(selected.pop("epoch"))
    if run_directory.served(run) == directory:
        report.notes.print(f"note: {directory} is complete; remove it to fit it again")
        return results
    if not epochs:
        reason = "no epoch improved on the base of the warm start"
        report.notes.print(f"note: {reason}, so the selected model serves")
        return results
    report.console.print(f"refit on {TRAINED_ON[events]}: {epochs} epochs")
    with shared_files(config, directory) as files:
        resume = directory.exists()
        context = open_run(config, directory, tables, resume=resume, refit=events, files=files)
        context = replace(context, epochs=epochs)
        own, state = _trained(context, run, selected)
        figures = {"events": events, **(_test(own, state, run) if events != "all" else {})}
        served = {**results, "serves": REFIT, REFIT: figures}
        from_first(lambda: _finish(own, state, run, served))
    return served


def _trained(
    context: TrainContext, run: Path, selected: dict[str, float]
) -> tuple[TrainContext, TrainState]:
    """The last state of a refit, with its context, on this process alone."""
    directory = run / REFIT
    with (
        entered_by_first(locked(run)),
        run_directory.open_checkpoints(directory) as manager,
    ):
        state, progress = start(context, manager)
        with report.open_log(directory, int(state.step), validated=not progress.step) as log:
            train(context, state, progress, manager, log, selected)
        return process_local(context, load(context, manager, manager.best_step())[0])


def refit_events(config: Config) -> RefitEvents:
    """The events that a refit of a run trains on."""
    return "all" if config.train.refit == "none" else config.train.refit


def _refuse_private(config: Config, run: Path) -> None:
    if config.train.privacy.epsilon:
        raise ConfigError(
            f"{run} is private, and its budget covers one training of its users, so there is no "
            "refit; train another run"
        )


def _finish(context: TrainContext, state: TrainState, run: Path, results: dict[str, Any]) -> None:
    """Write what a refit needs beside its checkpoints, and the results of its run."""
    directory = run / REFIT
    if context.shops:
        write_refits(context, state, run)
        write_json(directory / CALIBRATION, copied_calibration(run))
    else:
        write_fitted(context, state, directory)
    write_json(run / "metrics.json", results)
    report.console.print(f"the model that serves is in {directory}")


def _test(context: TrainContext, state: TrainState, run: Path) -> dict[str, Any]:
    """The metrics of a refit on the test events that it has not learned from."""
    if context.shops:
        return {"shops": test_shops(context, state, run)}
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
        refuse_transferred(run, run_directory.read_artifacts(run))
        raise RunError(f"{run}: its training has not ended; continue it with --resume {run}")
    with run_directory.reading(run, "metrics.json"):
        return json.loads(path.read_text())
