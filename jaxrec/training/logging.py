"""What a run tells its user: progress, logs, tables and plots."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import matplotlib
import numpy as np
import polars as pl
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from tensorboardX import SummaryWriter

from jaxrec.artifacts import run_directory as checkpoint
from jaxrec.artifacts.partitions import write_table
from jaxrec.data.dataset import Dataset
from jaxrec.evaluation.calibration import Calibration, Reliability
from jaxrec.evaluation.protocol import results_table
from jaxrec.inference.plots import plot_reliability

matplotlib.use("agg")
# names and paths of users may look like markup
console = Console(width=None if sys.stdout.isatty() else 100, markup=False)
notes = Console(width=None if sys.stderr.isatty() else 100, markup=False, stderr=True)


def describe(dataset: Dataset) -> None:
    """Print the size of the data, and once what was repaired or left out."""
    log, graph = dataset.split.log, dataset.catalog.graph
    console.print(
        f"{log.num_users:,} users, {dataset.catalog.num_items - 1:,} items, "
        f"{len(log.items):,} events ({', '.join(log.event_type_names)}); "
        f"{int(dataset.split.train_lengths.sum()):,} train, "
        f"{len(dataset.split.validation):,} validate, "
        + ", ".join(f"{len(q):,} test ({name})" for name, q in dataset.split.test.items())
    )
    types = ", ".join(f"{t.count - 1:,} {t.name}" for t in graph.types)
    relations = ", ".join(graph.relations) or "no relation"
    console.print(f"graph: {types}; {len(graph.heads):,} edges of {relations}")
    for message in dataset.notes:
        note(message)


def note(message: str) -> None:
    """Print what a user should know and need not act on."""
    notes.print(f"note: {message}")


class EpochBar:
    """A bar with loss, speed and the time left; nothing where there is no terminal."""

    def __init__(self, bar: Progress, task: TaskID):
        self.bar, self.task = bar, task

    def advance(self, loss: float, speed: float) -> None:
        """One more step is done."""
        self.bar.update(self.task, advance=1, loss=loss, speed=speed)


@contextmanager
def epoch_bar(epoch: int, steps: int) -> Iterator[EpochBar]:
    """A progress bar for the steps of an epoch."""
    columns = (
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("loss {task.fields[loss]:.4f}  {task.fields[speed]:,.0f} events/s"),
        TimeRemainingColumn(),
    )
    quiet = not console.is_terminal
    with Progress(*columns, console=console, disable=quiet, transient=True) as bar:
        yield EpochBar(bar, bar.add_task("", total=steps, epoch=epoch + 1, loss=0.0, speed=0.0))


def epoch_line(progress: checkpoint.Progress, speed: float) -> None:
    """Print how an epoch went."""
    scores = progress.history[-1]
    mark = " *" if progress.epochs_since_best == 0 else ""
    console.print(
        f"epoch {progress.epoch}: validation ndcg@10 {scores['ndcg@10']:.4f}, "
        f"recall@10 {scores['recall@10']:.4f}; {speed:,.0f} events/s{mark}"
    )


class RunLog:
    """Scalars of a run, as JSON lines in `log.jsonl` and for TensorBoard.

    A resumed run drops what was logged after the step that it resumes from.
    """

    def __init__(self, run: Path, step: int):
        self.path = run / "log.jsonl"
        rows = [row for row in read_log(run) if row["step"] <= step]
        draft = self.path.with_suffix(".tmp")
        draft.write_text("".join(json.dumps(row) + "\n" for row in rows))
        draft.replace(self.path)
        self.file = self.path.open("a", buffering=1)
        self.tensorboard = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.tensorboard.close()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Log scalars of a step."""
        self.file.write(json.dumps({"step": step, **scalars}) + "\n")
        for name, value in scalars.items():
            self.tensorboard.add_scalar(name, value, step)


def read_log(run: Path) -> list[dict[str, float]]:
    """The rows of `log.jsonl`; a last line that a kill cut off is left out."""
    path = run / "log.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def write_results(run: Path, results: Mapping[str, Any], ranks: pl.DataFrame) -> None:
    """Write `ranks.parquet`, `metrics.json` and the plots, and print the tables."""
    write_table(ranks, run / "ranks.parquet")
    _write_json(run / "metrics.json", results)
    plot_training(run)
    protocol = results["protocol"]
    for name in [key for key in results if key.startswith("test")]:
        title = (
            f"{name}: {protocol['split']}, mask {' '.join(protocol['mask'])}, "
            f"{protocol['candidates']:,} items ranked"
        )
        console.print(results_table(results[name], title))


def write_calibration(run: Path, calibration: Calibration, reliability: Reliability) -> None:
    """Write `calibration.json` and `reliability.png`."""
    fields = {**calibration.as_dict(), "reliability": reliability.as_dict()}
    _write_json(run / checkpoint.CALIBRATION, fields)
    plot_reliability(
        run / "reliability.png", reliability, "Each user's likeliest items against the test events"
    )


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    draft = path.with_name(f"{path.name}.tmp")
    draft.write_text(json.dumps(content, indent=2))
    draft.replace(path)


def plot_training(run: Path) -> None:
    """Draw loss and validation metrics over the steps into `training.png`."""
    rows = read_log(run)
    losses = [row for row in rows if "loss" in row]
    scores = [row for row in rows if "validation/ndcg@10" in row]
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([r["step"] for r in losses], [r["loss"] for r in losses], alpha=0.3)
    window = max(1, len(losses) // 50)
    smooth = np.convolve([r["loss"] for r in losses], np.ones(window) / window, "valid")
    left.plot([r["step"] for r in losses][window - 1 :], smooth, color="C0")
    left.set(xlabel="step", ylabel="training loss, sum of experts")
    for metric in ("ndcg@10", "recall@10", "recall@50"):
        values = [r[f"validation/{metric}"] for r in scores]
        right.plot([r["step"] for r in scores], values, marker=".", label=metric)
    right.set(xlabel="step", ylabel="validation", ylim=(0, None))
    right.legend()
    figure.savefig(run / "training.png", dpi=120)
