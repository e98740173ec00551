"""What commands print: results on stdout, notes on stderr."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
from rich.console import Console

from jaxrec.artifacts.files import write_table
from jaxrec.inference.trained_model import TrainedModel
from jaxrec.types import EventLog

PREVIEW_USERS, PREVIEW_ITEMS, PREVIEW_ROWS = 3, 5, 6
TABLE_ROWS = 20

# names and paths of users may look like markup
console = Console(soft_wrap=True, markup=False, highlight=False)
notes = Console(soft_wrap=True, markup=False, highlight=False, stderr=True)


def note(message: str) -> None:
    """Print what a user should know and need not act on."""
    notes.print(f"note: {message}")


@contextmanager
def silence(is_quiet: bool) -> Iterator[None]:
    """Print nothing inside the block if `is_quiet`."""
    before = console.quiet
    console.quiet = notes.quiet = before or is_quiet
    try:
        yield
    finally:
        console.quiet = notes.quiet = before


def show_table(table: pl.DataFrame, out: Path | None) -> None:
    """Write a table if there is a file to write, and print its first rows."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_table(table, out)
    ascii_only = not console.encoding.startswith("utf")
    with pl.Config(
        tbl_rows=TABLE_ROWS,
        tbl_hide_dataframe_shape=True,
        fmt_str_lengths=60,
        ascii_tables=ascii_only,
    ):
        console.print(str(table.head(TABLE_ROWS)))
    if out is not None:
        console.print(f"{len(table):,} rows in {out}")


def preview(model: TrainedModel, log: EventLog, table: pl.DataFrame) -> list[str]:
    """The last items of a few users, and what a table of lists or profiles holds for them."""
    title = pl.col("title") if "title" in table.columns else pl.lit(None, pl.String)
    if "weight" in table.columns:
        weight = (100 * pl.col("weight")).round(1)
        label = pl.format("{} {} %", pl.coalesce(title, table.columns[3]), weight)
    else:
        label = pl.coalesce(title, table.columns[2])
    lines = []
    for user in range(min(PREVIEW_USERS, log.num_users)):
        recent = log.items[log.offsets[user] : log.offsets[user + 1]][-PREVIEW_ITEMS:]
        rows = table.filter(pl.col("user_id") == log.user_ids[user]).head(PREVIEW_ROWS)
        lines.append(f"user {log.user_ids[user]}: after {_joined(model.index.labels(recent))}")
        lines.append(f"    -> {_joined(rows.select(label).to_series())}")
    return lines


def _joined(names: pl.Series) -> str:
    return "; ".join(map(str, names)) or "nothing is left"
