"""Continued pre-training of a text encoder on the texts of a data set."""

import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Int

from jaxrec.artifacts.files import locked
from jaxrec.config import Config, TrainConfig
from jaxrec.data.dataset import prepare
from jaxrec.data.tables import Tables
from jaxrec.data.text import resolve_pretrained
from jaxrec.errors import ConfigError, Diverged, Interrupted
from jaxrec.models.text.language_model import LanguageModel, load_language_model
from jaxrec.training import logging as report
from jaxrec.training.optimizer import make_optimizer
from jaxrec.training.pretraining.base import PretrainingTask
from jaxrec.training.pretraining.build import build_tasks
from jaxrec.training.pretraining.checkpoint import (
    open_progress,
    refuse_filled,
    save_progress,
    write_checkpoint,
)
from jaxrec.training.pretraining.options import PretrainOptions
from jaxrec.training.stopping import stop_signal


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PretrainState:
    """What training changes."""

    step: Int[Array, ""]
    params: nnx.State  # those that train
    opt_state: optax.OptState


@dataclass(frozen=True)
class Pretraining:
    """A text encoder, its tasks, and the parameters that do not train."""

    options: PretrainOptions
    tasks: tuple[PretrainingTask, ...]
    definition: nnx.GraphDef
    frozen: nnx.State
    optimizer: optax.GradientTransformation
    steps_per_epoch: int

    def merge(self, params: nnx.State, frozen: nnx.State) -> LanguageModel:
        """The model with these parameters."""
        return nnx.merge(self.definition, params, frozen)

    def batches(self, step: int) -> dict[str, Any]:
        """A batch of every task."""
        size = self.options.batch_size
        return {task.name: task.batch(task.examples.at(step, size)) for task in self.tasks}


def pretrain(
    config: Config, options: PretrainOptions, out: Path, *, tables: Tables | None = None
) -> list[dict[str, float]]:
    """Train the encoder `config.text.pretrained` further, and write it as a checkpoint to `out`.

    Examples are items and events that `jaxrec train` trains on with the same data and split
    options; events that it holds out are not read.

    Args:
        config: options of `jaxrec train`.
        tables: data in memory, instead of `config.data.source`.

    Returns:
        The held-out loss of every task before training and after each epoch.

    Raises:
        ConfigError: the options name several shops.
        RunError: `out` is not empty. An interrupted pre-training with the same options continues.
        DataError: the data have no text, or too few examples.
        CheckpointError: the checkpoint cannot be used.
        Interrupted: Ctrl-C or SIGTERM; the same command continues.
        Diverged: the loss is not finite.
    """
    refuse_filled(out)  # before the data are read
    if config.data.shops:
        raise ConfigError("data.shops: a text encoder is pre-trained on one shop; name its --data")
    dataset = prepare(config, tables)
    report.print_notes(dataset.notes)
    source = resolve_pretrained(config.text.pretrained)
    weights = options.tasks
    with_head = bool(weights.tokens or weights.behaviour)
    dtype = jnp.bfloat16 if options.bf16 else jnp.float32
    model = load_language_model(source, config.text.pooling, with_head=with_head, dtype=dtype)
    tasks = build_tasks(config, options, dataset, source, causal=model.encoder.causal)
    context, state = prepare_training(model, tasks, options, int(dataset.trained.sum()))
    identity = {
        "pretrain": asdict(options),
        **{name: asdict(getattr(config, name)) for name in ("data", "split", "text")},
        "examples": [len(task.examples.train) for task in tasks],
    }
    with locked(out):
        state, history = open_progress(out, identity, state)
        save = partial(save_progress, out, identity)
        state, history = train(context, state, history, save)
        write_checkpoint(context.merge(state.params, context.frozen), source, out)
    report.console.print(f"the text encoder is in {out}: jaxrec train --text.pretrained {out}")
    return history


