"""Training beside its peers, all at one width, depth, history length and full softmax.

    python benchmarks/training.py --data ml-100k --rows 128
    python benchmarks/training.py --data path/to/amazon_beauty --dropout .5 --seconds 600

Every system trains on the same histories (leave one out, ids alone) in a process of its own, in
turn, `--rounds` times, until `--epochs` or `--seconds` of training have passed. The first epoch
of a process is left out where there are more, as it may compile. Printed are medians of events/s
(real targets: no padding, no warm-up), peak memory of the process, seconds of ranking all items
for all users, and the time that jaxrec needs to the best validation NDCG@10 of each peer.

The peers are installed into environments of their own under `--environments` the first time.
They need Python 3.11 (`--python`) and are SASRec and eSASRec of RecTools, GRU4Rec of RecBole and
GRU layers in Keras on JAX; see `peers/`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

from jaxrec.api import configure
from jaxrec.config import Config
from jaxrec.data.dataset import prepare
from jaxrec.runtime import cache_dir

PEERS = Path(__file__).parent.parent / "peers"
SHARED = ("width", "blocks", "history", "dropout", "batch", "rows", "epochs", "seconds", "batches")


@dataclass(frozen=True)
class System:
    """A script under `peers/` and the packages of its environment, installed in this order."""

    name: str
    script: str
    arguments: tuple[str, ...] = ()
    environment: str = ""  # none: this one
    packages: tuple[tuple[str, ...], ...] = ()


RECTOOLS = (("torch==2.13.0", "rectools[torch]==0.19.0"),)
RECBOLE = (
    ("torch==2.13.0",),
    ("numpy<2", "pandas<2.2", "scipy<1.12", "recbole==1.2.1", "setuptools<80"),
)
KERAS = (("jax==0.6.*", "keras>=3"),)
SYSTEMS = (
    System("jaxrec", "jaxrec_lstm.py"),
    System("Keras GRU on JAX", "keras_gru.py", (), "kjax", KERAS),
    System("RecTools SASRec", "rectools_sasrec.py", ("sasrec",), "rectools", RECTOOLS),
    System("RecTools eSASRec", "rectools_sasrec.py", ("esasrec",), "rectools", RECTOOLS),
    System("RecBole GRU4Rec", "recbole_gru4rec.py", (), "recbole", RECBOLE),
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="ml-100k")
    sizes = {"width": 64, "blocks": 2, "history": 50, "batch": 128, "rows": 64}
    sizes |= {"epochs": 20, "batches": 0}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--systems", nargs="*", default=[system.name for system in SYSTEMS])
    parser.add_argument("--environments", type=Path, default=cache_dir() / "peers")
    parser.add_argument("--python", default=sys.executable, help="for the environments of peers")
    options = parser.parse_args()
    wanted = ("jaxrec", *options.systems)
    systems = [s for s in SYSTEMS if s.name.startswith(wanted)]
    results: dict[str, list[list[dict]]] = {system.name: [] for system in systems}
    with tempfile.TemporaryDirectory() as folder:
        known = {"ml-100k": "ml100k", "ml-1m": "ml1m"}.get(options.data, "beauty")
        held_out = {"split.scheme": "leave_one_out"}
        export(configure(known, data=options.data, overrides=held_out), Path(folder))
        for _ in range(options.rounds):
            for system in systems:
                results[system.name].append(run(system, Path(folder), options))
    Console(width=120).print(table(results, options))


def export(config: Config, folder: Path) -> None:
    """Histories of users with three events or more, as arrays and as jaxrec's tables."""
    dataset = prepare(config)
    log = dataset.split.log
    lengths = np.diff(log.offsets)
    items = log.items[np.repeat(lengths >= 3, lengths)]
    lengths = lengths[lengths >= 3]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    num_items = dataset.catalog.num_items - 1
    np.savez(
        folder / "histories.npz",
        user_ids=log.user_ids.filter(log.lengths >= 3).to_numpy().astype(str),
        offsets=offsets,
        items=items,
        num_items=num_items,
    )
    moments = np.arange(len(items)) - np.repeat(offsets[:-1], lengths)
    users = np.repeat(np.arange(len(lengths)), lengths)
    events = {"user_id": users.astype(str), "item_id": items.astype(str), "timestamp": moments}
    pl.DataFrame(events).write_parquet(folder / "events.parquet")
    ids = np.arange(1, num_items + 1).astype(str)
    pl.DataFrame({"item_id": ids}).write_parquet(folder / "items.parquet")


def run(system: System, folder: Path, options: argparse.Namespace) -> list[dict]:
    """What a system user_events, an entry an epoch."""
    command = [str(python_of(system, options)), str(PEERS / system.script), "--data", str(folder)]
    for name in SHARED:
        command += [f"--{name}", str(getattr(options, name))]
    done = subprocess.run([*command, *system.arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{system.name} failed:\n{done.stderr[-3000:]}")
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    epochs = [json.loads(line.removeprefix("RESULT")) for line in lines]
    speeds = " ".join(f"{e['targets'] / e['seconds']:,.0f}" for e in epochs)
    scores = " ".join(f"{e['ndcg']:.4f}" for e in epochs)
    print(f"{system.name}: events/s {speeds}; validation NDCG@10 {scores}", flush=True)
    return epochs


def python_of(system: System, options: argparse.Namespace) -> Path:
    """The Python of a system's environment, which is made if it is not there."""
    if not system.environment:
        return Path(sys.executable)
    folder = options.environments / system.environment
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"installing {system.name} into {folder}", flush=True)
        subprocess.run([options.python, "-m", "venv", str(folder)], check=True)
        for packages in system.packages:
            subprocess.run([str(python), "-m", "pip", "install", "-q", *packages], check=True)
    return python


def table(results: dict[str, list[list[dict]]], options: argparse.Namespace) -> Table:
    sizes = f"D={options.width}, {options.blocks} blocks, history {options.history}"
    shown = Table(title=f"{options.data}: {sizes}, full softmax", title_justify="left")
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
        shown.add_column(heading, justify="left" if heading == "system" else "right")
    own = results["jaxrec"]
    for name, runs in results.items():
        best = max((epoch for epochs in runs for epoch in epochs), key=lambda e: e["ndcg"])
        reached = time_to(own, best["ndcg"])
        rank = median(runs, lambda e: e["evaluation"])
        speed = median(runs, lambda e: e["targets"] / e["seconds"])
        shown.add_row(
            name,
            f"{speed:,.0f}",
            f"{median(own, lambda e: e['targets'] / e['seconds']) / speed:.1f}",
            f"{median(runs, lambda e: e['seconds']):.1f}",
            f"{max(e['peak_mib'] for epochs in runs for e in epochs):,.0f}",
            f"{rank:.2f}",
            f"{rank / median(own, lambda e: e['evaluation']):.1f}",
            f"{best['ndcg']:.4f}",
            f"{best['trained']:.0f}",
            f"{reached:.0f}",
            f"{best['trained'] / reached:.1f}",
        )
    return shown


def median(runs: list[list[dict]], value) -> float:
    """Over all epochs but the first of each run, if a run has more."""
    return float(np.median([value(e) for epochs in runs for e in epochs[1:] or epochs]))


def time_to(runs: list[list[dict]], score: float) -> float:
    """Median seconds of training, compilation included, to an NDCG; infinite if it is not met."""
    times = [
        min((e["trained"] for e in epochs if e["ndcg"] >= score), default=np.inf) for epochs in runs
    ]
    return float(np.median(times))


if __name__ == "__main__":
    main()
