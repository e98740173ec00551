"""Lists from a catalogue of a million items: memory, latency and recall of 8-bit codes.

    python benchmarks/speed/large_catalogue.py [--items 1000000] [--run RUN]

The script trains a run for one epoch on random events, or takes one, and starts `serve.py` once
for each precision of the item table. Every service records the same events of some users and makes
one list after another. Printed are its own memory and that of mapped files, the latency of events,
lists and profiles, and the share of the exact lists, those of batch scoring, that each service
finds.
"""

import argparse
import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl
import psutil

import jaxrec

ROOT = Path(__file__).parents[2]
START, DAY = 1_700_000_000, 86_400
USERS, EVENTS = 200, 8  # whose lists are compared


def main() -> None:
    """Compare the precisions."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--run", type=Path, help="take this run, which keeps a trained one")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--precision", nargs="+", default=["float32", "int8"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = options.run or Path(folder, "run")
        if not (run / "metrics.json").exists():
            train(Path(folder), run, options.items)
        ids = pl.read_parquet(run / "catalog" / "items.parquet")["item_id"].drop_nulls().to_list()
        events = histories(ids)
        lists = {name: measure(run, name, events, options.k) for name in options.precision}
        table = jaxrec.load(run).recommend(events, k=options.k)
        exact = dict(table.group_by("user_id").agg("item_id").iter_rows())
    for precision, own in lists.items():
        shares = [len({*items} & {*exact[f"u{n}"]}) / options.k for n, items in enumerate(own)]
        print(f"{precision} finds {np.mean(shares):.4f} of the items of {USERS} lists")


def histories(ids: list[str]) -> pl.DataFrame:
    """The events of all users, with items of a Zipf distribution."""
    places = np.arange(USERS * EVENTS)
    items = np.minimum(np.random.default_rng(1).zipf(1.2, len(places)), len(ids)) - 1
    return pl.DataFrame(
        {
            "user_id": [f"u{user}" for user in places // EVENTS],
            "item_id": [ids[item] for item in items],
            "timestamp": START + 100 * DAY + places % EVENTS,
            "event": "view",
        }
    )


def train(folder: Path, run: Path, items: int) -> None:
    """Train one epoch on random events and brands."""
    write_tables(folder, items, users=1000, events=8000)
    arguments = ["--train.epochs", "1", "--evaluation.queries", "200"]
    # as wide as three experts of the default size; training graphs of this size needs more memory
    arguments += ["--model.experts", "id", "--model.hidden-size", "192"]
    arguments += ["--train.loss", "sampled_softmax", "--train.sparse_rows", "true"]
    command = [sys.executable, str(ROOT / "train.py"), "--data", str(folder), "--run", str(run)]
    subprocess.run([*command, *arguments], check=True)


def write_tables(folder: Path, items: int, users: int, events: int) -> None:
    """Write random events, with items of a Zipf distribution, and items of random brands."""
    random = np.random.default_rng(0)
    ids = [f"i{n}" for n in range(items)]
    brands = random.integers(items // 200, size=items)
    table = pl.DataFrame({"item_id": ids, "brand": [f"b{n}" for n in brands]})
    table.write_parquet(folder / "items.parquet")
    numbers = np.arange(events) % users
    drawn = np.minimum(random.zipf(1.2, events), items) - 1
    log = pl.DataFrame(
        {
            "user_id": [f"u{n}" for n in numbers],
            "item_id": [ids[n] for n in drawn],
            "timestamp": START + random.integers(90 * DAY, size=events),
            "event": "view",
        }
    )
    log.write_parquet(folder / "events.parquet")


def measure(run: Path, precision: str, events: pl.DataFrame, k: int) -> list[list[str]]:
    """Print memory and latency of a service; return its lists."""
    with service(run, precision) as (process, client):
        lists, seconds = [], {name: list[float]() for name in ("event", "list", "profile")}

        def ask(name: str, method: str, path: str, **content: Any) -> Any:
            start = time.perf_counter()
            answer = client.request(method, path, **content)
            seconds[name].append(time.perf_counter() - start)
            return answer.raise_for_status().json()

        for event in events.to_dicts():
            ask("event", "POST", "/events", json=event)
        for user in range(USERS):
            listed = ask("list", "GET", f"/users/u{user}/recommendations", params={"k": k})
            lists.append([item["id"] for item in listed["items"]])
            ask("profile", "GET", f"/users/u{user}/profile")
        memory = psutil.Process(process.pid).memory_info()
    shown = [
        f"{name} in {1000 * np.median(times):.1f} ms (p99 {1000 * np.quantile(times, 0.99):.1f})"
        for name, times in seconds.items()
    ]
    own, files = (memory.rss - memory.shared) / 2**20, memory.shared / 2**20
    print(f"{precision}: {own:,.0f} MiB of its own, {files:,.0f} MiB of files; {', '.join(shown)}")
    return lists


@contextlib.contextmanager
def service(run: Path, precision: str) -> Iterator[tuple[subprocess.Popen, httpx.Client]]:
    """A service with an empty store, once it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, str(ROOT / "serve.py"), str(run), "--http", address]
    options = ["--store", ":memory:", "--item-precision", precision, "--list-timeout", "60"]
    process = subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL)
    with httpx.Client(base_url=f"http://{address}", timeout=120) as client:
        try:
            while not is_ready(client):
                if process.poll() is not None:
                    sys.exit("serve.py ended before it was ready")
                time.sleep(1)
            yield process, client
        finally:
            process.terminate()
            process.wait(60)


def is_ready(client: httpx.Client) -> bool:
    """Whether the service answers."""
    with contextlib.suppress(httpx.TransportError):
        return client.get("/health/ready").status_code == 200
    return False


if __name__ == "__main__":
    main()
