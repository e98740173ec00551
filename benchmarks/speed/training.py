"""Train jaxrec beside its peers, all with one hidden size, depth, history length and full softmax.

    python benchmarks/speed/training.py --data ml-100k --packed-rows 128
    python benchmarks/speed/training.py --data path/to/amazon_beauty --dropout .5 --seconds 600

All systems train on the same histories (leave-one-out, ids alone), each in a process of its own, in
turn, `--rounds` times, until `--epochs` or `--seconds` of training have passed. The first epoch of
a process may compile, so it is left out where there are more. Printed are medians of events/s
(targets without padding and warm-up), the peak memory of the process, the seconds of ranking all
items for all users, and the time that jaxrec needs to reach the best validation NDCG@10 of each
peer.

The peers are SASRec and eSASRec of RecTools, GRU4Rec of RecBole and GRU layers in Keras on JAX.
`benchmarks/peers/run.py` installs each into an environment of its own; they need Python 3.11
(`--python`).
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from jaxrec.runtime import cache_dir

PEERS = Path(__file__).parent.parent / "peers"
PEER_NAMES = ("Keras GRU on JAX", "RecTools SASRec", "RecTools eSASRec", "RecBole GRU4Rec")
RECIPES = {"ml-100k": "ml100k", "ml-1m": "ml1m"}
SIZES = {
    "hidden_size": 64,
    "num_layers": 2,
    "history": 50,
    "batch_size": 128,
    "packed_rows": 64,
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
    parser.add_argument("--systems", nargs="*", default=PEER_NAMES, help="beginnings of names")
    parser.add_argument("--environments", type=Path, default=cache_dir() / "peers")
    parser.add_argument("--python", default=sys.executable, help="creates the environments")
    options = parser.parse_args()
    peers = [name for name in PEER_NAMES if name.startswith(tuple(options.systems))]
    results: dict[str, list[list[dict]]] = {name: [] for name in ("jaxrec", *peers)}
    with tempfile.TemporaryDirectory() as folder:
        export(options.data, folder)
        for _ in range(options.rounds):
            for name, runs in results.items():
                runs.append(train(name, folder, options))
    Console(width=120).print(table(results, options))


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


def table(results: dict[str, list[list[dict]]], options: argparse.Namespace) -> Table:
    """The medians of every system, and how jaxrec compares."""
    sizes = f"D={options.hidden_size}, {options.num_layers} layers, history {options.history}"
    result = Table(title=f"{options.data}: {sizes}, full softmax", title_justify="left")
    for heading in (
        "system",
        "events/s",
        "jaxrec is x times",
        "s an epoch",
        "peak MiB",
        "ranking s",
        "jaxrec is x times",
        "best NDCG@10",
        "after s",
        "jaxrec after s",
        "x times",
    ):
        result.add_column(heading, justify="left" if heading == "system" else "right")
    jaxrec = results["jaxrec"]
    for name, runs in results.items():
        best = max((epoch for epochs in runs for epoch in epochs), key=lambda e: e["ndcg"])
        reached = time_to(jaxrec, best["ndcg"])
        rank = median(runs, lambda e: e["evaluation"])
        speed = median(runs, lambda e: e["targets"] / e["seconds"])
        result.add_row(
            name,
            f"{speed:,.0f}",
            f"{median(jaxrec, lambda e: e['targets'] / e['seconds']) / speed:.1f}",
            f"{median(runs, lambda e: e['seconds']):.1f}",
            f"{max(e['peak_mib'] for epochs in runs for e in epochs):,.0f}",
            f"{rank:.2f}",
            f"{rank / median(jaxrec, lambda e: e['evaluation']):.1f}",
            f"{best['ndcg']:.4f}",
            f"{best['trained']:.0f}",
            f"{reached:.0f}",
            f"{best['trained'] / reached:.1f}",
        )
    return result


def median(runs: list[list[dict]], value) -> float:
    """The median over epochs, without the first one of each run that has several."""
    return float(np.median([value(e) for epochs in runs for e in epochs[1:] or epochs]))


def time_to(runs: list[list[dict]], score: float) -> float:
    """Median seconds of training, with compilation, to reach an NDCG; infinite if not reached."""
    times = [
        min((e["trained"] for e in epochs if e["ndcg"] >= score), default=np.inf) for epochs in runs
    ]
    return float(np.median(times))


if __name__ == "__main__":
    main()
