"""A large shop end to end: its files, a training, lists for many users, and a list of the service.

    python benchmarks/speed/end_to_end.py [--users 1000000] [--items 500000] [--events 8000000]
        [--steps 500] [--lists 100000] [--out FILE.jsonl] [options of train.py]

The events are random, with items of a Zipf distribution. The model is one expert of ids as wide as
three of the default size, and the training ends after `--steps` steps of its only epoch. Training,
batch scoring and the service are processes of their own. Printed are the seconds of each part and
the peak memory of each process: `load` reads and prepares the tables and compiles the first step,
and `finish` validates, calibrates, tests and saves.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import psutil
from large_catalogue import service, write_tables

sys.path.insert(0, str(Path(__file__).parents[1] / "quality"))
from rows import BENCHMARKS, append_row, commit

import jaxrec
from jaxrec.data.packing import Packing
from jaxrec.training.fit import fit
from jaxrec.training.logging import read_log

MIB = 2**20
OPTIONS = {
    "model.experts": "id",
    "model.hidden_size": "192",
    "train.loss": "sampled_softmax",
    "train.sparse_rows": "true",
    "train.epochs": "1",
    "evaluation.queries": "1000",
}


def main() -> None:
    """Measure all parts."""
    options, overrides = read_options()
    if options.stage == "train":
        train(options, overrides)
        return
    commit()
    sizes = {name: getattr(options, name) for name in ("users", "items", "events", "lists")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tables(folder, options.items, options.users, options.events)
        command = [sys.executable, *sys.argv, "--stage", "train", "--folder", name]
        seconds, memory = timed(command)
        parts = json.loads((folder / "parts.json").read_text())
        figures = {"train": {**parts, "total": seconds, "peak_mib": memory}}
        some_users(folder, options.lists)
        command = ["recommend", str(folder / "run"), "--events", str(folder / "some.parquet")]
        command += ["--out", str(folder / "lists"), "--k", "10", "--quiet"]
        seconds, memory = timed([sys.executable, "-m", "jaxrec", *command])
        rate = round(options.lists / seconds)
        figures["recommend"] = {"total": seconds, "users_per_second": rate, "peak_mib": memory}
        figures["serve"] = served(folder / "run")
    date = datetime.now(UTC).date().isoformat()
    settings = {"options": overrides, "cores": len(os.sched_getaffinity(0))}
    row = sizes | figures | settings | {"code": commit(), "date": date}
    print(json.dumps(row, indent=1))
    append_row(options.out, row)


def read_options() -> tuple[argparse.Namespace, list[str]]:
    """The options of the script, and those of `train.py`."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    sizes = {"users": 1_000_000, "items": 500_000, "events": 8_000_000}
    for name, default in {**sizes, "steps": 500, "lists": 100_000}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, default=BENCHMARKS / "results" / "end_to_end.jsonl")
    parser.add_argument("--stage", default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_known_args()


def train(options: argparse.Namespace, overrides: list[str]) -> None:
    """Train some steps on the files of a folder, and write the seconds of the parts there."""
    all_steps = Packing.steps_per_epoch.fget
    assert all_steps is not None
    # no option bounds the steps of an epoch
    Packing.steps_per_epoch = property(lambda packing: min(all_steps(packing), options.steps))
    arguments = [f"--{name}={value}" for name, value in OPTIONS.items()]
    config = jaxrec.configure(None, str(options.folder), arguments=[*arguments, *overrides])
    start, run = time.perf_counter(), options.folder / "run"
    fit(config, run)
    total = time.perf_counter() - start
    steps = [row for row in read_log(run) if "loss" in row]
    first, last = steps[0]["seconds"], steps[-1]["seconds"]
    parts = {
        "load": round(first, 1),
        "steps": len(steps),
        "step": round((last - first) / max(len(steps) - 1, 1), 4),
        "finish": round(total - last, 1),
    }
    (options.folder / "parts.json").write_text(json.dumps(parts))


def timed(command: list[str]) -> tuple[float, int]:
    """Seconds and MiB at the peak of a process."""
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        sys.exit(f"{' '.join(command)} ended with the exit code {code}")
    return round(time.perf_counter() - start, 1), round(usage.ru_maxrss / 1024)


def some_users(folder: Path, count: int) -> None:
    """Write the events of the first users to a file of their own."""
    users = pl.col("user_id").str.slice(1).cast(pl.Int64)
    events = pl.scan_parquet(folder / "events.parquet").filter(users < count)
    events.sink_parquet(folder / "some.parquet")


def served(run: Path) -> dict[str, float]:
    """Seconds until a service is ready, and of an event and a list; MiB after them."""
    start = time.perf_counter()
    with service(run, "int8") as (process, client):
        figures = {"ready": time.perf_counter() - start}
        event = {"user_id": "new", "item_id": "i1", "event": "view"}
        requests = {
            "event": ("POST", "/events", event),
            "list": ("GET", "/users/new/recommendations", None),
        }
        for name, (method, path, content) in requests.items():
            begin = time.perf_counter()
            client.request(method, path, json=content).raise_for_status()
            figures[name] = time.perf_counter() - begin
        memory = psutil.Process(process.pid).memory_info().rss
    return {name: round(value, 4) for name, value in figures.items()} | {"mib": round(memory / MIB)}


if __name__ == "__main__":
    main()
