"""Training of the forecast's decoder, after that of the model.

The model is frozen: its checkpoint, its metrics and its lists are those of a run without a
forecast. The decoder reads the same packed batches and is taught with the true events (teacher
forcing).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxrec.artifacts import run_directory
from jaxrec.artifacts.decoder_file import read_decoder, write_decoder
from jaxrec.config import Config, TrainConfig
from jaxrec.data.dataset import predicted_event_types
from jaxrec.errors import Diverged
from jaxrec.inference.encoding import repeat_bias
from jaxrec.models.inputs import Events
from jaxrec.models.recommender import REPEAT_EVENTS, Model
from jaxrec.models.sequence.decoder import Decoder, new_decoder
from jaxrec.sharding import replicated
from jaxrec.training import logging as report
from jaxrec.training.context import TrainContext
from jaxrec.training.losses.base import LogitAdjustments, mean_of_sum
from jaxrec.training.losses.full_softmax import FullSoftmax
from jaxrec.training.optimizer import make_optimizer
from jaxrec.training.prefetch import prefetch
from jaxrec.training.state import catalog_vectors
from jaxrec.training.step import TrainState
from jaxrec.training.tasks.base import TrainArrays
from jaxrec.training.tasks.build import full_softmax
from jaxrec.training.tasks.next_entity import NextEntity
from jaxrec.types import NEG_INF, STATIC, Batch


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FrozenModel:
    """What the decoder learns from, and does not change."""

    model: Model
    arrays: TrainArrays
    nodes: Float[Array, "N F"]  # vectors of all nodes, items first
    scale: float  # the calibrated inverse temperature, at which shares of interest are drawn
    repeat_bias: Float[Array, "types A"]  # scaled
    is_predicted: Bool[Array, " types"]  # event types that the run predicts
    target_event_type: int
    steps: int = field(metadata=STATIC)
    criterion: FullSoftmax = field(metadata=STATIC)


class Futures(NamedTuple):
    """The events behind P time steps of every row, as the decoder reads and predicts them.

    Step k reads the item of the k-th event behind a time step and predicts that of the next one.
    """

    positions: Int[Array, " P"]
    items: Int[Array, "B P steps"]
    targets: Int[Array, "B P steps"]
    weights: Float[Array, "B P steps"]  # 0 where the history of the window has ended


def fit_decoder(context: TrainContext, state: TrainState, run: Path, scale: float) -> None:
    """Train the decoder of a state and write it into the run, if the options ask for one.

    Args:
        scale: of the scores: the calibrated inverse temperature.

    Raises:
        Diverged: the loss is not finite.
    """
    config = context.config
    if not config.forecast.steps:
        return
    epochs, steps = config.forecast.epochs, context.packing.steps_per_epoch
    frozen = frozen_model(context, state, scale)
    place = replicated(context.mesh)
    decoder = jax.device_put(first_decoder(config, frozen.nodes.shape[1]), place)
    optimizer = decoder_optimizer(config.train, config.forecast.learning_rate, epochs * steps)
    opt_state = jax.device_put(optimizer.init(decoder.params), place)
    step, random = make_step(optimizer), np.random.default_rng(config.train.seed)
    for epoch in range(epochs if steps else 0):
        losses = []
        for batch, _ in prefetch(context, epoch, range(steps)):
            first = random.integers(config.forecast.steps)
            decoder, opt_state, loss = step(decoder, opt_state, frozen, batch, first)
            losses.append(loss)
        mean = float(np.mean(jax.device_get(losses)))
        if not np.isfinite(mean):
            raise Diverged(
                f"the loss of the forecast is {mean}; the model is kept, without a decoder. Try a "
                "lower learning rate: jaxrec add-forecast RUN --learning-rate"
            )
        report.console.print(f"forecast, epoch {epoch + 1}: loss {mean:.4f}")
    write_decoder(run, decoder, int(state.step))


def first_decoder(config: Config, width: int) -> Decoder:
    """The decoder to train: that of the base of a warm start, or else a new one."""
    base, steps = config.warm_start.base, config.forecast.steps
    earlier = read_decoder(run_directory.served(Path(base)), None, width) if base else None
    if earlier is not None:
        return replace(earlier, steps=steps)
    return new_decoder(width, steps, config.train.seed)


def decoder_optimizer(
    config: TrainConfig, learning_rate: float, steps: int
) -> optax.GradientTransformation:
    """The optimizer of the model with another learning rate."""
    return make_optimizer(replace(config, learning_rate=learning_rate), steps)


def frozen_model(context: TrainContext, state: TrainState, scale: float) -> FrozenModel:
    """The model of a state; `scale` as in `fit_decoder`."""
    config, dataset = context.config, context.dataset
    model = Model(context.definition, nnx.to_pure_dict(state.params))
    names = dataset.split.log.event_type_names
    predicted = predicted_event_types(config, names)
    return FrozenModel(
        model=model,
        arrays=context.arrays,
        # the step of the decoder is not divided along `items`
        nodes=jax.device_put(catalog_vectors(context, state), replicated(context.mesh)),
        scale=scale,
        repeat_bias=jnp.asarray(scale * repeat_bias(model, dataset.target_event_type)),
        is_predicted=jnp.array([name in predicted for name in names]),
        target_event_type=dataset.target_event_type,
        steps=config.forecast.steps,
        criterion=full_softmax(config.train),
    )


def make_step(optimizer: optax.GradientTransformation) -> Callable[..., Any]:
    """The jitted step (decoder, opt_state, frozen, batch, first) -> (decoder, opt_state, loss)."""

    def step(decoder: Decoder, opt_state, frozen: FrozenModel, batch: Batch, first):
        loss, gradients = jax.value_and_grad(forecast_loss)(decoder, frozen, batch, first)
        updates, opt_state = optimizer.update(gradients.params, opt_state, decoder.params)
        params = optax.apply_updates(decoder.params, updates)
        return replace(decoder, params=params), opt_state, loss

    return jax.jit(step, donate_argnums=(0, 1))


def forecast_loss(
    decoder: Decoder, frozen: FrozenModel, batch: Batch, first: Int[Array, ""] | int
) -> Float[Array, ""]:
    """The mean loss of the items of the next events, and of their brands, categories and so on.

    It is that of the model: a softmax over the items, with the masks and repeat biases of the
    history that the user vector has read. Scores have the temperature of the forecast: at another
    one, its shares would not be probabilities.

    Args:
        first: the first time step that events are forecast at.
    """
    futures = future_events(batch, first, frozen.steps, frozen.is_predicted)
    items = frozen.nodes[: len(frozen.arrays.candidates)]
    users = history_vectors(frozen, items, batch)[:, futures.positions]
    size, count, steps = futures.items.shape
    module, rows = decoder.merge(), users.reshape(size * count, -1)
    read = items[futures.items].reshape(size * count, steps, -1)
    vectors = frozen.scale * module.read(rows, read, module.start(rows))[0]
    shape = (size, count * steps)
    vectors = vectors.reshape(*shape, -1)
    targets, weights = futures.targets.reshape(shape), futures.weights.reshape(shape)
    total = frozen.criterion(
        vectors,
        items,
        targets,
        weights,
        frozen.arrays.candidates,
        adjustments(frozen, batch, futures),
    )
    loss = mean_of_sum(total, weights)
    for task in frozen.arrays.tasks:
        if isinstance(task, NextEntity):
            entities = task.entity_of_item[targets]
            known = weights * (entities > 0)
            nodes = frozen.nodes[task.nodes]
            total = frozen.criterion(vectors, nodes, entities, known, task.valid)
            loss += task.weight * mean_of_sum(total, known)
    return loss


def history_vectors(
    frozen: FrozenModel, items: Float[Array, "I F"], batch: Batch
) -> Float[Array, "B T F"]:
    """User vectors after every event of a batch, as the model serves them."""
    recommender = frozen.model.merge()
    events = Events(batch.items, batch.event_types, batch.gaps)
    states = recommender.initial_state(len(batch.items))
    outputs, _ = recommender.update(states, items, events, jnp.asarray(batch.starts))
    event_types = jnp.full(batch.items.shape, frozen.target_event_type)
    return jax.lax.stop_gradient(recommender.user_vectors(outputs, event_types))


def future_events(
    batch: Batch, first: Int[Array, ""] | int, steps: int, is_predicted: Bool[Array, " types"]
) -> Futures:
    """The next events behind every `steps`-th time step of a batch.

    A window ends at the training events of its user, so no held-out event is among them.

    Args:
        first: the first time step, below `steps`.
        steps: events to forecast; the first one is the target of the model itself.
    """
    length = batch.items.shape[1]
    positions = first + steps * jnp.arange(length // steps)
    later = positions[:, None] + jnp.arange(1, steps)[None]  # [P, steps - 1]
    inside = jnp.minimum(later, length - 1)
    sequence = jnp.cumsum(jnp.asarray(batch.starts), 1)
    same = (sequence[:, inside] == sequence[:, positions, None]) & (later < length)[None]
    counted = jnp.asarray(batch.weights) * is_predicted[jnp.asarray(batch.target_event_types)]
    return Futures(
        positions,
        jnp.asarray(batch.items)[:, inside],
        jnp.asarray(batch.targets)[:, inside],
        jnp.where(same, counted[:, inside], 0),
    )


def adjustments(frozen: FrozenModel, batch: Batch, futures: Futures) -> LogitAdjustments:
    """What the events before each step of a forecast change in its logits.

    All of them mask their items; the repeat bias is that of the history, as in a roll-out.
    """
    arrays, length = frozen.arrays, batch.items.shape[1]
    sequence = jnp.cumsum(jnp.asarray(batch.starts), 1)
    # [P, T]; below 0 behind the history
    ages = futures.positions[:, None] - jnp.arange(length)[None]
    further = 1 + jnp.arange(futures.targets.shape[2])  # events that each step has read
    read = (ages[:, None] >= -further[None, :, None])[None]  # [1, P, steps, T]
    own = sequence[:, futures.positions, None] == sequence[:, None]  # [B, P, T]
    present = own[:, :, None] & read
    items = jnp.where(present, jnp.asarray(batch.items)[:, None, None], 0)
    masked = arrays.masked_event_types[jnp.asarray(batch.event_types)][:, None, None]
    masked_items = masked & (items != futures.targets[..., None])
    recent = jnp.clip(ages, 0, REPEAT_EVENTS - 1)
    bias = frozen.repeat_bias[jnp.asarray(batch.event_types)[:, None], recent[None]]  # [B, P, T]
    bias = jnp.where((ages >= 0) & (ages < REPEAT_EVENTS), bias, 0)[:, :, None]
    amounts = jnp.where(masked_items, NEG_INF, jnp.where(masked, 0, bias))
    shape = (len(items), -1, length)
    return LogitAdjustments(items.reshape(shape), amounts.reshape(shape))
