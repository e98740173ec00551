"""The plot of a training run."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from jaxrec.runtime import atomic_path


def plot_training(path: Path, rows: Sequence[dict[str, float]]) -> None:
    """Draw the loss and the validation metrics in `rows` of `log.jsonl` into a PNG file."""
    losses = [row for row in rows if "loss" in row]
    scores = [row for row in rows if "validation/ndcg@10" in row]
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps, values = ([row[name] for row in losses] for name in ("step", "loss"))
    left.plot(steps, values, alpha=0.3)
    window = max(1, len(losses) // 50)
    if losses:  # a warm start without new events takes no step
        smooth = np.convolve(values, np.ones(window) / window, "valid")
        left.plot(steps[window - 1 :], smooth, color="C0")
    left.set(xlabel="step", ylabel="training loss, sum of experts")
    for metric in ("ndcg@10", "recall@10", "recall@50"):
        values = [row[f"validation/{metric}"] for row in scores]
        right.plot([row["step"] for row in scores], values, marker=".", label=metric)
    right.set(xlabel="step", ylabel="validation", ylim=(0, None))
    right.legend()
    with atomic_path(path) as draft:
        figure.savefig(draft, format="png", dpi=120)
