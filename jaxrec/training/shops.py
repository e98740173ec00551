"""Several shops in one training: what each of them has of it, its figures and its run directory."""

import shutil
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import polars as pl
from jaxtyping import Int

from jaxrec.artifacts import run_directory
from jaxrec.artifacts.files import write_json
from jaxrec.artifacts.run_directory import (
    CALIBRATION,
    NEIGHBOURS,
    REFIT,
    SELECTED_BY,
    SHOPS,
    Progress,
)
from jaxrec.data.dataset import Dataset, shop_data
from jaxrec.data.graph_arrays import first_rows
from jaxrec.evaluation.calibration import Correction
from jaxrec.inference.loading import read_calibration
from jaxrec.inference.text_features import ItemText
from jaxrec.models.build import model_layout
from jaxrec.processes import from_first
from jaxrec.sharding import put, shardings
from jaxrec.training import cards
from jaxrec.training import logging as report
from jaxrec.training.arrays import train_arrays
from jaxrec.training.artifacts import run_artifacts
from jaxrec.training.batches import make_packing
from jaxrec.training.calibration_file import (
    calibration_fields,
    copied_calibration,
    write_calibration,
)
from jaxrec.training.context import TrainContext, model_sizes
from jaxrec.training.cost import Meter
from jaxrec.training.evaluator import calibrate, protocol_facts, test, test_metrics, validate
from jaxrec.training.forecast import fit_decoder
from jaxrec.training.growth import moved_params, row_maps
from jaxrec.training.state import catalog_vectors, state_layout
from jaxrec.training.step import TrainState
from jaxrec.training.stopping import Runner, uninterrupted


def with_shops(context: TrainContext) -> TrainContext:
    """A context with that of each of its shops, whose catalogue and events are the shop's alone.

    All of them have the text vectors and the feature maps of the joint training.
    """
    shops = context.dataset.shops
    rows = item_rows(list(shops.values()))
    contexts = {
        name: _shop_context(context, name, shop, own_rows)
        for (name, shop), own_rows in zip(shops.items(), rows, strict=True)
    }
    return replace(context, shops=contexts)


def item_rows(shops: list[Dataset]) -> list[Int[np.ndarray, " I"]]:
    """The rows that the items of each shop, row 0 included, have in the joint catalogue."""
    counts = [shop.catalog.num_items - 1 for shop in shops]
    firsts = first_rows(counts)
    return [
        np.concatenate([[0], first + 1 + np.arange(count)])
        for first, count in zip(firsts, counts, strict=True)
    ]


def _shop_context(
    context: TrainContext, name: str, dataset: Dataset, rows: Int[np.ndarray, " I"]
) -> TrainContext:
    config, text = context.config, _some_text(context.text, rows)
    own = replace(config, data=shop_data(config.data, name), train=replace(config.train, init=""))
    sizes = model_sizes(own, dataset, text, context.features)
    definition, _ = model_layout(own, sizes, text.tower)
    packing = make_packing(own, dataset)
    arrays = train_arrays(own, dataset, text, context.features, packing)
    return replace(
        context,
        config=own,
        sizes=sizes,
        dataset=dataset,
        text=text,
        definition=definition,
        packing=packing,
        arrays=put(arrays, shardings(arrays, context.mesh)),
        notes=(),
    )


def _some_text(text: ItemText, rows: Int[np.ndarray, " I"]) -> ItemText:
    finetuned = text.finetuned
    if finetuned is not None:
        finetuned = replace(finetuned, hidden=finetuned.hidden[rows], mask=finetuned.mask[rows])
    return replace(text, vectors=text.vectors[rows], finetuned=finetuned)


def shop_states(context: TrainContext, state: TrainState) -> dict[str, TrainState]:
    """The state of every shop's context, without its optimiser state: the rows of its own nodes."""
    joint = run_artifacts(context)
    rows = item_rows([shop.dataset for shop in context.shops.values()])
    states = {}
    for (name, shop), items in zip(context.shops.items(), rows, strict=True):
        layout = state_layout(shop)[0]
        params = moved_params(layout.params, state.params, row_maps(joint, shop))
        padding = len(shop.valid) - len(items)
        text = jnp.pad(jnp.take(state.text, jnp.asarray(items), axis=0), ((0, padding), (0, 0)))
        states[name] = TrainState(state.step, params, (), text)
    return states


def validate_shops(
    context: TrainContext, state: TrainState, interruptible: Runner = uninterrupted
) -> dict[str, float]:
    """The metrics of all validation queries, each among the items of its shop, and of each shop.

    Args:
        interruptible: see `Evaluator`.
    """
    states = shop_states(context, state)
    scores = {
        name: validate(shop, states[name], interruptible) for name, shop in context.shops.items()
    }
    rows = list(scores.values())
    counts = [row["count"] for row in rows]
    mean = {
        metric: float(np.average([row[metric] for row in rows], weights=counts))
        for metric in rows[0]
    }
    of_shops = {f"{name}/{SELECTED_BY}": row[SELECTED_BY] for name, row in scores.items()}
    return {**mean, "count": sum(counts), **of_shops}


