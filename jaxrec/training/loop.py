"""The training loop: epochs of steps, each validated and saved."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array
from orbax.checkpoint import CheckpointManager

from jaxrec.artifacts import run_directory
from jaxrec.artifacts.run_directory import Progress
from jaxrec.compiler import FUSION_OPTIONS
from jaxrec.errors import Interrupted
from jaxrec.inference.text_features import encode_finetuned_text
from jaxrec.partitioning import on_mesh
from jaxrec.processes import from_first
from jaxrec.sharding import USERS
from jaxrec.training import logging as report
from jaxrec.training import shops
from jaxrec.training.checkpoints import save
from jaxrec.training.context import StepContext, TrainContext
from jaxrec.training.evaluator import validate
from jaxrec.training.finite import NOT_FINITE, refuse_divergence
from jaxrec.training.prefetch import Timed, prefetch
from jaxrec.training.privacy.budget import spent
from jaxrec.training.privacy.sampling import users_at_a_time
from jaxrec.training.privacy.step import build_private_step
from jaxrec.training.state import process_local, state_layout, text_on_process
from jaxrec.training.step import TrainState, build_step
from jaxrec.training.stopping import AgreedStop, Runner, Stopped, stop_signal, uninterrupted
from jaxrec.training.tasks.base import TrainArrays
from jaxrec.types import Batch


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
                scores = selected or validation_scores(context, state, stop.interruptible)
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


def validation_scores(
    context: TrainContext, state: TrainState, interruptible: Runner = uninterrupted
) -> dict[str, float]:
    """Metrics on the validation queries, of all shops if there are several.

    All processes get those of the first, so that unlike machines select the same epoch.
    """
    measure = shops.validate_shops if context.shops else validate
    scores = measure(*process_local(context, state), interruptible)
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
    local, finetuned = text_on_process(context, state)
    tower = context.definition.merge(local.params).text_tower
    if finetuned is None or tower is None:
        return state
    vectors = interruptible(lambda: encode_finetuned_text(tower, finetuned))
    # from the host, because JAX moves no array of a process to the devices of others
    text = np.asarray(local.text.at[: len(vectors)].set(vectors))
    return replace(state, text=jax.device_put(text, state.text.sharding))
