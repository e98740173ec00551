"""`jaxrec validate`: what jaxrec understands of a data set, before anybody trains."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from jaxrec import api
from jaxrec.cli import WARNED
from jaxrec.cli.parser import Parser
from jaxrec.config import Config
from jaxrec.data.dataset import filtered
from jaxrec.data.summary import QUANTILES, Summary, summarize
from jaxrec.errors import ConfigError

console = Console(markup=False, highlight=False, soft_wrap=True)
MAX_SHOWN = 20
COUNT_HEADINGS = ("events per", "count", "least", "median", "90 %", "99 %", "most")


def run(arguments: Sequence[str]) -> None:
    """Describe the data, and exit with `WARNED` if there are warnings."""
    parser = _parser()
    options, overrides = parser.parse_known_args(arguments)
    if options.report is not None and options.report.is_dir():
        raise ConfigError(f"--report {options.report} is a directory; name a file")
    config = api.configure(options.config, options.data, arguments=overrides)
    tables = filtered(config)
    summary = summarize(tables, config)
    _print(summary, config)
    if options.report is not None:
        from jaxrec.cli.validate_report import write_report  # imports matplotlib

        write_report(options.report, summary, tables, config)
        console.print(f"report: {options.report}")
    if summary.warnings:
        sys.exit(WARNED)


def estimates(summary: Summary, config: Config) -> str:
    """Memory and time of a training in words."""
    from jaxrec.training.estimate import train_bytes, train_seconds  # imports jax

    sizes = (summary.rows["items"], summary.rows["events"])
    minutes = train_seconds(config, *sizes) / 60
    gibibytes = train_bytes(config, *sizes, summary.vector_widths) / 2**30
    return (
        f"about {gibibytes:.1f} GiB and at most about "
        f"{max(1, round(minutes)):,} minutes for {config.train.epochs} epochs on this machine"
    )


def matches_in_words(summary: Summary) -> list[str]:
    """Every match as `98 of 108 events whose item is in the items table`."""
    return [
        f"{matched:,} of {total:,} {what}" for what, (matched, total) in summary.matches.items()
    ]


def columns_in_words(summary: Summary, table: str) -> list[str]:
    """Every use of the columns of a table as `for text: title, brand`."""
    uses = summary.columns.get(table, {}).items()
    return [
        f"{f'for {use}' if use else 'not used'}: {', '.join(names)}" for use, names in uses if names
    ]


def counts_in_words(summary: Summary) -> list[list[str]]:
    """The rows of the table of events per user and per item, as `COUNT_HEADINGS` names them."""
    return [
        [name, *(f"{value:,}" for value in (len(counts.values), *map(counts.at, QUANTILES)))]
        for name, counts in (("user", summary.user_events), ("item", summary.item_events))
    ]


def _print(summary: Summary, config: Config) -> None:
    console.print(f"data: {config.data.source}")
    for name, num_rows in summary.rows.items():
        console.print(f"{name}: {num_rows:,} rows")
        for columns in columns_in_words(summary, name):
            console.print(f"  columns {columns}")
    for match in matches_in_words(summary):
        console.print(f"matched: {match}")
    if summary.period:
        first, last = (moment.isoformat(" ", "seconds") for moment in summary.period)
        console.print(f"time: {first} to {last}")
    types = list(summary.event_types.items())
    shown = ", ".join(f"{count:,} {name}" for name, count in types[:MAX_SHOWN])
    more = f" and {len(types) - MAX_SHOWN} more types" if len(types) > MAX_SHOWN else ""
    console.print(f"event types: {shown}{more}")
    console.print(f"repeats: {summary.repeats:.1%} of the events")
    console.print(_distributions(summary))
    console.print(f"training: {estimates(summary, config)}")
    for note in summary.notes:
        console.print(f"note: {note}")
    for warning in summary.warnings:
        console.print(f"warning: {warning}")
    console.print("no warnings" if not summary.warnings else f"warnings: {len(summary.warnings)}")


def _distributions(summary: Summary) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for place, heading in enumerate(COUNT_HEADINGS):
        table.add_column(heading, justify="right" if place else "left")
    for row in counts_in_words(summary):
        table.add_row(*row)
    return table


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "jaxrec validate",
        description="Read a data set as training does and print what it holds: tables and columns, "
        "matches of ids, times, event types, and warnings with the correction. Exit code: 0 "
        f"without warnings, {WARNED} with warnings, 2 if the data cannot be used. "
        "--section.option VALUE overrides an option of the recipe, as in `jaxrec train`.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", help="a YAML recipe, or the name of a shipped one")
    parser.add_argument("--data", help="short for --data.source")
    parser.add_argument("--report", type=Path, metavar="FILE", help="also write a page of HTML")
    return parser
