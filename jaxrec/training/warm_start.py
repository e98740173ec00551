"""A run that goes on from an earlier one, its base: what it takes over, and what it refuses."""

from dataclasses import dataclass, fields, replace
from pathlib import Path

import jax
import numpy as np

from jaxrec.artifacts import run_directory
from jaxrec.artifacts.catalog_files import NEVER, RunArtifacts
from jaxrec.config import Config
from jaxrec.data.carry_over import Carried
from jaxrec.data.events import seconds_of
from jaxrec.errors import ConfigError, DataError, RunError
from jaxrec.inference.loading import abstract_model, refuse_unfinished
from jaxrec.sharding import laid_out, replicated
from jaxrec.training.context import TrainContext
from jaxrec.training.growth import grown_state, row_maps
from jaxrec.training.optimizer import make_optimizer
from jaxrec.training.step import TrainState

MIN_CALIBRATION_EVENTS = 256
# a text encoder is compared by the content of its files
FREE_OPTIONS = (
    *("dropout", "id_dropout", "temperature", "pretrained", "max_tokens", "finetune_items"),
    *("cooccurrence", "cooccurrence_users", "similar_text"),
)


@dataclass(frozen=True)
class Base:
    """The run that a warm start goes on from."""

    directory: Path  # the weights that serve
    config: Config
    artifacts: RunArtifacts


def open_base(config: Config) -> Base:
    """The base of a configuration.

    Raises:
        RunError: there is no such run, or one of another version.
        ConfigError: an option of the model differs from that of the base.
    """
    directory = run_directory.served(Path(config.warm_start.base))
    earlier = run_directory.read_config(directory)
    base = Base(directory, earlier, run_directory.read_artifacts(directory))
    refuse_unfinished(directory)
    _refuse_other_model(config, base)
    return base


def refuse_transferred(run: Path, artifacts: RunArtifacts) -> None:
    """Raise a RunError if a run is what `jaxrec transfer` wrote, which has no training to go on."""
    if artifacts.trained_until == NEVER:
        raise RunError(
            f"{run} has seen no event of its shop; begin with jaxrec train --from {run} --data DIR"
        )


def with_since(config: Config, artifacts: RunArtifacts) -> Config:
    """The configuration with the time that divides old from new events, in seconds.

    Raises:
        ConfigError: `warm_start.since` is no time, or is missing and the base does not know it, or
            is given though all events are new.
        DataError: times are only positions.
    """
    if artifacts.trained_until == NEVER:
        if config.warm_start.since not in ("", str(NEVER)):
            raise ConfigError(
                f"{config.warm_start.base} has seen no event of this shop, so all of them are new; "
                "leave --since out"
            )
        return replace(config, warm_start=replace(config.warm_start, since=str(NEVER)))
    if config.data.time == "order":
        raise DataError(
            "data.time is `order`, so a warm start cannot tell new events from old ones; give real "
            "timestamps, or train without --from"
        )
    given = config.warm_start.since
    since = artifacts.trained_until if not given else seconds_of(given, "warm_start.since")
    if since is None:
        raise ConfigError(
            f"{config.warm_start.base} does not say up to when it was trained: it is private, or "
            "an older version wrote it; give --since TIME"
        )
    return replace(config, warm_start=replace(config.warm_start, since=str(since)))


def carried(config: Config, artifacts: RunArtifacts) -> Carried:
    """The data side of the base, or of the run itself when it is resumed."""
    return Carried(
        artifacts.catalog,
        artifacts.has_trained_id | (artifacts.counts > 0),
        artifacts.has_trained_id,
        artifacts.event_type_names,
        since=int(config.warm_start.since),
        drop_items=config.warm_start.drop_items,
    )


def start(context: TrainContext) -> TrainState:
    """The state of the base, grown to the data of a context.

    Raises:
        RunError: the base cannot be read.
        ConfigError: an option of the model differs from that of the base.
    """
    base = open_base(context.config)
    _, shapes = abstract_model(base.config, base.artifacts)
    opt_state = jax.eval_shape(make_optimizer(base.config.train, 1).init, shapes)
    rest = {"step": jax.ShapeDtypeStruct((), np.int32), "opt_state": opt_state}
    place = replicated(context.mesh)
    _, saved = run_directory.restore_best(
        base.directory, params=laid_out(shapes, place), rest=laid_out(rest, place)
    )
    rows = row_maps(base.artifacts, context)
    return grown_state(context, saved["params"], saved["rest"]["opt_state"], rows)


def keeps_calibration(context: TrainContext) -> bool:
    """Whether a warm start has too few validation events to fit corrections, and keeps the base's.

    Fitted on the few users of a day, they made the lists of unchanged weights worse.
    """
    few = len(context.dataset.split.validation) < MIN_CALIBRATION_EVENTS
    return bool(context.config.warm_start.base) and few


def _refuse_other_model(config: Config, base: Base) -> None:
    for section in ("model", "text"):
        new, old = getattr(config, section), getattr(base.config, section)
        for option in fields(new):
            wanted, has = getattr(new, option.name), getattr(old, option.name)
            if wanted != has and option.name not in FREE_OPTIONS:
                raise ConfigError(
                    f"{section}.{option.name} is {_shown(wanted)}, but {_shown(has)} in the base "
                    f"{base.directory}, and a warm start keeps it; leave the option as it is, or "
                    "train without --from"
                )


def _shown(value: object) -> str:
    return " ".join(value) if isinstance(value, tuple) else str(value)
