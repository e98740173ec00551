"""The page that `jaxrec validate --report` writes: one HTML file with its plots inside."""

from base64 import b64encode
from collections.abc import Iterable
from html import escape
from io import BytesIO
from pathlib import Path

import numpy as np
import polars as pl
from matplotlib.dates import ConciseDateFormatter
from matplotlib.figure import Figure

from jaxrec.cli.validate import (
    COUNT_HEADINGS,
    columns_in_words,
    counts_in_words,
    estimates,
    matches_in_words,
)
from jaxrec.config import Config
from jaxrec.data.slices import SLICE
from jaxrec.data.summary import Counts, Summary
from jaxrec.data.tables import Tables
from jaxrec.runtime import atomic_path

MAX_TYPES = 6  # event types with a line of their own
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem .2rem 0; text-align: left; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
.warning { border-left: .3rem solid #b45309; padding-left: .8rem; }
img { max-width: 100%; } @media (prefers-color-scheme: dark) {
body { background: #16181d; color: #e6e6e6; } img { background: #fff; } }
"""


def write_report(path: Path, summary: Summary, tables: Tables, config: Config) -> None:
    """Write the page; raises an OSError if it cannot be written."""
    title = f"Data of {config.data.source}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        _section("Warnings", _items(summary.warnings, "warning") or "<p>None.</p>"),
        _section("Tables", _tables(summary)),
        _section("Matches", _items(matches_in_words(summary))),
        _section("Events", _events(summary, tables)),
        _section("Events per user and per item", _counts(summary)),
        _section("Training", f"<p>{escape(estimates(summary, config))}</p>"),
        _section("Notes", _items(summary.notes) or "<p>None.</p>"),
    ]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    head += '<meta name="viewport" content="width=device-width, initial-scale=1">'
    page = f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>'
    with atomic_path(path) as draft:
        draft.write_text(page, encoding="utf-8")


def _section(title: str, content: str) -> str:
    return f"<h2>{escape(title)}</h2>{content}"


def _items(lines: Iterable[str], style: str = "") -> str:
    return "".join(f'<p class="{style}">{escape(line)}</p>' for line in lines)


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table whose columns after the first hold numbers."""

    def row(cells: Iterable[str], tag: str) -> str:
        name, *others = map(escape, cells)
        numbers = "".join(f'<{tag} class="number">{cell}</{tag}>' for cell in others)
        return f"<tr><{tag}>{name}</{tag}>{numbers}</tr>"

    return f"<table>{row(header, 'th')}{''.join(row(cells, 'td') for cells in rows)}</table>"


def _tables(summary: Summary) -> str:
    rows = []
    for name, num_rows in summary.rows.items():
        columns = "; ".join(columns_in_words(summary, name))
        rows.append(f"{name}: {num_rows:,} rows" + (f". Columns {columns}" if columns else ""))
    return _items(rows)


def _events(summary: Summary, tables: Tables) -> str:
    total = sum(summary.event_types.values())
    rows = [[k, f"{n:,}", f"{n / total:.1%}"] for k, n in summary.event_types.items()]
    parts = [_table(["event type", "events", "share"], rows)]
    parts.append(f"<p>{summary.repeats:.1%} of the events repeat an item of the user.</p>")
    if summary.period:
        first, last = (moment.isoformat(" ", "seconds") for moment in summary.period)
        parts.append(f"<p>From {first} to {last}.</p>")
        parts.append(_image(_per_day(summary, tables.events), "Events per day"))
    return "".join(parts)


def _per_day(summary: Summary, events: pl.DataFrame) -> Figure:
    day = pl.col("timestamp").cast(pl.Datetime("ms")).dt.truncate("1d").alias("day")
    parts = (part.group_by(day, "event").len() for part in events.iter_slices(SLICE))
    counts = pl.concat(parts).group_by("day", "event").agg(pl.col("len").sum()).sort("day")
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    axes = figure.subplots()
    for name in list(summary.event_types)[:MAX_TYPES]:
        of_type = counts.filter(pl.col("event") == name)
        axes.plot(of_type["day"], of_type["len"], label=name, linewidth=1)
    axes.set(ylabel="events per day", yscale="log")
    axes.xaxis.set_major_formatter(ConciseDateFormatter(axes.xaxis.get_major_locator()))
    axes.legend()
    return figure


def _counts(summary: Summary) -> str:
    named = {"user": summary.user_events, "item": summary.item_events}
    rows = counts_in_words(summary)
    return _table(COUNT_HEADINGS, rows) + _image(_histograms(named), "Events per user and per item")


def _histograms(named: dict[str, Counts]) -> Figure:
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, (name, counts) in zip(figure.subplots(1, 2), named.items(), strict=True):
        values = counts.values.to_numpy()
        edges = np.geomspace(1, max(2, values.max() + 1), 30)
        axes.hist(np.maximum(values, 1), bins=edges)
        axes.set(xscale="log", yscale="log", xlabel=f"events per {name}", ylabel=f"{name}s")
    return figure


def _image(figure: Figure, title: str) -> str:
    content = BytesIO()
    figure.savefig(content, format="png", dpi=120)
    data = b64encode(content.getvalue()).decode()
    return f'<p><img alt="{escape(title)}" src="data:image/png;base64,{data}"></p>'
