"""Table and plots of the roofline benchmark."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter
from rich.box import SIMPLE_HEAD
from rich.table import Table

SUM, STEP = "sum without input", "whole step"


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    part: str
    seconds: float
    flops: float
    moved: float  # bytes


@dataclass(frozen=True)
class Roofs:
    """What the machine can do in a second."""

    flops: float
    moved: float  # bytes


def table(rows: list[Row], roofs: Roofs, title: str) -> Table:
    """A line for every part."""
    result = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    result.add_column("", no_wrap=True)
    for heading in ("ms", "GFLOP", "MB", "GFLOP/s", "of peak", "of bandwidth", "bound by"):
        result.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        if row.part == SUM:
            result.add_section()
        result.add_row(row.part, f"{row.seconds * 1e3:.1f}", *cells(row, roofs))
    return result


def cells(row: Row, roofs: Roofs) -> list[str]:
    """The cells of a row after its time."""
    if not row.moved:
        return [""] * 5 + ["host"]
    flop = speed = share = ""
    if row.flops:
        rate = row.flops / row.seconds
        flop, speed, share = (
            f"{row.flops / 1e9:.2f}",
            f"{rate / 1e9:.0f}",
            f"{rate / roofs.flops:.0%}",
        )
    bandwidth = f"{row.moved / row.seconds / roofs.moved:.1%}"
    bound = "products" if row.flops / roofs.flops > row.moved / roofs.moved else "memory"
    return [flop, f"{row.moved / 1e6:.1f}", speed, share, bandwidth, bound]


def summary(step: Row, roofs: Roofs, loop: np.ndarray, fill: float) -> str:
    """The machine, the utilisation and the speed in words.

    Args:
        step: the row of the whole step.
        loop: wait, seconds and targets of every step of the training loop.
        fill: share of the packed positions that hold an event.
    """
    waits, steps, targets = loop.sum(0)
    return (
        f"matrix products {roofs.flops / 1e9:.0f} GFLOP/s, memory {roofs.moved / 1e9:.0f} GB/s, "
        f"ridge {roofs.flops / roofs.moved:.1f} FLOP/byte\n"
        f"model-FLOPs utilisation {step.flops / step.seconds / roofs.flops:.1%}; "
        f"waiting for input {waits / (waits + steps):.2%} of the loop\n"
        f"packing fill {fill:.1%}; {targets / (waits + steps):,.0f} targets/s"
    )


def plot(path: Path, rows: list[Row], roofs: Roofs, title: str) -> None:
    """Plot speed over arithmetic intensity, and times beside the least times of the roofs."""
    figure = Figure(figsize=(13, 5.5), layout="constrained", dpi=120)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    plot_roofline(left, [row for row in rows if row.flops and row.part != SUM], roofs)
    plot_times(right, [row for row in rows if row.moved], roofs)
    figure.suptitle(title)
    figure.savefig(path)


def plot_roofline(axes: Axes, rows: list[Row], roofs: Roofs) -> None:
    """Plot the GFLOP/s of every part over its arithmetic intensity, below the two roofs."""
    peak, ridge = roofs.flops / 1e9, roofs.flops / roofs.moved
    right = max(row.flops / row.moved for row in rows)
    intensities = np.array([ridge / 8, ridge, right * 40])
    axes.loglog(intensities, np.minimum(intensities / ridge, 1) * peak, color="black")
    axes.text(ridge * 2, peak * 1.05, f"matrix products, {peak:.0f} GFLOP/s")
    axes.text(ridge / 3, peak / 2, f"memory,\n{roofs.moved / 1e9:.0f} GB/s", ha="right")
    bottom = min(peak / 8, *(row.flops / row.seconds / 1e9 for row in rows)) / 1.6
    axes.set_ylim(bottom, peak * 1.5)
    spacing, height = (peak * 1.5 / bottom) ** (1 / 20), peak
    for number, row in enumerate(sorted(rows, key=lambda row: -row.flops / row.seconds)):
        point, color = (row.flops / row.moved, row.flops / row.seconds / 1e9), f"C{number}"
        height = min(height / spacing, point[1])  # keeps labels apart
        marker, weight = ("*", "bold") if row.part == STEP else ("o", "normal")
        axes.plot(*point, marker, color=color, markersize=9)
        line = {"arrowstyle": "-", "color": color, "lw": 0.7}
        place = {"xytext": (right * 2.5, height), "va": "center", "arrowprops": line}
        axes.annotate(row.part, point, color=color, weight=weight, **place)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="arithmetic intensity, FLOP/byte", ylabel="GFLOP/s")
    axes.grid(alpha=0.3)


def plot_times(axes: Axes, rows: list[Row], roofs: Roofs) -> None:
    """Plot the time of every part beside the least time that the roofs allow."""
    places = np.arange(len(rows))
    least = [1e3 * max(row.flops / roofs.flops, row.moved / roofs.moved) for row in rows]
    bars = axes.barh(places - 0.2, [1e3 * row.seconds for row in rows], 0.4, label="measured")
    axes.barh(places + 0.2, least, 0.4, label="least time of the roofs", color="0.6")
    axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=9)
    axes.set_yticks(places, [row.part for row in rows])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set(xlabel="ms")
    axes.grid(alpha=0.3, axis="x")
    axes.legend()
