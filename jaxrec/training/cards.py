"""The cards of a run, in Markdown: the data that it was trained on, and the model with its limits.

After Mitchell et al., "Model cards for model reporting", 2019, and Pushkarna et al., "Data cards",
2022. Every sentence is a fact of the run, or a field for a person to fill in. No card names a user.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np
import polars as pl

from jaxrec.artifacts.files import write_text
from jaxrec.config import Config
from jaxrec.data.dataset import Dataset, history_notes
from jaxrec.evaluation.groups import WORSE, clearly_worse
from jaxrec.training import logging as report
from jaxrec.training.state import TrainContext, state_layout

MODEL_CARD, DATA_CARD = "model_card.md", "data_card.md"
TO_FILL_IN = "*to be filled in*"
# read by model hubs
FRONT_MATTER = "---\nlicense: unknown  # to be filled in\nlibrary_name: jaxrec\n---"
QUANTILES = {"least": 0.0, "median": 0.5, "90 %": 0.9, "most": 1.0}
SHARES = ("items", "targets", "exposure")
SYSTEM_COLUMNS = ("count", "ndcg@10", "recall@10", "coverage", "gini", "mean_popularity")


def write_data_card(run: Path, context: TrainContext, source: str) -> None:
    """Write `data_card.md` of a new run."""
    write_text(run / DATA_CARD, data_card(context.dataset, context.config, source))


def write_model_card(
    run: Path, context: TrainContext, results: Mapping[str, Any], trained: Path | None = None
) -> None:
    """Write `model_card.md`, and note groups that are served clearly worse.

    Args:
        trained: the run whose log holds the training; None: this one.
    """
    write_text(run / MODEL_CARD, model_card(context, results, report.read_log(trained or run)))
    report.print_notes(tuple(f"{line} See {MODEL_CARD}." for line in worse_groups(results)))


def data_card(dataset: Dataset, config: Config, source: str) -> str:
    """What the data hold, and how they were filtered and split.

    Args:
        source: where the data come from, in words.
    """
    log, split, graph = dataset.split.log, dataset.split, dataset.catalog.graph
    per_type = np.bincount(log.event_types, minlength=len(log.event_type_names))
    per_item = np.bincount(log.items, minlength=dataset.catalog.num_items)[1:]
    held_out = {"validation": split.validation, **split.test}
    rows = {
        "users": f"{log.num_users:,}",
        "items": f"{dataset.catalog.num_items - 1:,}",
        "events": f"{len(log.items):,}",
        "time of the events": _period(log.times) if log.has_time else "positions, no times",
        "training events": f"{int(split.train_lengths.sum()):,}",
        **{f"held out, {name}": f"{len(queries):,}" for name, queries in held_out.items()},
    }
    per_relation = np.bincount(graph.edge_relations, minlength=len(graph.relations))
    edges = list(zip(graph.relations, map(_number, per_relation), strict=True))
    notes = sorted(set(dataset.notes) - set(history_notes(log)))
    return "\n\n".join(
        [
            FRONT_MATTER,
            "# Data card",
            f"Source: {source}. Owner and contact: {TO_FILL_IN}. Licence: "
            f"{TO_FILL_IN}. Consent or other legal basis for the events: {TO_FILL_IN}.",
            "## Size",
            table(["", ""], rows.items()),
            table(
                ["event type", "events"],
                zip(log.event_type_names, map(_number, per_type), strict=True),
            ),
            table(
                ["events per", *QUANTILES],
                [["user", *_quantiles(log.lengths)], ["item", *_quantiles(per_item)]],
            ),
            "## Items",
            table(["column", "type", "missing"], _columns(dataset.catalog.items)),
            table(["node type", "nodes"], ((t.name, f"{t.count - 1:,}") for t in graph.types)),
            *([table(["relation", "edges"], edges)] if edges else []),
            "## Filters and split",
            _options(config, ("data", "split"), ("source", "text_columns")),
            "## Repairs",
            "\n".join(f"* {note}" for note in notes) or "None.",
            "## Personal data",
            "The events tell what each user looked at and bought. `ranks.parquet` names the users "
            f"of the test events by their {'pseudonyms' if config.data.id_key else 'ids'}; no "
            "other file of the run names a user.\n",
        ]
    )


def model_card(context: TrainContext, results: Mapping[str, Any], log: Sequence[Mapping]) -> str:
    """What was trained, how well it ranks for whom, and what it cannot do.

    Args:
        results: the content of `metrics.json`.
        log: the rows of `log.jsonl`.
    """
    config = context.config
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state_layout(context)[0].params))
    rows = {
        "experts": ", ".join(config.model.experts),
        "parameters": f"{parameters:,}",
        "text encoder": config.text.pretrained if "text" in config.model.sources else "none",
        "epochs": f"{len(_epochs(log))} trained, {results['selected']['epoch']} selected",
        "time of the training steps": _duration(context, log),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "energy": f"not measured; {TO_FILL_IN}",
        "differential privacy of users": _privacy(results.get("privacy")),
    }
    return "\n\n".join(
        [
            FRONT_MATTER,
            "# Model card",
            f"A jaxrec model that ranks {results['protocol']['candidates']:,} items for users by "
            f"their events. Intended use: {TO_FILL_IN}. Uses that are out of scope: {TO_FILL_IN}.",
            "## Training",
            table(["", ""], rows.items()),
            _options(config, ("model", "text", "train", "evaluation"), ("privacy",)),
            f"The data: [{DATA_CARD}]({DATA_CARD}).",
            *(part for name in results["groups"] for part in _set_parts(name, results)),
            "## Limits",
            "".join(f"* {limit}\n" for limit in limits(context, results)),
        ]
    )


def _privacy(spent: Mapping[str, Any] | None) -> str:
    if not spent:
        return "none"
    return f"epsilon {spent['epsilon']:.2f}, delta {spent['delta']:g}; for the weights alone"


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
            f"The model was trained together with the data of {', '.join(together)}. The time of "
            "the training steps is the share of this shop's events."
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


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown; numbers are aligned to the right."""
    marks = ["---", *["---:"] * (len(header) - 1)]
    lines = [header, marks, *([str(cell).replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _set_parts(name: str, results: Mapping[str, Any]) -> list[str]:
    systems = {system: row for system, row in results[name].items() if system != "segments"}
    groups = results["groups"][name]
    worse = clearly_worse(groups)
    protocol = results["protocol"]
    exposures = [
        [group, *(f"{row[share]:.1%}" for share in SHARES)]
        for group, row in groups.items()
        if "exposure" in row
    ]
    return [
        f"## Quality: {name}",
        f"Split {protocol['split']}, {protocol['queries'][name]:,} events, all items ranked:",
        table(["system", *SYSTEM_COLUMNS], ([n, *_cells(row)] for n, row in systems.items())),
        "Groups of users and of items, with 95 % intervals. *Worse*: the whole interval lies below "
        f"{WORSE:.0%} of the mean of all.",
        table(
            ["group", "events", "NDCG@10", "interval", "recall@10", ""],
            (_group_cells(group, row, group in worse) for group, row in groups.items()),
        ),
        "Shares of the items, of the test targets and of the places in lists (exposure):",
        table(["group", *SHARES], exposures),
    ]


def _group_cells(group: str, row: Mapping[str, float], worse: bool) -> list[str]:
    ndcg, recall, low, high = (
        f"{row[name]:.4f}" for name in ("ndcg@10", "recall@10", "low", "high")
    )
    return [group, f"{row['count']:,}", ndcg, f"{low} to {high}", recall, "worse" if worse else ""]


def _cells(row: Mapping[str, float]) -> list[str]:
    return [_number(row[name]) if name in row else "" for name in SYSTEM_COLUMNS]


def _number(value: float | np.number) -> str:
    return f"{value:,}" if isinstance(value, int | np.integer) else f"{value:.4f}"


def _period(times: np.ndarray) -> str:
    first, last = (datetime.fromtimestamp(int(t), UTC) for t in (times.min(), times.max()))
    return f"{first:%Y-%m-%d} to {last:%Y-%m-%d}"


def _quantiles(values: np.ndarray) -> list[str]:
    series = pl.Series(values)
    return [f"{int(series.quantile(q, 'nearest') or 0):,}" for q in QUANTILES.values()]


def _columns(items: pl.DataFrame) -> list[list[str]]:
    known = items.slice(1)
    shares = known.null_count().row(0)
    return [
        [name, str(dtype), f"{count / max(len(known), 1):.1%}"]
        for (name, dtype), count in zip(known.schema.items(), shares, strict=True)
    ]


def _options(config: Config, sections: Sequence[str], hidden: Sequence[str]) -> str:
    """The options that differ from the defaults."""
    usual, changed = Config(), []
    for section in sections:
        own, default = getattr(config, section), getattr(usual, section)
        for field in fields(own):
            value = getattr(own, field.name)
            if value != getattr(default, field.name) and field.name not in hidden:
                changed.append(f"`{section}.{field.name}: {value}`")
    return f"Options that differ from the defaults: {', '.join(changed) or 'none'}."


def _epochs(log: Sequence[Mapping]) -> dict[int, float]:
    """Events/s of each epoch, at its last step."""
    return {int(row["epoch"]): row["events_per_second"] for row in log if "epoch" in row}


def _duration(context: TrainContext, log: Sequence[Mapping]) -> str:
    events = int(context.dataset.split.train_lengths.sum())
    seconds = sum(events / speed for speed in _epochs(log).values() if speed)
    return f"about {seconds / 60:.1f} minutes, without validation and evaluation"