def finish(
    context: TrainContext, state: TrainState, selected: Progress, run: Path, meter: Meter
) -> dict[str, Any]:
    """Calibrate and test every shop by itself, and write the results and a run directory for each.

    Args:
        meter: of the joint training.

    Returns:
        The content of `metrics.json`: that of every shop by its name, and `selected`, the means of
        the selected epoch.
    """
    states = shop_states(context, state)
    shops: dict[str, Any] = {}
    ranks = []
    for name, shop in context.shops.items():
        begin = partial(_begin_shop, shop, states[name], run / SHOPS / name)
        shops[name], table = test(shop, states[name], Correction.of(from_first(begin)))
        shops[name]["protocol"]["trained_with"] = [n for n in context.shops if n != name]
        ranks.append(table.with_columns(shop=pl.lit(name)))
    results: dict[str, Any] = {
        "protocol": protocol_facts(context.config),
        "shops": shops,
        "selected": {"epoch": selected.epoch, **selected.history[-1]},
        "serves": "selected" if run_directory.served(run) == run else REFIT,
    }

    def write() -> dict[str, Any]:
        report.draw_plots(run, None)
        report.write_results(run, results, pl.concat(ranks))
        for name, shop in context.shops.items():
            card = {**shops[name], "selected": results["selected"]}
            _end_shop(shop, states[name], card, run / SHOPS / name, meter)
        cards.write_joint_cards(run, context, results, meter)
        write_json(run / CALIBRATION, mean_calibration([run / SHOPS / name for name in shops]))
        report.console.print(f"the model of all shops is in {run}")
        return results

    return from_first(write)


def _begin_shop(context: TrainContext, state: TrainState, run: Path) -> dict[str, Any]:
    """Write the run directory of a shop with its calibration; returns fields of a `Correction`."""
    if not (run / CALIBRATION).is_file():
        write_run(context, state, run)
    return write_calibration(context, run, calibration_fields(*calibrate(context, state)))


def _end_shop(
    context: TrainContext, state: TrainState, results: dict[str, Any], run: Path, meter: Meter
) -> None:
    """Write the cards of a shop and train its decoder, if the options ask for one."""
    cards.write_data_card(run, context, f"`{Path(context.config.data.source).name}`")
    cards.write_model_card(run, context, results, meter, run.parent.parent)
    fit_decoder(context, state, run, read_calibration(run)[0])
    report.console.print(f"the model of {run.name} is in {run}")


def test_shops(context: TrainContext, state: TrainState, run: Path) -> dict[str, Any]:
    """The metrics of a refit on the test events of every shop."""
    states = shop_states(context, state)
    return {
        name: test_metrics(shop, states[name], read_calibration(run / SHOPS / name)[1])
        for name, shop in context.shops.items()
    }


def write_refits(context: TrainContext, state: TrainState, run: Path) -> None:
    """Write the refit of every shop."""
    states = shop_states(context, state)
    for name, shop in context.shops.items():
        directory = run / SHOPS / name / REFIT
        write_run(shop, states[name], directory)
        write_fitted(shop, states[name], directory)


def write_fitted(context: TrainContext, state: TrainState, refit: Path) -> None:
    """Write a refit's decoder and the calibration of its run; from now on the refit serves."""
    fields = copied_calibration(refit.parent)
    fit_decoder(context, state, refit, fields["inverse_temperature"])
    write_calibration(context, refit, fields)


def write_run(context: TrainContext, state: TrainState, run: Path) -> None:
    """Write a state as a run directory, in place of what an interrupted command left there."""
    shutil.rmtree(run, ignore_errors=True)
    run_directory.create_run(run, context.config, run_artifacts(context))
    rest = {"step": state.step, "opt_state": context.optimizer.init(state.params)}
    vectors = {"nodes": catalog_vectors(context, state), "text": state.text}
    scores, step = {SELECTED_BY: 0.0}, int(state.step)
    progress = Progress(history=(scores,))
    with run_directory.open_checkpoints(run) as manager:
        run_directory.save(manager, step, state.params, rest, vectors, progress, scores)


def mean_calibration(runs: list[Path]) -> dict[str, Any]:
    """The calibration of a shop of which no event is known; scales are averaged as logarithms."""
    scales, corrections = zip(*map(read_calibration, runs), strict=True)
    rows = [asdict(correction) for correction in corrections]
    return {
        "inverse_temperature": float(np.exp(np.mean(np.log(scales)))),
        "correction": {
            name: float(np.mean([row[name] for row in rows]))
            for name in rows[0]
            if name not in NEIGHBOURS  # which are those of the items of a shop
        },
    }
