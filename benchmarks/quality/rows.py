"""Rows of the files in `benchmarks/results`: one for each run, with the commit that made it."""

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import numpy as np

from jaxrec.config import Config

BENCHMARKS = Path(__file__).parent.parent
CODE = ("../jaxrec", "../configs", "../examples", "../pyproject.toml", ".", ":!results")


@cache
def commit() -> str:
    """The commit of this checkout when it is first asked for.

    A benchmark asks before it trains. It ends here if the code was changed since that commit:
    nobody could repeat such a row.
    """
    if changed := _git("status", "--porcelain", "--", *CODE):
        sys.exit(f"commit these changes first, because each row names its commit:\n{changed}")
    return _git("describe", "--always", "--exclude", "*")


def _git(*arguments: str) -> str:
    """What a git command prints about this checkout."""
    done = subprocess.run(
        ["git", *arguments], cwd=BENCHMARKS, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def read_rows(path: Path) -> list[dict]:
    """The rows of a file of results; none before the first run."""
    return [json.loads(row) for row in path.read_text().splitlines()] if path.exists() else []


def find_row(path: Path, **values: object) -> dict | None:
    """The row of a file of results with these values; None if there is none."""
    rows = read_rows(path)
    return next((row for row in rows if all(row[n] == v for n, v in values.items())), None)


def append_row(path: Path, row: dict) -> None:
    """Add a row to a file of results."""
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def run_key(config: Config, event_type: str = "") -> str:
    """A hash of the options that differ from their defaults, the same wherever the data are.

    Args:
        event_type: the only event type that the run reads, if it does not read all of them.
    """
    options, defaults = asdict(config), asdict(Config())
    options["data"]["source"] = Path(config.data.source).name
    changed = {
        f"{section}.{name}": value
        for section, values in options.items()
        for name, value in values.items()
        if value != defaults[section][name]
    }
    text = json.dumps(changed, sort_keys=True) + event_type
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def minutes_of(log: list[dict]) -> float:
    """The minutes of a training, in all processes that went on with it."""
    return round(log[-1]["seconds"] / 60, 1)


def about_run(config: Config, log: list[dict], start: float) -> dict:
    """What a row says of a run beside its figures.

    Args:
        log: of the training; empty without one.
        start: of `time.perf_counter`, for what was not trained.
    """
    minutes = minutes_of(log) if log else round((time.perf_counter() - start) / 60, 1)
    return {
        "seed": config.train.seed,
        "code": commit(),
        "date": datetime.now(UTC).date().isoformat(),
        "epochs": sum("validation/ndcg@10" in entry for entry in log),
        "minutes": minutes,
    }


def scores(results: dict) -> dict:
    """The model's NDCG@10 and recall@10 on one set of queries, and those of its segments."""
    model = results.get("model", results)
    rounded = {name: round(model[name], 5) for name in ("ndcg@10", "recall@10")}
    segments = {
        name: [values["count"], round(values["ndcg@10"], 5), round(values["recall@10"], 5)]
        for name, values in results.get("segments", {}).items()
        if values["count"]
    }
    return rounded | ({"segments": segments} if segments else {})


def mean_of(rows: list[dict], figure: Callable[[dict], float]) -> str:
    """The mean of a figure over seeds, with the standard deviation from three seeds on."""
    values = np.array([figure(row) for row in rows])
    spread = f" ± {short(values.std(ddof=1))}" if len(values) > 2 else ""
    return short(values.mean()) + spread


def short(figure: float) -> str:
    """A figure below 1 as the pages write it: .0123."""
    return f"{figure:.4f}".lstrip("0")
