"""Parts of the cards of a run, in Markdown. No part names a user."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

import jax
import numpy as np
import polars as pl
from jaxtyping import Int

from jaxrec.artifacts.run_directory import NEIGHBOURS
from jaxrec.config import Config
from jaxrec.evaluation.calibration import Correction
from jaxrec.evaluation.groups import WORSE, clearly_worse
from jaxrec.training.context import TrainContext
from jaxrec.training.cost import JOULES_PER_KWH, Meter
from jaxrec.training.state import state_layout
from jaxrec.types import Catalog

TO_FILL_IN = "*to be filled in*"
# read by model hubs
FRONT_MATTER = "---\nlicense: unknown  # to be filled in\nlibrary_name: jaxrec\n---"
QUANTILES = {"least": 0.0, "median": 0.5, "90 %": 0.9, "most": 1.0}
SHARES = ("items", "targets", "exposure")
SYSTEM_COLUMNS = ("recall@10", "coverage", "gini", "mean_popularity")


def training_rows(
    context: TrainContext, results: Mapping[str, Any], log: Sequence[Mapping], meter: Meter
) -> dict[str, str]:
    """What was trained, for how long and at which cost; arguments as `cards.model_card`."""
    epochs = len({row["epoch"] for row in log if "epoch" in row})
    return {
        **architecture_rows(context.config, state_layout(context)[0].params),
        "epochs": f"{epochs} trained, {results['selected']['epoch']} selected",
        "wall-clock time": _duration(meter),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "energy": energy(meter),
    }


def architecture_rows(config: Config, params: Any) -> dict[str, str]:
    """What the model is made of."""
    return {
        "experts": ", ".join(config.model.experts),
        "parameters": f"{sum(leaf.size for leaf in jax.tree.leaves(params)):,}",
        "text encoder": config.text.pretrained if "text" in config.model.sources else "none",
    }


def corrections(inverse_temperature: float, correction: Correction) -> str:
    """What validation fitted after training, in a line."""
    shift, decay = correction.repeat_shift, correction.repeat_decay
    repeats = f"{shift:+.3g}, and {-decay:+.3g} at every doubling of an event's age"
    parts = [
        f"temperature {1 / inverse_temperature:.3g}",
        f"popularity {correction.popularity:+.3g}",
        f"repeat bias {repeats if shift or decay else 'as learned'}",
    ]
    for name in NEIGHBOURS:
        what = "none"
        if fit := correction.neighbours.get(name):
            what = f"strength {fit.strength:g}, half-life of {fit.half_life:g} events"
        parts.append(f"{name.replace('_', ' ')}: {what}")
    return "; ".join(parts)


def _duration(meter: Meter) -> str:
    seconds = meter.cost().get("seconds")
    if seconds is None:
        return f"not measured; {TO_FILL_IN}"
    return f"{seconds / 60:.1f} minutes, from the data to the evaluation, without a refit"


def energy(meter: Meter) -> str:
    """The energy of a training, or a field to fill in where no counter can be read."""
    joules = meter.cost().get("joules")
    if joules is None:
        return f"not measured; {TO_FILL_IN}"
    return (
        f"{joules / JOULES_PER_KWH:.3g} kWh in that time, by {', '.join(sorted(meter.counters))}; "
        "other programs of the machine are in it"
        + (", and other hosts are not" if jax.process_count() > 1 else "")
    )


def privacy_words(spent: Mapping[str, Any] | None) -> str:
    """The spent budget of a private training."""
    if not spent:
        return "none"
    return f"epsilon {spent['epsilon']:.3g}, delta {spent['delta']:g}; for the weights alone"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown; numbers are aligned to the right."""
    marks = ["---", *["---:"] * (len(header) - 1)]
    lines = [header, marks, *([str(cell).replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def source_parts(source: str) -> list[str]:
    """The beginning of a data card."""
    return [
        FRONT_MATTER,
        "# Data card",
        f"Source: {source}. Owner and contact: {TO_FILL_IN}. Licence: "
        f"{TO_FILL_IN}. Consent or other legal basis for the events: {TO_FILL_IN}.",
    ]


def intended_use_parts(items: str) -> list[str]:
    """The beginning of a model card."""
    return [
        FRONT_MATTER,
        "# Model card",
        f"A jaxrec model that ranks {items} for users by their events. Intended use: {TO_FILL_IN}. "
        f"Uses that are out of scope: {TO_FILL_IN}.",
    ]


def item_parts(catalog: Catalog) -> list[str]:
    """The columns of the items, and the nodes and edges of their graph."""
    graph = catalog.graph
    per_relation = np.bincount(graph.edge_relations, minlength=len(graph.relations))
    edges = list(zip(graph.relations, map(number, per_relation), strict=True))
    return [
        "## Items",
        table(["column", "type", "missing"], _columns(catalog.items)),
        table(["node type", "nodes"], ((t.name, f"{t.count - 1:,}") for t in graph.types)),
        *([table(["relation", "edges"], edges)] if edges else []),
    ]


def repair_parts(notes: Sequence[str]) -> list[str]:
    """What was repaired or left out in the tables."""
    return ["## Repairs", "\n".join(f"* {note}" for note in notes) or "None."]


def personal_data_parts(config: Config) -> list[str]:
    """What a run keeps of the users of its events."""
    return [
        "## Personal data",
        "The events tell what each user looked at and bought. `ranks.parquet` names the users "
        f"of the test events by their {'pseudonyms' if config.data.id_key else 'ids'}; no "
        "other file of the run names a user.\n",
    ]


def quality_parts(name: str, results: Mapping[str, Any]) -> list[str]:
    """The figures of a test set: systems, groups and exposure; `results` as `metrics.json`."""
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
        table(
            ["system", "events", "NDCG@10", "95 % interval", *SYSTEM_COLUMNS],
            ([name, *_system_cells(row)] for name, row in systems.items()),
        ),
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
    return [group, *_quality(row), f"{row['recall@10']:.4f}", "worse" if worse else ""]


def _system_cells(row: Mapping[str, float]) -> list[str]:
    return [*_quality(row), *(number(row[name]) for name in SYSTEM_COLUMNS)]


def _quality(row: Mapping[str, float]) -> list[str]:
    interval = f"{row['low']:.4f} to {row['high']:.4f}"
    return [f"{row['count']:,}", f"{row['ndcg@10']:.4f}", interval]


def number(value: float | np.number) -> str:
    """A count with separators, or a figure with four decimals."""
    return f"{value:,}" if isinstance(value, int | np.integer) else f"{value:.4f}"


def period(times: Int[np.ndarray, " M"]) -> str:
    """The days of the first and the last of some times, in seconds since 1970."""
    first, last = (datetime.fromtimestamp(int(t), UTC) for t in (times.min(), times.max()))
    return f"{first:%Y-%m-%d} to {last:%Y-%m-%d}"


def quantiles(values: Int[np.ndarray, " n"]) -> list[str]:
    """The `QUANTILES` of counts."""
    series = pl.Series(values)
    return [f"{int(series.quantile(q, 'nearest') or 0):,}" for q in QUANTILES.values()]


def _columns(items: pl.DataFrame) -> list[list[str]]:
    known = items.slice(1)
    shares = known.null_count().row(0)
    return [
        [name, str(dtype), f"{count / max(len(known), 1):.1%}"]
        for (name, dtype), count in zip(known.schema.items(), shares, strict=True)
    ]


def options_line(config: Config, sections: Sequence[str], hidden: Sequence[str]) -> str:
    """The options that differ from the defaults."""
    usual, changed = Config(), []
    for section in sections:
        own, default = getattr(config, section), getattr(usual, section)
        for field in fields(own):
            value = getattr(own, field.name)
            if value != getattr(default, field.name) and field.name not in hidden:
                changed.append(f"`{section}.{field.name}: {value}`")
    return f"Options that differ from the defaults: {', '.join(changed) or 'none'}."
