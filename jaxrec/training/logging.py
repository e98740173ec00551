"""The reports of a run: the console, `log.jsonl`, TensorBoard, result files and plots.

matplotlib and tensorboardX are slow to import, so they are imported where they are used.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from jaxrec.artifacts import run_directory
from jaxrec.artifacts.files import write_json, write_table
from jaxrec.data.dataset import Dataset
from jaxrec.evaluation.reliability import Reliability
from jaxrec.evaluation.tables import baseline_lines, results_table
from jaxrec.processes import is_first
from jaxrec.runtime import atomic_path

# no markup, because names and paths of users may look like it
console = Console(width=None if sys.stdout.isatty() else 100, markup=False, soft_wrap=True)
notes = Console(
    width=None if sys.stderr.isatty() else 100, markup=False, soft_wrap=True, stderr=True
)


def let_only_first_print() -> None:
    """Silence the console of every process but the first."""
    console.quiet = notes.quiet = not is_first()


def describe(dataset: Dataset) -> None:
    """Print the size of the data, and what was repaired or left out."""
    log, graph, split = dataset.split.log, dataset.catalog.graph, dataset.split
    console.print(
        f"{log.num_users:,} users, {dataset.catalog.num_items - 1:,} items, "
        f"{len(log.items):,} events ({', '.join(log.event_type_names)}); "
        f"{int(split.train_lengths.sum()):,} train, {len(split.validation):,} validate, "
        + ", ".join(f"{len(queries):,} test ({name})" for name, queries in split.test.items())
    )
    types = ", ".join(f"{t.count - 1:,} {t.name}" for t in graph.types)
    relations = ", ".join(graph.relations) or "no relation"
    console.print(f"graph: {types}; {len(graph.heads):,} edges of {relations}")
    print_notes(dataset.notes)


def print_notes(messages: tuple[str, ...]) -> None:
    """Print what the user should know but need not act on."""
    for message in messages:
        notes.print(f"note: {message}")


@contextmanager
def epoch_bar(epoch: int, steps: int) -> Iterator[Callable[[float, float], None]]:
    """A progress bar of an epoch; `advance(loss, speed)` shows that one more step is done.

    It is invisible without a terminal.
    """
    columns = (
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("loss {task.fields[loss]:.4f}  {task.fields[speed]:,.0f} events/s"),
        TimeRemainingColumn(),
    )
    quiet = not console.is_terminal
    with Progress(*columns, console=console, disable=quiet, transient=True) as bar:
        task = bar.add_task("", total=steps, epoch=epoch + 1, loss=0.0, speed=0.0)
        yield lambda loss, speed: bar.update(task, advance=1, loss=loss, speed=speed)


def epoch_line(progress: run_directory.Progress, speed: float, *, validated: bool = True) -> None:
    """Print the validation result of an epoch, if any; `*` marks the best epoch so far."""
    if not validated:
        console.print(f"epoch {progress.epoch}: {speed:,.0f} events/s")
        return
    scores = progress.history[-1]
    mark = " *" if progress.epochs_since_best == 0 else ""
    console.print(
        f"epoch {progress.epoch}: validation ndcg@10 {scores['ndcg@10']:.4f}, "
        f"recall@10 {scores['recall@10']:.4f}; {speed:,.0f} events/s{mark}"
    )


def note_waiting(waited: float, seconds: float) -> None:
    """Say how much of an epoch was waiting for batches, if that took long."""
    if waited > max(1.0, 0.1 * seconds):
        print_notes((f"training waited for batches {waited / seconds:.0%} of the time",))


class RunLog:
    """The scalars of a run, as JSON lines in `log.jsonl` and for TensorBoard.

    Args:
        step: the step that training starts from; a resumed run drops the rows after it.
        validated: whether the checkpoint of this step has been validated; if not, its validation
            is logged again.
        cost: what the run has cost so far, which every row tells.
    """

    def __init__(
        self,
        run: Path,
        step: int,
        *,
        validated: bool = True,
        cost: Callable[[], dict[str, float]] = dict,
    ):
        from tensorboardX import SummaryWriter

        path = run / "log.jsonl"
        last = (step, validated)
        rows = [row for row in read_log(run) if (row["step"], "loss" not in row) <= last]
        with atomic_path(path) as draft:
            draft.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.cost = cost
        self.file = path.open("a", buffering=1)
        self.tensorboard = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.file.close()
            self.tensorboard.close()
        except OSError:  # or it fails again when the process exits, with a traceback
            self.tensorboard.file_writer.event_writer._closed = True
            raise

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Log the scalars of a step."""
        self.file.write(json.dumps({"step": step, **scalars, **self.cost()}) + "\n")
        for name, value in scalars.items():
            self.tensorboard.add_scalar(name, value, step)


class NoLog(RunLog):
    """What other processes than the first log: nothing."""

    def __init__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Log nothing."""


def open_log(
    run: Path,
    step: int,
    *,
    validated: bool = True,
    cost: Callable[[], dict[str, float]] = dict,
) -> RunLog:
    """The log of a run, which the first process writes; arguments as of `RunLog`."""
    return RunLog(run, step, validated=validated, cost=cost) if is_first() else NoLog()


def read_log(run: Path) -> list[dict[str, float]]:
    """The rows of `log.jsonl`, without a last line that a kill cut off."""
    path = run / "log.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def write_results(run: Path, results: Mapping[str, Any], ranks: pl.DataFrame) -> None:
    """Write `ranks.parquet` and `metrics.json`, and print the test tables."""
    write_table(ranks, run / "ranks.parquet")
    write_json(run / "metrics.json", results)
    for name, part in {"": results, **results.get("shops", {})}.items():
        _print_results(part, f"{name}, " if name else "")


def _print_results(results: Mapping[str, Any], shop: str) -> None:
    protocol = results["protocol"]
    for name in [key for key in results if key.startswith("test")]:
        title = (
            f"{shop}{name}: {protocol['split']}, mask {' '.join(protocol['mask'])}, "
            f"{protocol['candidates']:,} items ranked"
        )
        console.print(results_table(results[name], title))
    for line in baseline_lines(results.get("baselines", {})):
        console.print(line)


def draw_plots(run: Path, reliability: Reliability | None) -> None:
    """Draw `training.png` and, if it was measured, `reliability.png`.

    A plot that cannot be drawn is a note.
    """
    from jaxrec.inference.plots import plot_reliability
    from jaxrec.training.plots import plot_training

    title = "Each user's likeliest items against the test events"
    plots: dict[str, Callable[[Path], None]] = {
        "training.png": lambda path: plot_training(path, read_log(run)),
    }
    if reliability is not None:
        plots["reliability.png"] = lambda path: plot_reliability(path, reliability, title)
    for name, draw in plots.items():
        try:
            draw(run / name)
        except Exception as error:  # whatever it is, the results are there
            print_notes((f"{name} is not drawn: {error}",))
