"""Train jaxrec beside its peers, all with one hidden size, depth, history length and full softmax.

    python benchmarks/speed/training.py --data ml-100k --history 200
    python benchmarks/speed/training.py --data path/to/amazon_beauty --dropout .5 --epochs 3 \
        --batches 20 --rounds 3 --out FILE.jsonl

All systems train on the same histories (leave-one-out, ids alone), each in a process of its own, in
turn, `--rounds` times, until `--epochs` or `--seconds` of training have passed. All keep freed
memory, and a step of each reads as many users, so it has as many targets. The first epoch of a
process may compile, so it is left out where there are more. Printed are medians over the rounds,
with the lowest and the highest ratio of a round:

* events/s: targets without padding and warm-up. jaxrec packs several users into a row and the peers
  pad, so the ratio of events/s is that of time steps per second (`slots/s`) times that of the
  share of time steps with a target (`packing`).
* MiB: the peak memory of the process.
* ranking s: from the histories of all users to the ids of the ten best unseen items of each.
* NDCG@10: the best on validation, after how many seconds of training, and when jaxrec reached it.

The peers are SASRec and eSASRec of RecTools, GRU4Rec of RecBole and GRU layers in Keras on JAX.
`benchmarks/peers/run.py` installs each into an environment of its own; they need Python 3.11
(`--python`).
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from jaxrec.runtime import cache_dir

sys.path.insert(0, str(Path(__file__).parents[1] / "quality"))
from rows import append_row, commit

PEERS = Path(__file__).parent.parent / "peers"
PEER_NAMES = ("Keras GRU on JAX", "RecTools SASRec", "RecTools eSASRec", "RecBole GRU4Rec")
RECIPES = {"ml-100k": "ml100k", "ml-1m": "ml1m"}
SIZES = {
    "hidden_size": 64,
    "num_layers": 2,
    "history": 50,
    "batch_size": 128,
    "epochs": 20,
    "batches": 0,
    "dropout": 0.2,
    "seconds": 300.0,
}
"""The options of `benchmarks/peers/protocol.py` and their defaults here."""


def main() -> None:
    """Measure speed, memory and quality of jaxrec and its peers in training."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="ml-100k")
    for name, default in SIZES.items():
        parser.add_argument(flag(name), type=type(default), default=default)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a file that a row of every system is added to")
    parser.add_argument("--systems", nargs="*", default=PEER_NAMES, help="beginnings of names")
    parser.add_argument("--environments", type=Path, default=cache_dir() / "peers")
    parser.add_argument("--python", default=sys.executable, help="creates the environments")
    options = parser.parse_args()
    if options.out:
        commit()
    peers = [name for name in PEER_NAMES if name.startswith(tuple(options.systems))]
    results: dict[str, list[list[dict]]] = {name: [] for name in ("jaxrec", *peers)}
    with tempfile.TemporaryDirectory() as folder:
        export(options.data, folder)
        for _ in range(options.rounds):
            for name, runs in results.items():
                runs.append(train(name, folder, options))
    rows = [summary(name, results) for name in results]
    Console(width=190).print(table(rows, options))
    if options.out:
        sizes = {name: getattr(options, name) for name in ("data", *SIZES, "rounds")}
        sizes["data"] = Path(sizes["data"]).name
        for row in rows:
            append_row(options.out, sizes | row | {"code": commit(), "date": str(date.today())})


def export(data: str, folder: str) -> None:
    """Write the histories that all systems read."""
    command = [sys.executable, str(PEERS / "export.py"), folder, "--data", data]
    command += ["--config", RECIPES.get(data, "beauty"), "--split.scheme", "leave_one_out"]
    subprocess.run(command, check=True)


