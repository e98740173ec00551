"""A forecast for a run whose training has ended; its model stays as it is."""

from dataclasses import replace
from pathlib import Path

from jaxrec.artifacts import run_directory
from jaxrec.artifacts.files import locked
from jaxrec.config import ForecastConfig, to_yaml
from jaxrec.data.tables import Tables
from jaxrec.errors import ConfigError
from jaxrec.inference.loading import read_calibration, refuse_unfinished
from jaxrec.runtime import atomic_path
from jaxrec.training.checkpoints import load
from jaxrec.training.fit import open_run
from jaxrec.training.forecast import fit_decoder
from jaxrec.training.refit import refit_events


def add_forecast(
    run: Path, forecast: ForecastConfig, *, source: str = "", tables: Tables | None = None
) -> None:
    """Train a decoder for the model that a run serves, in place of the one that it may have.

    Args:
        source: where the data are now, if they have moved.
        tables: data in memory, instead of those of the run.

    Raises:
        ConfigError: the options ask for no decoder, or do not fit.
        RunError: training has not ended, or the data are others.
        DataError: the data are not usable.
        Diverged: the loss is not finite.
    """
    if not forecast.steps:
        raise ConfigError("steps: give the number of events to forecast, such as 10")
    directory = run_directory.served(run)
    config = replace(run_directory.read_config(directory), forecast=forecast)
    if shops := config.data.shops:
        raise ConfigError(
            f"{run} holds the shops {', '.join(shops)}; name the run directory of one, such as "
            f"{run}/shops/{next(iter(shops))}"
        )
    refuse_unfinished(directory)
    placed = replace(config, data=replace(config.data, source=source or config.data.source))
    refit = None if directory == run else refit_events(config)
    context = open_run(placed, directory, tables, resume=True, refit=refit)
    with locked(run), run_directory.open_checkpoints(directory, read_only=True) as manager:
        state, _ = load(context, manager, manager.best_step())
        fit_decoder(context, state, directory, read_calibration(directory)[0])
        with atomic_path(directory / "config.yaml") as draft:
            draft.write_text(to_yaml(config))
