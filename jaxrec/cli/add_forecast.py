"""`jaxrec add-forecast`: a decoder for a run that has none."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from jaxrec import api
from jaxrec.config import ForecastConfig, parse_options

DEFAULTS = ForecastConfig()


@dataclass(frozen=True, kw_only=True)
class AddForecastOptions:
    """Train a decoder for the model that a finished run serves, so that the run can forecast. The
    model and its figures stay as they are; a decoder that the run has is replaced."""

    run: tyro.conf.Positional[Path]
    """A run directory of `jaxrec train`."""
    steps: int = 10
    """Events that the decoder learns to forecast."""
    epochs: int = DEFAULTS.epochs
    """Epochs of the decoder."""
    learning_rate: float = DEFAULTS.learning_rate
    """Peak learning rate of the decoder."""
    data: str | None = None
    """Where the data are now, if they have moved."""


def run(arguments: Sequence[str]) -> None:
    """Train as the arguments say."""
    options = parse_options(AddForecastOptions, arguments, "jaxrec add-forecast")
    forecast = ForecastConfig(options.steps, options.epochs, options.learning_rate)
    api.add_forecast(options.run, forecast, data=options.data)
