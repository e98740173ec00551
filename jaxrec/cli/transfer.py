"""`jaxrec transfer`: a run for another shop."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import jax.numpy as jnp
import tyro
from flax import nnx

from jaxrec.artifacts import run_directory
from jaxrec.artifacts.files import write_json
from jaxrec.artifacts.run_directory import Progress
from jaxrec.config import WarmStartConfig, parse_options
from jaxrec.config.ranges import Bounded
from jaxrec.data.opener import read_table
from jaxrec.errors import RunError
from jaxrec.inference import loading
from jaxrec.inference.neighbours_file import write_neighbours
from jaxrec.inference.trained_model import TrainedModel
from jaxrec.runtime import enable_compilation_cache
from jaxrec.training import cards
from jaxrec.training import logging as report
from jaxrec.training.optimizer import make_optimizer


@dataclass(frozen=True, kw_only=True)
class TransferOptions(Bounded):
    """Make a run for another shop from a trained one, without training. The new run ranks the items
    of that shop by what is known beside their ids: text, graph, vectors and numbers. All commands
    take it; `jaxrec train --from OUT` then trains it on the events of the shop."""

    run: tyro.conf.Positional[Path]
    """A run directory of `jaxrec train`."""
    items: Path
    """The items table of the other shop."""
    triples: Path | None = None
    """More graph edges of its items."""
    out: Path
    """The run directory to write."""


def run(arguments: Sequence[str]) -> None:
    """Make a run as the arguments say."""
    transfer(parse_options(TransferOptions, arguments, "jaxrec transfer"))


def transfer(options: TransferOptions) -> None:
    """Make a run for another shop.

    Raises:
        RunError: the run cannot be read, its training has not ended, or the new one exists.
        DataError, InputError: as `TrainedModel.for_shop`.
    """
    if options.out.exists():
        raise RunError(f"{options.out} exists; name another --out directory")
    run_directory.refuse_existing(options.out)
    enable_compilation_cache()
    loading.refuse_unfinished(run_directory.served(options.run))
    model = loading.load(options.run)
    triples = None if options.triples is None else read_table(options.triples)
    shop = model.for_shop(read_table(options.items), triples)
    write_run(shop, options)
    report.print_notes(shop.notes)
    report.console.print(f"the model of the other shop is in {options.out}")


def write_run(model: TrainedModel, options: TransferOptions) -> None:
    """Write a model of `for_shop` as a run directory, with its cards and the calibration of its
    origin."""
    data = replace(model.config.data, source=str(options.items), shops={}, layout="", forgotten="")
    config = replace(model.config, data=data, warm_start=WarmStartConfig())
    run_directory.create_run(options.out, config, model.artifacts)
    params = nnx.state(model.model.merge())
    rest = {
        "step": jnp.asarray(model.step, jnp.int32),
        "opt_state": make_optimizer(config.train, 1).init(params),
    }
    vectors = {"nodes": model.index.vectors, "text": jnp.asarray(model.index.text)}
    scores = {run_directory.SELECTED_BY: 0.0}  # no event of the shop has been ranked
    progress = Progress(history=(scores,))
    with run_directory.open_checkpoints(options.out) as manager:
        run_directory.save(manager, model.step, params, rest, vectors, progress, scores)
    write_neighbours(options.out, model.neighbours)
    calibration = {
        "inverse_temperature": model.inverse_temperature,
        "correction": asdict(model.correction),
    }
    base = options.run.resolve().name
    cards.write_transferred_cards(options.out, model, f"`{options.items.name}`", base)
    write_json(options.out / run_directory.CALIBRATION, calibration)
