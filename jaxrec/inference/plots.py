"""Plots of a trained model: how true its probabilities are, how a user's interest moves."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from jaxrec.evaluation.reliability import Reliability
from jaxrec.runtime import atomic_path

DPI = 120
MARKERS = "osD^vPX"  # seven, so that seventy lines differ from each other with ten colours
EVENT_CHARACTERS = 28
NAME_CHARACTERS, NAME_LINES = 30, 3
LEVEL_CHARACTERS = 3  # of an event's label; longer ones slope
INCHES_PER_EVENT, INCHES_PER_CHARACTER = 0.27, 0.06
INCHES_PER_LINE, LEGEND_INCHES = 0.215, 3.2
PART_INCHES, ITEM_INCHES = 1.0, 0.3


def plot_reliability(path: Path, reliability: Reliability, title: str) -> None:
    """Draw observed frequency over predicted probability, both logarithmic, into a PNG file.

    Points of true probabilities lie on the diagonal; bars are 95% intervals. A bin without hits
    shows the upper end of its interval, 3 / count. A bin of mean probability 0 is left out.

    Raises:
        ValueError: no bin is left.
    """
    shown = reliability.predicted > 0
    if not shown.any():
        raise ValueError("all probabilities are 0, which no logarithmic axis shows")
    predicted, observed = reliability.predicted[shown], reliability.observed[shown]
    margin = 1.96 * reliability.standard_error[shown]
    hit = observed > 0
    bounds = 3 / reliability.counts[shown][~hit]
    drawn = np.concatenate([predicted, (observed + margin)[hit], observed[hit], bounds])
    low, high = drawn.min() / 2, drawn.max() * 2

    figure = Figure(figsize=(6, 6), layout="constrained", dpi=DPI)
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.set_yscale("log", nonpositive="clip")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_formatter(NullFormatter())  # minor labels would overlap
    axes.plot([low, high], [low, high], color="0.6", linestyle="--", label="calibrated")
    axes.errorbar(
        predicted[hit], observed[hit], margin[hit], fmt="o", capsize=3, label="bin, 95% interval"
    )
    if len(bounds):
        axes.plot(
            predicted[~hit], bounds, "v", color="C0", fillstyle="none", label="no hit, 95% bound"
        )
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    axes.set(xlabel="predicted probability", ylabel="observed frequency")
    axes.set_title(_wrapped(title, 60))
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    axes.grid(alpha=0.3)
    with atomic_path(path) as draft:
        figure.savefig(draft, format="png")


def plot_interest(
    path: Path,
    positions: Sequence[int | str] | Int[np.ndarray, " T"],
    weights: Float[np.ndarray, "T K"],
    names: Sequence[str],
    events: Sequence[str] | None,
    title: str,
) -> None:
    """Draw how a user's interest in some entities moved into a PNG file, one line an entity.

    Args:
        positions: number or date of each event; events are drawn evenly spaced.
        weights: of every entity after every event.
        names: of the entities; the legend lists them by their last weight.
        events: titles of the events.

    Raises:
        ValueError: lengths differ, there is no event or entity, or a weight is not finite.
    """
    _check_interest(positions, weights, names, events)
    labels = _event_labels(positions, events)
    listed = [_wrapped(name, NAME_CHARACTERS) for name in names]
    figure = Figure(figsize=_interest_size(labels, listed), layout="constrained", dpi=DPI)
    axes = figure.subplots()
    order = np.argsort(-weights[-1], kind="stable")
    for entity in order:
        axes.plot(
            weights[:, entity],
            color=f"C{entity % 10}",
            marker=MARKERS[entity % len(MARKERS)],
            markersize=4,
        )
    _set_event_ticks(axes, labels)
    axes.set(xlabel="event", ylabel="weight")
    if weights.min() >= 0:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.set_title(_wrapped(title, int(10 * (figure.get_figwidth() - LEGEND_INCHES))))
    # named here, because a legend leaves out lines whose own label is empty or begins with "_"
    figure.legend(
        axes.lines,
        [listed[entity] for entity in order],
        loc="outside right upper",
        fontsize=9,
        frameon=False,
    )
    with atomic_path(path) as draft:
        figure.savefig(draft, format="png")


def plot_contributions(
    path: Path,
    values: Float[np.ndarray, "K parts"],
    items: Sequence[str],
    parts: Sequence[str],
    title: str,
) -> None:
    """Draw what each part adds to the log-probability of items into a PNG file.

    A cell is blue where the part speaks for the item, and red where it speaks against it.
    """
    largest = max(float(np.abs(values).max(initial=0)), 1e-6)
    figure = Figure(
        figsize=(LEGEND_INCHES + PART_INCHES * len(parts), 1.5 + ITEM_INCHES * len(items)),
        layout="constrained",
        dpi=DPI,
    )
    axes = figure.subplots()
    image = axes.imshow(values, cmap="RdBu", vmin=-largest, vmax=largest, aspect="auto")
    for row, part in np.ndindex(values.shape):
        dark = abs(values[row, part]) > largest / 2
        axes.text(
            part,
            row,
            f"{values[row, part]:+.1f}",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if dark else "black",
        )
    axes.set_xticks(range(len(parts)), parts)
    labels = [f"{_shortened(item, 36)}  {rank}" for rank, item in enumerate(items, 1)]
    axes.set_yticks(range(len(items)), labels, fontsize=8)
    axes.set_title(_wrapped(title, 12 * (len(parts) + 2)), loc="right")
    figure.colorbar(image, label="what it adds to the score")
    with atomic_path(path) as draft:
        figure.savefig(draft, format="png")


def _interest_size(labels: Sequence[str], listed: Sequence[str]) -> tuple[float, float]:
    """Width and height in inches, so that neither tick labels nor the legend are cut."""
    width = max(5.0, INCHES_PER_EVENT * len(labels))
    height = 4 + INCHES_PER_CHARACTER * max(map(len, labels))
    legend_height = INCHES_PER_LINE * ("\n".join(listed).count("\n") + 1)
    return width + LEGEND_INCHES, max(height, legend_height)


def _set_event_ticks(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_xticks(range(len(labels)), labels, fontsize=8)
    axes.set_xlim(-0.5, len(labels) - 0.5)
    if max(map(len, labels)) > LEVEL_CHARACTERS:
        for label in axes.get_xticklabels():
            label.set(rotation=60, ha="right", rotation_mode="anchor")


def _event_labels(
    positions: Sequence[int | str] | Int[np.ndarray, " T"], events: Sequence[str] | None
) -> list[str]:
    if events is None:
        return [str(position) for position in positions]
    titles = [_shortened(event, EVENT_CHARACTERS) for event in events]
    return [f"{text}  {position}" for text, position in zip(titles, positions, strict=True)]


def _check_interest(
    positions: Sequence[int | str] | Int[np.ndarray, " T"],
    weights: Float[np.ndarray, "T K"],
    names: Sequence[str],
    events: Sequence[str] | None,
) -> None:
    shape = len(positions), len(names)
    num_events = shape[0] if events is None else len(events)
    if not weights.size or weights.shape != shape or num_events != shape[0]:
        described = "no" if events is None else num_events
        raise ValueError(
            f"weights of shape {weights.shape} for {shape[0]} positions, {described} events and "
            f"{shape[1]} names: give one row an event and one column a name"
        )
    if not np.isfinite(weights).all():
        event, entity = np.argwhere(~np.isfinite(weights))[0]
        raise ValueError(f"the weight of {names[entity]!r} after event {event} is not finite")


def _shortened(text: str, characters: int) -> str:
    """One line of at most that many characters, without the marks of mathematical text."""
    line = " ".join(text.split())
    cut = line if len(line) <= characters else line[: characters - 1].rstrip() + "…"
    return cut.replace("$", r"\$")


def _wrapped(text: str, characters: int) -> str:
    """A few lines of at most that many characters, without the marks of mathematical text."""
    line = " ".join(text.split())
    lines = textwrap.wrap(line, characters, max_lines=NAME_LINES, placeholder="…")
    return "\n".join(lines).replace("$", r"\$")
