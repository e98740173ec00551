"""Results as tables for a terminal."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

# metric -> heading, short enough for a terminal of 80 columns
HEADINGS = {
    "ndcg@10": "N@10",
    "recall@10": "R@10",
    "mrr@10": "MRR@10",
    "coverage": "cover",
    "gini": "Gini",
    "mean_popularity": "popul.",
}


def results_table(results: Mapping[str, Mapping[str, Any]], title: str) -> Table:
    """A row a system, then a row a segment of the model."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for heading in ("count", *HEADINGS.values()):
        table.add_column(heading, justify="right", no_wrap=True)
    for system, row in results.items():
        if system != "segments":
            table.add_row(system, *_cells(row))
    table.add_section()
    for segment, row in results["segments"].items():
        if row["count"]:
            table.add_row(segment, *_cells(row))
    return table


def baseline_lines(baselines: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for every baseline with hyperparameters or left out, and for the blend.

    Args:
        baselines: as in `metrics.json`.
    """
    lines = []
    for name, row in baselines.items():
        if "left_out" in row:
            lines.append(f"{name}: left out, {row['left_out']}")
        elif "weight" in row:
            lines.append(
                f"{name}: model + {row['weight']:g} x {row['baseline']}, standardised scores"
                + _validation(row)
            )
        elif row["hyperparameters"]:
            values = (
                f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in row["hyperparameters"].items()
            )
            lines.append(f"{name}: {', '.join(values)}" + _validation(row))
    return lines


def _validation(row: Mapping[str, Any]) -> str:
    if "validation" not in row:
        return ""
    return f"; validation N@10 {row['validation']['ndcg@10']:.4f}"


def _cells(row: Mapping[str, float]) -> list[str]:
    *names, popularity = HEADINGS
    values = [f"{row[name]:.4f}" if name in row else "" for name in names]
    return [f"{row['count']:,}", *values, f"{row[popularity]:.1f}" if popularity in row else ""]
