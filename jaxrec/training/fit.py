"""A training run from data to results: prepare, train, select by validation, calibrate, test."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import CheckpointManager

from jaxrec.artifacts import run_directory
from jaxrec.artifacts.files import locked
from jaxrec.artifacts.run_directory import Progress
from jaxrec.config import Config
from jaxrec.config.train import RefitEvents
from jaxrec.data.dataset import Dataset, prepare
from jaxrec.data.prepared import prepared_by_first
from jaxrec.data.shared_files import SharedFiles
from jaxrec.data.tables import Tables
from jaxrec.evaluation.calibration import UNCALIBRATED, Correction
from jaxrec.evaluation.groups import check_columns
from jaxrec.inference.loading import read_calibration
from jaxrec.processes import entered_by_first, from_first, is_first
from jaxrec.training import cards, pretrained, shops, warm_start
from jaxrec.training import logging as report
from jaxrec.training.artifacts import run_artifacts
from jaxrec.training.calibration_file import (
    calibration_fields,
    copied_calibration,
    write_calibration,
)
from jaxrec.training.checkpoints import load, save
from jaxrec.training.context import TrainContext, make_context
from jaxrec.training.cost import Meter, metered
from jaxrec.training.evaluator import calibrate, test
from jaxrec.training.forecast import fit_decoder
from jaxrec.training.loop import refresh_text, train, validation_scores
from jaxrec.training.privacy import run as private
from jaxrec.training.state import initial_state, process_local
from jaxrec.training.step import TrainState


def fit(
    config: Config,
    run: Path,
    *,
    tables: Tables | Mapping[str, Tables] | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Train a recommender into the directory `run`; returns the content of `metrics.json`.

    `selected` holds the validation metrics that selected the epoch, `validation` those after
    calibration.

    Args:
        config: all options; to resume, those of the run.
        tables: data in memory, instead of `config.data.source`, or by name of `config.data.shops`.
        resume: continue the run from its last checkpoint.

    Raises:
        RunError: `run` exists; or, to resume, it does not exist, or was trained on other data or
            with another text encoder.
        DataError: the data are not usable.
        Interrupted: Ctrl-C or SIGTERM came; the run is saved and can be resumed.
        Diverged: the loss or the scores are not finite.
    """
    with metered() as meter, shared_files(config, run) as files:
        context = open_run(config, run, tables, resume=resume, files=files)
        return _fit(context, run, meter)


def _fit(context: TrainContext, run: Path, meter: Meter) -> dict[str, Any]:
    with entered_by_first(locked(run)), run_directory.open_checkpoints(run) as manager:
        state, progress = start(context, manager)
        meter.go_on(report.read_log(run))
        validated = not progress.step
        with report.open_log(run, int(state.step), validated=validated, cost=meter.cost) as log:
            # validation would reveal users, so the last epoch of a private run is its best
            unselected = private.UNSELECTED if context.budget else None
            train(context, state, progress, manager, log, unselected)
        from_first(lambda: private.drop_key(run))
        best, selected = load(context, manager, manager.best_step())
    context, best = process_local(context, best)
    if context.shops:
        return shops.finish(context, best, selected, run, meter)
    correction = Correction.of(from_first(lambda: _calibrate(context, best, run)))
    results, ranks = test(context, best, correction)

    def finish() -> dict[str, Any]:
        figures = results["validation"] if context.budget else selected.history[-1]
        results["selected"] = {"epoch": selected.epoch, **figures}
        if context.budget:
            results["privacy"] = private.account(context.budget, int(best.step))
        results["serves"] = "selected" if run_directory.served(run) == run else "refit"
        report.write_results(run, results, ranks)
        cards.write_model_card(run, context, results, meter)
        # last, because the run is complete without it
        fit_decoder(context, best, run, read_calibration(run)[0])
        report.console.print(f"the model is in {run}")
        return results

    return from_first(finish)


