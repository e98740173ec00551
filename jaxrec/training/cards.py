"""The cards of a run, in Markdown: the data that it was trained on, and the model with its limits.

After Mitchell et al., "Model cards for model reporting", 2019, and Pushkarna et al., "Data cards",
2022. Every sentence is a fact of the run, or a field for a person to fill in. No card names a user.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.artifacts.files import write_text
from jaxrec.artifacts.run_directory import SELECTED_BY, SHOPS
from jaxrec.config import Config
from jaxrec.data.dataset import Dataset, history_notes
from jaxrec.evaluation.calibration import Correction
from jaxrec.evaluation.groups import WORSE, clearly_worse
from jaxrec.inference.loading import read_calibration
from jaxrec.inference.trained_model import TrainedModel
from jaxrec.training import logging as report
from jaxrec.training.card_parts import (
    QUANTILES,
    architecture_rows,
    corrections,
    intended_use_parts,
    item_parts,
    number,
    options_line,
    period,
    personal_data_parts,
    privacy_words,
    quality_parts,
    quantiles,
    repair_parts,
    source_parts,
    table,
    training_rows,
)
from jaxrec.training.context import TrainContext
from jaxrec.training.cost import Meter

MODEL_CARD, DATA_CARD = "model_card.md", "data_card.md"
MODEL_OPTIONS = ("model", "text", "train", "evaluation")


def write_data_card(run: Path, context: TrainContext, source: str) -> None:
    """Write `data_card.md` of a new run."""
    write_text(run / DATA_CARD, data_card(context.dataset, context.config, source))


def write_model_card(
    run: Path,
    context: TrainContext,
    results: Mapping[str, Any],
    meter: Meter,
    trained: Path | None = None,
) -> None:
    """Write `model_card.md` of a calibrated run, and note groups that are served clearly worse.

    Args:
        trained: the run whose log holds the training; None: this one.
    """
    meter.sample()
    log, calibration = report.read_log(trained or run), read_calibration(run)
    write_text(run / MODEL_CARD, model_card(context, results, log, calibration, meter))
    report.print_notes(tuple(f"{line} See {MODEL_CARD}." for line in worse_groups(results)))


def data_card(dataset: Dataset, config: Config, source: str) -> str:
    """What the data hold, and how they were filtered and split.

    Args:
        source: where the data come from, in words.
    """
    log, split = dataset.split.log, dataset.split
    per_type = np.bincount(log.event_types, minlength=len(log.event_type_names))
    per_item = np.bincount(log.items, minlength=dataset.catalog.num_items)[1:]
    held_out = {"validation": split.validation, **split.test}
    rows = {
        "users": f"{log.num_users:,}",
        "items": f"{dataset.catalog.num_items - 1:,}",
        "events": f"{len(log.items):,}",
        "time of the events": period(log.times) if log.has_time else "positions, no times",
        "training events": f"{int(split.train_lengths.sum()):,}",
        **{f"held out, {name}": f"{len(queries):,}" for name, queries in held_out.items()},
    }
    notes = sorted(set(dataset.notes) - set(history_notes(log)))
    return "\n\n".join(
        [
            *source_parts(source),
            "## Size",
            table(["", ""], rows.items()),
            table(
                ["event type", "events"],
                zip(log.event_type_names, map(number, per_type), strict=True),
            ),
            table(
                ["events per", *QUANTILES],
                [["user", *quantiles(log.lengths)], ["item", *quantiles(per_item)]],
            ),
            *item_parts(dataset.catalog),
            "## Filters and split",
            options_line(config, ("data", "split"), ("source", "text_columns")),
            *repair_parts(notes),
            *personal_data_parts(config),
        ]
    )


def model_card(
    context: TrainContext,
    results: Mapping[str, Any],
    log: Sequence[Mapping],
    calibration: tuple[float, Correction],
    meter: Meter,
) -> str:
    """What was trained, how well it ranks for whom, and what it cannot do.

    Args:
        results: the content of `metrics.json`.
        log: the rows of `log.jsonl`.
        calibration: the inverse temperature and the correction.
    """
    rows = {
        **training_rows(context, results, log, meter),
        "corrections": corrections(*calibration),
        "differential privacy of users": privacy_words(results.get("privacy")),
    }
    return "\n\n".join(
        [
            *intended_use_parts(f"{results['protocol']['candidates']:,} items"),
            "## Training",
            table(["", ""], rows.items()),
            options_line(context.config, MODEL_OPTIONS, ("privacy",)),
            f"The data: [{DATA_CARD}]({DATA_CARD}).",
            *(part for name in results["groups"] for part in quality_parts(name, results)),
            "## Limits",
            "".join(f"* {limit}\n" for limit in limits(context, results)),
        ]
    )


def write_joint_cards(
    run: Path, context: TrainContext, results: Mapping[str, Any], meter: Meter
) -> None:
    """Write the cards of a run on several shops, which point to those of each shop."""
    meter.sample()
    log = report.read_log(run)
    write_text(run / DATA_CARD, joint_data_card(context))
    write_text(run / MODEL_CARD, joint_model_card(context, results, log, meter))


def joint_data_card(context: TrainContext) -> str:
    """How much data each of several shops has."""
    rows = []
    for name, shop in context.shops.items():
        log, items = shop.dataset.split.log, shop.dataset.catalog.num_items - 1
        card = f"[{name}]({SHOPS}/{name}/{DATA_CARD})"
        rows.append([card, *map(number, (log.num_users, items, len(log.items)))])
    return "\n\n".join(
        [
            *source_parts(f"the shops {', '.join(context.shops)}"),
            "## Size",
            table(["shop", "users", "items", "events"], rows),
            *personal_data_parts(context.config),
        ]
    )


def joint_model_card(
    context: TrainContext, results: Mapping[str, Any], log: Sequence[Mapping], meter: Meter
) -> str:
    """What several shops trained together; arguments as `model_card`."""
    rows = [
        [f"[{name}]({SHOPS}/{name}/{MODEL_CARD})", number(results["selected"][score])]
        for name in context.shops
        if (score := f"{name}/{SELECTED_BY}")
    ]
    return "\n\n".join(
        [
            *intended_use_parts(f"the items of {len(context.shops)} shops, each by itself,"),
            "## Training",
            table(["", ""], training_rows(context, results, log, meter).items()),
            options_line(context.config, MODEL_OPTIONS, ("privacy",)),
            f"The data: [{DATA_CARD}]({DATA_CARD}).",
            "## Quality and limits",
            "The card of each shop has its test figures, corrections and limits.",
            table(["shop", "validation NDCG@10"], rows) + "\n",
        ]
    )


def write_transferred_cards(run: Path, model: TrainedModel, source: str, base: str) -> None:
    """Write the cards of a run for another shop, of which no event is known.

    Args:
        model: as `TrainedModel.for_shop` makes it.
        source: where the items come from, in words.
        base: the name of the run that the model was trained in.
    """
    write_text(run / DATA_CARD, transferred_data_card(model, source))
    write_text(run / MODEL_CARD, transferred_model_card(model, base))


def transferred_data_card(model: TrainedModel, source: str) -> str:
    """What the items of another shop hold; arguments as `write_transferred_cards`."""
    catalog = model.catalog
    return "\n\n".join(
        [
            *source_parts(source),
            "## Size",
            table(["", ""], [["items", f"{catalog.num_items - 1:,}"], ["events", "none"]]),
            *item_parts(catalog),
            *repair_parts(model.notes),
            "## Personal data",
            "None: the run holds no event, and no file of it names a user.\n",
        ]
    )


def transferred_model_card(model: TrainedModel, base: str) -> str:
    """What a model for another shop is made of; arguments as `write_transferred_cards`."""
    config, fitted = model.config, corrections(model.inverse_temperature, model.correction)
    known = ", ".join(source for source in config.model.sources if source != "id")
    budget = asdict(config.train.privacy) if config.train.privacy.epsilon else None
    rows = {
        **architecture_rows(config, model.model.params),
        "training": f"{model.step:,} steps in the run `{base}`, none on data of this shop",
        "corrections": f"as in `{base}`: {fitted}",
        "differential privacy of users": f"as in `{base}`: {privacy_words(budget)}",
    }
    return "\n\n".join(
        [
            *intended_use_parts(f"{model.catalog.num_items - 1:,} items of another shop"),
            "## Training",
            table(["", ""], rows.items()),
            options_line(config, MODEL_OPTIONS, ("privacy",)),
            f"The data of this shop: [{DATA_CARD}]({DATA_CARD}).",
            "## Quality",
            "Not measured: no event of this shop is known.",
            "## Limits",
            f"* The figures of `{base}` do not hold for this shop.\n"
            f"* The model knows of these items only their {known}: no id is trained, and no item "
            "has a popularity.\n",
        ]
    )


def limits(context: TrainContext, results: Mapping[str, Any]) -> list[str]:
    """Sentences on what the figures do not say, from facts of the run."""
    protocol, dataset = results["protocol"], context.dataset
    untrained = int((context.counts[context.valid] == 0).sum())
    mask = ", ".join(protocol["mask"])
    sentences = [
        "The figures are of past events. They do not tell what users do when they see the lists.",
        f"{untrained:,} of {protocol['candidates']:,} items have no training event.",
        "The figures are those of the selected model. Where `refit/` holds a complete model, that "
        "one serves: it was trained again on more events. `metrics.json` has its figures if the "
        "test events were left out.",
        f"Lists are ranked with the mask `{mask}`; with another one the figures differ.",
    ]
    if together := protocol.get("trained_with"):
        sentences.append(
            f"The model was trained together with the data of {', '.join(together)}. Time and "
            "energy are those of the whole training."
        )
    if protocol["split"] == "leave_one_out":
        sentences.append(
            "The split is by user: training has seen events of other users that are later than the "
            "test events."
        )
    if "validation" in results and not results["validation"]["count"]:
        sentences.append("No event was held out for validation.")
    if not dataset.split.log.has_time:
        sentences.append("The data have no times, so the model knows only the order of events.")
    return sentences


def worse_groups(results: Mapping[str, Any]) -> list[str]:
    """A sentence for each test set with groups that are served clearly worse than the rest."""
    return [
        f"{name}: NDCG@10 is clearly below {WORSE:.0%} of the mean for {'; '.join(worse)}."
        for name, rows in results["groups"].items()
        if (worse := clearly_worse(rows))
    ]
