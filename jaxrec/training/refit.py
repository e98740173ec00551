"""The model that serves: a run's training repeated on all events, after the epoch is selected."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxrec.artifacts import run_directory
from jaxrec.artifacts.files import locked, write_json
from jaxrec.artifacts.run_directory import REFIT
from jaxrec.config import Config
from jaxrec.data.tables import Tables
from jaxrec.errors import ConfigError, RunError
from jaxrec.inference.loading import read_calibration
from jaxrec.processes import entered_by_first, from_first
from jaxrec.training import logging as report
from jaxrec.training.forecast import fit_decoder
from jaxrec.training.loop import load, open_run, start, train
from jaxrec.training.shops import write_refits
from jaxrec.training.state import process_local
from jaxrec.training.warm_start import copy_calibration


def refit(
    config: Config, run: Path, *, tables: Tables | Mapping[str, Tables] | None = None
) -> dict[str, Any]:
    """Train a finished run again on its training, validation and test events; it serves then.

    The refit has as many epochs as the selected model, and so more steps. It begins where the run
    began: from scratch, or from the base of a warm start. It is not evaluated, because no event is
    left out, and takes over the calibration of the selected model. An interrupted refit continues.

    Returns:
        The content of `metrics.json`, whose `serves` says which weights serve.

    Raises:
        ConfigError: the run is private, and its budget covers one training.
        RunError: training has not ended, or an interrupted refit began with other data.
        DataError: the data are not usable.
        Interrupted: Ctrl-C or SIGTERM came; the refit can be continued.
        Diverged: the loss is not finite.
    """
    if config.train.privacy.epsilon:
        raise ConfigError(
            f"{run} is private, and its budget covers one training of its users, so there is no "
            "refit; train another run"
        )
    results, directory = _results(run), run / REFIT
    with run_directory.reading(run, "metrics.json"):
        selected = dict(results["selected"])
        epochs = int(selected.pop("epoch"))
    if run_directory.served(run) == directory:
        report.notes.print(f"note: {directory} is complete; remove it to fit it again")
        return results
    if not epochs:
        report.notes.print(
            "note: no epoch improved on the base of the warm start, so the selected model serves"
        )
        return results
    report.console.print(f"refit on all events: {epochs} epochs")
    context = open_run(config, directory, tables, resume=directory.exists(), all_events=True)
    context = replace(context, epochs=epochs)
    with (
        entered_by_first(locked(run)),
        run_directory.open_checkpoints(directory) as manager,
    ):
        state, progress = start(context, manager)
        with report.open_log(directory, int(state.step), validated=not progress.step) as log:
            train(context, state, progress, manager, log, selected)
        own, state = process_local(context, load(context, manager, manager.best_step())[0])

    def finish() -> dict[str, Any]:
        if own.shops:
            write_refits(own, state, run)
        else:
            fit_decoder(own, state, directory, read_calibration(run)[0])
        copy_calibration(run, directory)  # the last file: from now on the refit serves
        served = {**results, "serves": REFIT}
        write_json(run / "metrics.json", served)
        report.console.print(f"the model that serves is in {directory}")
        return served

    return from_first(finish)


def _results(run: Path) -> dict[str, Any]:
    path = run / "metrics.json"
    if not path.is_file():
        raise RunError(f"{run}: its training has not ended; continue it with --resume {run}")
    with run_directory.reading(run, "metrics.json"):
        return json.loads(path.read_text())