def prepare_training(
    model: LanguageModel,
    tasks: tuple[PretrainingTask, ...],
    options: PretrainOptions,
    num_items: int,
) -> tuple[Pretraining, PretrainState]:
    """The context and the state before the first step.

    Args:
        num_items: number of items of an epoch.

    Raises:
        ConfigError: more layers should train than the encoder has.
    """
    available = len(model.encoder.blocks)
    if options.layers > available:
        raise ConfigError(
            f"layers={options.layers}, but the encoder has {available} layers; 0 trains all of it"
        )
    first = available - options.layers if options.layers else 0

    def trains(path: tuple, value: Any) -> bool:
        if path[:2] == ("encoder", "blocks"):
            return path[2] >= first
        return not options.layers or path[0] == "head" or path[1] == "final_norm"

    definition, *states = nnx.split(model, trains, ...)
    params, frozen = states
    steps = -(-num_items // options.batch_size)
    schedule = TrainConfig(learning_rate=options.learning_rate, seed=options.seed)
    optimizer = make_optimizer(schedule, steps * options.epochs)
    context = Pretraining(options, tasks, definition, frozen, optimizer, steps)
    return context, PretrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def train(
    context: Pretraining,
    state: PretrainState,
    history: list[dict[str, float]],
    save: Callable[[list[dict[str, float]], PretrainState], None],
) -> tuple[PretrainState, list[dict[str, float]]]:
    """Train the remaining steps; save after every epoch, every `checkpoint_steps` steps, and when
    a signal stops it."""
    step, losses = make_step(context), make_losses(context)
    with stop_signal() as stop:
        if not history:
            history = [held_out_losses(context, state, losses)]
            report_losses("before", history[-1])
        for epoch in range(len(history) - 1, context.options.epochs):
            state = train_epoch(context, step, state, epoch, stop, partial(save, history))
            if int(state.step) == (epoch + 1) * context.steps_per_epoch:
                history = [*history, held_out_losses(context, state, losses)]
                report_losses(f"epoch {epoch + 1}", history[-1])
            save(history, state)
            if stop.is_set():
                stopped = Interrupted(128 + stop.number)
                stopped.add_note("repeat the command to continue")
                raise stopped
    return state, history


def train_epoch(
    context: Pretraining,
    step: Callable[..., tuple[PretrainState, Array]],
    state: PretrainState,
    epoch: int,
    stop: threading.Event,
    save: Callable[[PretrainState], None],
) -> PretrainState:
    """Train the remaining steps of an epoch, or until `stop` is set."""
    end, every = (epoch + 1) * context.steps_per_epoch, context.options.checkpoint_steps
    with report.epoch_bar(epoch, end - int(state.step)) as advance:
        for number in range(int(state.step), end):
            if stop.is_set():
                break
            state, loss = step(state, context.frozen, context.batches(number))
            if not np.isfinite(loss):
                raise Diverged(f"the loss is {loss} at step {number}; lower learning_rate")
            advance(float(loss), 0.0)
            if every and (number + 1) % every == 0:
                save(state)
    return state


def make_step(context: Pretraining) -> Callable[..., tuple[PretrainState, Array]]:
    """The jitted step `(state, frozen, batches) -> (state, loss)`; it donates the state."""

    def step(state: PretrainState, frozen: nnx.State, batches: dict[str, Any]):
        key = jax.random.fold_in(jax.random.key(context.options.seed), state.step)

        def loss_of(params: nnx.State) -> Array:
            losses = task_losses(context.tasks, context.merge(params, frozen), batches, key)
            return sum((task.weight * losses[task.name] for task in context.tasks), jnp.zeros(()))

        loss, gradients = jax.value_and_grad(loss_of)(state.params)
        updates, opt_state = context.optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return PretrainState(state.step + 1, params, opt_state), loss

    return jax.jit(step, donate_argnums=0)


def task_losses(
    tasks: tuple[PretrainingTask, ...], model: LanguageModel, batches: dict[str, Any], key: Array
) -> dict[str, Array]:
    """The loss of each task that has a batch."""
    return {
        task.name: task.loss(model, batches[task.name], jax.random.fold_in(key, number))
        for number, task in enumerate(tasks)
        if task.name in batches
    }


def make_losses(context: Pretraining) -> Callable[..., dict[str, Array]]:
    """The jitted losses `(params, frozen, batches, number) -> losses`, by task."""

    @jax.jit
    def losses(params: nnx.State, frozen: nnx.State, batches: dict[str, Any], number: Array):
        key = jax.random.fold_in(jax.random.key(0), number)
        return task_losses(context.tasks, context.merge(params, frozen), batches, key)

    return losses


def held_out_losses(
    context: Pretraining, state: PretrainState, losses: Callable[..., dict[str, Array]]
) -> dict[str, float]:
    """The mean loss of every task on its held-out examples, always with the same masks."""

    def mean(task: PretrainingTask) -> float:
        batches = map(task.batch, task.examples.held_out_batches(context.options.batch_size))
        values = [
            losses(state.params, context.frozen, {task.name: batch}, number)[task.name]
            for number, batch in enumerate(batches)
        ]
        return float(np.mean(values))

    return {task.name: mean(task) for task in context.tasks}


def report_losses(when: str, losses: dict[str, float]) -> None:
    """Print the held-out loss of every task."""
    shown = ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
    report.console.print(f"{when}: held-out loss {shown}")
