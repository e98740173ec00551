"""A training run from data to results: prepare, train, select by validation, calibrate, test."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array
from orbax.checkpoint import CheckpointManager

from jaxrec.artifacts import run_directory
from jaxrec.artifacts.files import locked
from jaxrec.artifacts.run_directory import Progress
from jaxrec.compiler import FUSION_OPTIONS
from jaxrec.config import Config
from jaxrec.config.train import RefitEvents
from jaxrec.data.dataset import prepare
from jaxrec.data.tables import Tables
from jaxrec.errors import Interrupted
from jaxrec.evaluation.calibration import UNCALIBRATED, Correction
from jaxrec.evaluation.groups import check_columns
from jaxrec.inference.loading import read_calibration
from jaxrec.inference.text_features import encode_finetuned_text
from jaxrec.partitioning import on_mesh
from jaxrec.processes import entered_by_first, from_first
from jaxrec.sharding import USERS, laid_out
from jaxrec.training import cards, pretrained, shops, warm_start
from jaxrec.training import logging as report
from jaxrec.training.calibration_file import (
    calibration_fields,
    copied_calibration,
    write_calibration,
)
from jaxrec.training.cost import Meter, metered
from jaxrec.training.evaluator import calibrate, test, validate
from jaxrec.training.finite import NOT_FINITE, refuse_divergence, refuse_not_finite
from jaxrec.training.forecast import fit_decoder
from jaxrec.training.prefetch import Timed, prefetch
from jaxrec.training.privacy import run as private
from jaxrec.training.privacy.budget import spent
from jaxrec.training.privacy.sampling import users_at_a_time
from jaxrec.training.privacy.step import build_private_step
from jaxrec.training.state import (
    StepContext,
    TrainContext,
    TrainState,
    catalog_vectors,
    initial_state,
    make_context,
    process_local,
    run_artifacts,
    state_layout,
)
from jaxrec.training.step import build_step
from jaxrec.training.stopping import AgreedStop, Runner, Stopped, stop_signal, uninterrupted
from jaxrec.training.tasks.base import TrainArrays
from jaxrec.types import Batch


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
    with metered() as meter:
        return _fit(open_run(config, run, tables, resume=resume), run, meter)


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
) -> TrainContext:
    """The context of a new run, whose first files are written, or of a run to resume.

    Args:
        refit: train on these events too.

    Raises:
        RunError, ConfigError, DataError: as `fit`.
    """
    report.let_only_first_print()
    trained = carried = text_of = None
    if resume:
        trained = run_directory.read_artifacts(run)
    else:
        from_first(lambda: run_directory.refuse_existing(run))
    if config.warm_start.base:
        trained = trained or warm_start.open_base(config).artifacts
        config = config if resume else warm_start.with_since(config, trained)
        carried = warm_start.carried(config, trained)
    elif config.train.init and not resume:
        text_of = pretrained.open_pretrained(config).text
    dataset = prepare(config, tables, carried)
    for shop in dataset.shops.values() or [dataset]:
        check_columns(shop.catalog.items, config.report.group_by)
    dataset = dataset.refitted(refit) if refit else dataset
    report.describe(dataset)
    context = shops.with_shops(make_context(config, dataset, trained, text_of))
    report.print_notes(context.notes)
    if resume:
        run_directory.refuse_other_data(run, run_artifacts(context))
        report.print_notes(run_directory.unfinished(run))
    else:
        source = "tables in memory" if tables else f"`{Path(config.data.source).name}`"
        has_card = not (refit or context.shops)  # each shop has its own
        from_first(lambda: create(run, context, source if has_card else ""))
    return private.keyed(context, run, resume=resume)


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
    scores = _validate(context, state)
    progress = Progress(history=(scores,))
    save(context, manager, state, progress, scores)
    return state, progress


def load(
    context: TrainContext, manager: CheckpointManager, step: int
) -> tuple[TrainState, Progress]:
    """The state and the position of a checkpoint; another mesh may have saved it.

    Raises a RunError if the checkpoint is damaged, or does not fit the options.
    """
    target = laid_out(*state_layout(context))
    vectors = run_directory.vector_targets(context.config, context.sizes, target.text.sharding)
    rest = {"step": target.step, "opt_state": target.opt_state}
    run, what = Path(manager.directory).parent, f"config.yaml or the checkpoint of step {step}"
    with run_directory.reading(run, what):
        saved = run_directory.restore(
            manager, step, params=target.params, rest=rest, vectors=vectors
        )
        progress = run_directory.restore_progress(manager, step)
    text = saved["vectors"]["text"]
    return TrainState(params=saved["params"], text=text, **saved["rest"]), progress


def make_train_step(context: StepContext) -> jax.stages.Wrapped:
    """The jitted step of `build_step`; it donates the state."""
    model = (context.config, context.definition, context.optimizer)
    options: dict[str, Any] | None = None
    if context.budget:
        microbatch = users_at_a_time(context.mesh.shape[USERS])
        compute = build_private_step(*model, context.budget, microbatch)
        # again, as JAX may have computed before XLA_FLAGS was set, and the guarantee needs it
        options = FUSION_OPTIONS or None
    else:
        compute = build_step(*model)

    def step(state: TrainState, arrays: TrainArrays, batch: Batch):
        with on_mesh(context.mesh):
            return compute(state, arrays, batch)

    # without the layout of the inputs, the second step would be compiled again
    return jax.jit(
        step,
        donate_argnums=0,
        out_shardings=(state_layout(context)[1], None),
        compiler_options=options,
    )


def train(
    context: TrainContext,
    state: TrainState,
    progress: Progress,
    manager: CheckpointManager,
    log: report.RunLog,
    selected: dict[str, float] | None = None,
) -> None:
    """Train to the last epoch, or until validation no longer improves; save after every epoch.

    Args:
        selected: of a refit, the validation metrics of the selected model, which are kept beside
            every epoch; the last epoch is then the best.
    """
    patience = context.config.train.patience
    step = _checked_step(_ready_step(context, state), manager)
    with stop_signal() as signals, run_directory.all_saved(manager):
        stop = AgreedStop(signals, context.mesh)
        checkpoint = partial(save, context, manager)
        while progress.epoch < context.epochs and progress.epochs_since_best < patience:
            state, progress, speed = train_epoch(
                context, step, state, progress, log, stop, checkpoint
            )
            try:
                if progress.step < context.packing.steps_per_epoch:
                    raise Stopped
                state = refresh_text(context, state, stop.interruptible)
                scores = selected or _validate(context, state, stop.interruptible)
            except Stopped:
                save(context, manager, state, progress)
                raise Interrupted(128 + stop.number) from None
            progress = Progress(progress.epoch + 1, 0, (*progress.history, scores))
            if not selected:
                log.write(int(state.step), {f"validation/{name}": v for name, v in scores.items()})
            if context.budget:
                log.write(int(state.step), {"epsilon": spent(context.budget, int(state.step))})
            save(context, manager, state, progress, scores)
            report.epoch_line(progress, speed, validated=not selected)
            if stop.now():
                raise Interrupted(128 + stop.number)


def _ready_step(context: TrainContext, state: TrainState) -> Callable[..., Any]:
    """The training step; of many processes, compiled by all of them."""
    step = make_train_step(context)
    if jax.process_count() == 1 or not context.epochs:
        return step
    batch, _ = next(prefetch(context, 0, range(1)))
    compiled = step.lower(state, context.arrays, batch).compile()
    # Gloo gives up if a process is 30 seconds late for the first exchange of a group of devices
    from_first(lambda: None)
    return compiled


def _checked_step(step: Callable[..., Any], manager: CheckpointManager) -> Callable[..., Any]:
    """The step, which raises what has failed behind it while a checkpoint was written."""

    def checked(*arguments: Any):
        run_directory.raise_failed_save(manager)
        return step(*arguments)

    return checked


def _validate(
    context: TrainContext, state: TrainState, interruptible: Runner = uninterrupted
) -> dict[str, float]:
    measure = shops.validate_shops if context.shops else validate
    scores = measure(*process_local(context, state), interruptible)
    # processes on unlike machines must select the same epoch
    return from_first(lambda: scores)


def train_epoch(
    context: TrainContext,
    step: Callable[[TrainState, TrainArrays, Batch], Any],
    state: TrainState,
    progress: Progress,
    log: report.RunLog,
    stop: AgreedStop,
    checkpoint: Callable[[TrainState, Progress], None] | None = None,
) -> tuple[TrainState, Progress, float]:
    """Train the remaining steps of an epoch, or until a signal stops it; also returns events/s.

    Args:
        checkpoint: saves a state that has trained so far, every `train.checkpoint_steps`.
    """
    every = context.config.train.checkpoint_steps
    steps = range(progress.step, context.packing.steps_per_epoch)
    number = int(state.step)
    events, start = 0, time.perf_counter()
    metrics: dict[str, Array] = {}  # of the last step, until they are logged
    batches = Timed(prefetch(context, progress.epoch, steps))
    with report.epoch_bar(progress.epoch, len(steps)) as advance:

        def log_step(number: int, events: int, metrics: dict[str, Array]) -> None:
            scalars = {name: float(value) for name, value in metrics.items()}
            place = int(scalars.pop(NOT_FINITE))
            refuse_divergence(scalars["loss"], place, number, state.params)
            seconds = time.perf_counter() - start
            speed = events / seconds
            speeds = {"events_per_second": speed, "input_wait": batches.seconds / seconds}
            log.write(number, {"epoch": progress.epoch, **speeds, **scalars})
            advance(scalars["loss"], speed)

        for batch, targets in batches:
            state, new_metrics = step(state, context.arrays, batch)
            if metrics:  # while the device computes this step
                log_step(number, events, metrics)
            number, events, metrics = number + 1, events + targets, new_metrics
            progress = replace(progress, step=progress.step + 1)
            if stop.after_step():
                break
            if checkpoint and every and not progress.step % every and progress.step < steps.stop:
                log_step(number, events, metrics)
                metrics = {}
                checkpoint(state, progress)
        if metrics:
            log_step(number, events, metrics)
    seconds = time.perf_counter() - start
    report.note_waiting(batches.seconds, seconds)
    return state, progress, events / seconds


def refresh_text(
    context: TrainContext, state: TrainState, interruptible: Runner = uninterrupted
) -> TrainState:
    """The state with all text vectors encoded again, if the text encoder trains.

    Args:
        interruptible: as in `Evaluator`.
    """
    if context.arrays.finetuned_text is None:
        return state
    own, local = process_local(context, state)
    finetuned = own.arrays.finetuned_text
    tower = context.definition.merge(local.params).text_tower
    if finetuned is None or tower is None:
        return state
    vectors = interruptible(lambda: encode_finetuned_text(tower, finetuned))
    # from the host, because JAX moves no array of a process to the devices of others
    text = np.asarray(local.text.at[: len(vectors)].set(vectors))
    return replace(state, text=jax.device_put(text, state.text.sharding))


def save(
    context: TrainContext,
    manager: CheckpointManager,
    state: TrainState,
    progress: Progress,
    scores: dict[str, float] | None = None,
) -> None:
    """Save the state, its position in the data and the vectors of all nodes.

    Raises a Diverged, and saves nothing, if a parameter is not finite.
    """
    number = int(state.step)
    refuse_not_finite(state.params, number)
    if scores is None and progress.step == context.packing.steps_per_epoch:
        number -= 1  # a number is saved once, and this state is saved again when it is validated
    rest = {"step": state.step, "opt_state": state.opt_state}
    vectors = {"nodes": catalog_vectors(context, state), "text": state.text}
    run_directory.save(manager, number, state.params, rest, vectors, progress, scores)