def _calibrate(context: TrainContext, state: TrainState, run: Path) -> dict[str, Any]:
    """Write the calibration of a run and its plots; returns the fields of its `Correction`."""
    reliability = None
    if context.budget:
        fields = calibration_fields(UNCALIBRATED)
    elif warm_start.keeps_calibration(context):
        fields = copied_calibration(warm_start.open_base(context.config).directory)
    else:
        calibration, reliability = calibrate(context, state)
        fields = calibration_fields(calibration, reliability)
    report.draw_plots(run, reliability)
    return write_calibration(context, run, fields)


def open_run(
    config: Config,
    run: Path,
    tables: Tables | Mapping[str, Tables] | None = None,
    *,
    resume: bool = False,
    refit: RefitEvents | None = None,
    files: SharedFiles | None = None,
) -> TrainContext:
    """The context of a new run, whose first files are written, or of a run to resume.

    Args:
        refit: train on these events too.
        files: where processes share what they derive from the events; None: each keeps its own.

    Raises:
        RunError, ConfigError, DataError: as `fit`.
    """
    report.let_only_first_print()
    trained = carried = text_of = None
    if resume:
        trained = run_directory.read_artifacts(run)
        warm_start.refuse_transferred(run, trained)
    else:
        from_first(lambda: run_directory.refuse_existing(run))
    if config.warm_start.base:
        trained = trained or warm_start.open_base(config).artifacts
        config = config if resume else warm_start.with_since(config, trained)
        carried = warm_start.carried(config, trained)
    elif config.train.init and not resume:
        text_of = pretrained.open_pretrained(config).text

    def prepared() -> Dataset:
        dataset = prepare(config, tables, carried)
        return dataset.refitted(refit) if refit else dataset

    dataset = prepared_by_first(prepared, files or SharedFiles())
    for shop in dataset.shops.values() or [dataset]:
        check_columns(shop.catalog.items, config.report.group_by)
    report.describe(dataset)
    context = shops.with_shops(make_context(config, dataset, trained, text_of))
    report.print_notes(context.notes)
    if resume:
        from_first(lambda: run_directory.refuse_other_data(run, run_artifacts(context)))
        report.print_notes(run_directory.unfinished(run))
    else:
        source = "tables in memory" if tables else f"`{Path(config.data.source).name}`"
        has_card = not (refit or context.shops)  # each shop has its own
        from_first(lambda: create(run, context, source if has_card else ""))
    return private.keyed(context, run, resume=resume)


@contextmanager
def shared_files(config: Config, run: Path) -> Iterator[SharedFiles]:
    """Where the processes of a job share what they derive from the events while they train a run.

    Each process keeps its own arrays in a warm start, in a private training and for several shops.
    """
    own = config.warm_start.base or config.train.privacy.epsilon or config.data.shops
    if jax.process_count() == 1 or own:
        yield SharedFiles()
        return
    directory = run.with_name(f".{run.name}.shared")
    from_first(lambda: shutil.rmtree(directory, ignore_errors=True))  # of a job that was killed
    try:
        yield SharedFiles(directory)
    finally:
        if is_first():
            shutil.rmtree(directory, ignore_errors=True)


def create(run: Path, context: TrainContext, source: str) -> None:
    """Write the first files of a run, with the card of its data if their source is given."""
    run_directory.create_run(run, context.config, run_artifacts(context))
    if source:
        cards.write_data_card(run, context, source)


def start(context: TrainContext, manager: CheckpointManager) -> tuple[TrainState, Progress]:
    """The state and the position that training begins or continues with."""
    last = manager.latest_step()
    if last is not None:
        return load(context, manager, last)
    if context.config.train.init:
        state, notes = pretrained.start(context)
        report.print_notes(notes)
        return refresh_text(context, state), Progress()
    if not context.config.warm_start.base:
        return initial_state(context), Progress()
    state = refresh_text(context, warm_start.start(context))
    # validated, because the base may be better than every epoch that follows
    scores = validation_scores(context, state)
    progress = Progress(history=(scores,))
    save(context, manager, state, progress, scores)
    return state, progress