def train(system: str, folder: str, options: argparse.Namespace) -> list[dict]:
    """Train a system; one entry an epoch, with the fields of `peers/protocol.py`."""
    command = [sys.executable, str(PEERS / "run.py"), system, "--data", folder]
    command += ["--environments", str(options.environments), "--python", options.python]
    for name in SIZES:
        command += [flag(name), str(getattr(options, name))]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{system} failed:\n{result.stderr[-3000:]}")
    lines = [line for line in result.stdout.splitlines() if line.startswith("RESULT")]
    epochs = [json.loads(line.removeprefix("RESULT")) for line in lines]
    speeds = " ".join(f"{e['targets'] / e['seconds']:,.0f}" for e in epochs)
    scores = " ".join(f"{e['ndcg']:.4f}" for e in epochs)
    print(f"{system}: events/s {speeds}; validation NDCG@10 {scores}", flush=True)
    return epochs


def flag(name: str) -> str:
    """The command-line flag of an option."""
    return "--" + name.replace("_", "-")


def summary(name: str, results: dict[str, list[list[dict]]]) -> dict[str, Any]:
    """A system's medians, and the median, lowest and highest ratio of a round to jaxrec."""
    runs, jaxrec = results[name], results["jaxrec"]
    best = max((epoch for epochs in runs for epoch in epochs), key=lambda e: e["ndcg"])

    def per_second(what: str) -> Callable[[dict], float]:
        return lambda epoch: epoch[what] / epoch["seconds"]

    targets, slots = (
        ratios(jaxrec, runs, per_second("targets")),
        ratios(jaxrec, runs, per_second("slots")),
    )
    return {
        "system": name,
        "events_per_second": round(float(np.median(of_rounds(runs, per_second("targets"))))),
        "jaxrec_is": spread(targets),
        "slots": spread(slots),
        "packing": spread(targets / slots),
        "mib": round(max(epoch["peak_mib"] for epochs in runs for epoch in epochs)),
        "ranking_seconds": round(float(np.median(of_rounds(runs, lambda e: e["ranking"]))), 2),
        "ranking": spread(ratios(runs, jaxrec, lambda e: e["ranking"])),
        "ndcg": round(best["ndcg"], 4),
        "seconds": round(best["trained"]),
        "jaxrec_seconds": time_to(jaxrec, best["ndcg"]),
    }


def table(rows: list[dict[str, Any]], options: argparse.Namespace) -> Table:
    """The rows of all systems."""
    sizes = f"D={options.hidden_size}, {options.num_layers} layers, history {options.history}"
    result = Table(title=f"{options.data}: {sizes}, full softmax", title_justify="left")
    for heading in (
        "system",
        "events/s",
        "jaxrec is x times",
        "of that slots/s",
        "packing",
        "MiB",
        "ranking s",
        "jaxrec is x times",
        "best NDCG@10",
        "after s",
        "jaxrec after s",
    ):
        result.add_column(heading, justify="left" if heading == "system" else "right")
    for row in rows:
        cells = (
            "{:.1f} ({:.1f} to {:.1f})".format(*value)
            if isinstance(value, list)
            else f"{value:,}"
            if isinstance(value, int)
            else str(value)
            for value in row.values()
        )
        result.add_row(*cells)
    return result


def of_rounds(runs: list[list[dict]], value: Callable[[dict], float]) -> np.ndarray:
    """The median of every round's epochs, without the first one if there are several."""
    return np.array([np.median([value(e) for e in epochs[1:] or epochs]) for epochs in runs])


def ratios(
    runs: list[list[dict]], others: list[list[dict]], value: Callable[[dict], float]
) -> np.ndarray:
    """Round by round, the value of one system divided by that of another."""
    return of_rounds(runs, value) / of_rounds(others, value)


def spread(values: np.ndarray) -> list[float]:
    """The median, the lowest and the highest value."""
    return [round(float(v), 2) for v in (np.median(values), values.min(), values.max())]


def time_to(runs: list[list[dict]], score: float) -> float:
    """Median seconds of training, with compilation, to reach an NDCG; infinite if not reached."""
    times = [
        min((e["trained"] for e in epochs if e["ndcg"] >= score), default=np.inf) for epochs in runs
    ]
    return round(float(np.median(times)), 1)


if __name__ == "__main__":
    main()
