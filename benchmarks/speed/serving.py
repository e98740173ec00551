"""The cost of an event and of a list, and the live service under load.

    python benchmarks/speed/serving.py runs/beauty --users 100000 --rate 200 --seconds 60

The script fills a store with `--users` documents with items of a Zipf distribution. Printed are
the events/s of filling; the milliseconds of one event and one list for a short and a long history,
beside those of reading the whole history; how close the states that a new model rebuilds from kept
events are to exact states; and where the time of an event, of a list and of an explained list goes
that is alone at a server. Then `serve.py --http` starts with the store and gets `--rate` requests a
second, whether or not it keeps up, one rate after another, half of them events and half
recommendations. Printed are latencies from the moment a request was due, acknowledged events that
are not stored, and the memory of the server. Client and server share the machine.
"""

import argparse
import asyncio
import gc
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import psutil
import uvloop
from http_client import Client
from serving_parts import print_request_parts

import jaxrec
from jaxrec.api import enable_compilation_cache
from jaxrec.inference.catalog_index import unit_rows
from jaxrec.ranking.top_k import best_items
from jaxrec.runtime import compute_in_calling_thread
from jaxrec.serving.live.engine import LiveEngine
from jaxrec.serving.live.recorder import UserEvent
from jaxrec.serving.live.state_updater import Update
from jaxrec.serving.stores.base import NEVER, LiveEvent
from jaxrec.serving.stores.sqlite import SQLiteStore

SERVE = Path(__file__).parents[2] / "serve.py"
START, HOUR = 1_700_000_000, 3600
EVENTS_PER_CALL = 4096
QUANTILES = (0.5, 0.99, 0.999)


def main() -> None:
    """Measure filling, events, lists, rebuilt states and the service under load."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--events", type=int, default=8, help="of a user in the store")
    parser.add_argument("--rate", type=float, nargs="+", default=[200], help="requests a second")
    parser.add_argument("--seconds", type=float, default=60, help="at each rate")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    enable_compilation_cache()
    compute_in_calling_thread()  # as the service does
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.db"
        store = SQLiteStore(path)
        engine = LiveEngine(jaxrec.load(options.run), store)
        engine.warm_up()
        items = random_items(engine, options.users * options.events)
        fill(engine, items.reshape(options.users, options.events))
        time_by_length(engine, items)
        compare_rebuilt_states(engine, items)
        store.close()
        gc.collect()
        gc.freeze()  # the client's garbage collector must not add pauses
        event_type = engine.model.artifacts.event_type_names[0]
        print_request_parts(options.run, path, items, event_type)
        uvloop.run(load(options, path, items, event_type))


def random_items(engine: LiveEngine, count: int) -> np.ndarray:
    """Item ids from a Zipf distribution."""
    ids = engine.model.catalog.item_ids.drop_nulls().to_numpy()
    random = np.random.default_rng(0)
    return ids[np.minimum(random.zipf(1.2, count), len(ids)) - 1]


def live_events(engine: LiveEngine, items: np.ndarray, start: int = START) -> list[LiveEvent]:
    """One event an hour with each of the items."""
    event_type = engine.model.artifacts.event_type_names[0]
    return [LiveEvent(start + HOUR * n, item, event_type) for n, item in enumerate(items)]


def record(engine: LiveEngine, user: str, events: list[LiveEvent]) -> None:
    """Record events of one user."""
    engine.record([UserEvent(user, event) for event in events])


def fill(engine: LiveEngine, items: np.ndarray) -> None:
    """Record [U, events] items of U users."""
    start = time.perf_counter()
    users_per_call = EVENTS_PER_CALL // items.shape[1]
    for first in range(0, len(items), users_per_call):
        histories = enumerate(items[first : first + users_per_call], first)
        engine.record(
            [
                UserEvent(f"u{n}", event)
                for n, own in histories
                for event in live_events(engine, own)
            ]
        )
    seconds = time.perf_counter() - start
    print(f"{items.size:,} events of {len(items):,} users: {items.size / seconds:,.0f} events/s")


def time_by_length(engine: LiveEngine, items: np.ndarray, repeats: int = 50) -> None:
    """Milliseconds of one event and one list, for histories of ten and of a thousand events."""
    for length in (10, 1000):
        user = f"history of {length}"
        history = live_events(engine, items[:length])
        record(engine, user, history)
        events = pl.DataFrame(
            {
                "user_id": user,
                "item_id": items[:length],
                "timestamp": [event.time for event in history],
                "event": [event.event_type for event in history],
            }
        )
        live, whole = list[float](), list[float]()
        for n in range(repeats):
            start = time.perf_counter()
            record(engine, user, live_events(engine, items[[n]], START + HOUR * (length + n)))
            engine.recommend([user], k=10)
            live.append(time.perf_counter() - start)
        for _ in range(repeats // 10):
            start = time.perf_counter()
            engine.model.recommend(events, k=10)
            whole.append(time.perf_counter() - start)
        print(
            f"{user} events: {1000 * np.median(live):.1f} ms for one event and one list, "
            f"{1000 * np.median(whole):.1f} ms by reading the whole history"
        )


def compare_rebuilt_states(engine: LiveEngine, items: np.ndarray, users: int = 200) -> None:
    """Compare exact states with those that a new model rebuilds from the kept events."""
    window = engine.updater.window
    table = engine.model.index.items
    for length in (2 * window, 4 * window, 16 * window):
        histories = [
            live_events(engine, items[u * length : (u + 1) * length]) for u in range(users)
        ]
        exact = user_vectors(engine, histories)
        rebuilt = user_vectors(engine, [history[-window:] for history in histories])
        cosine = (unit_rows(exact) * unit_rows(rebuilt)).sum(1)
        lists = (best_items(vectors, table, 10).items for vectors in (exact, rebuilt))
        same = np.mean([len(set(a) & set(b)) for a, b in zip(*lists, strict=True)])
        print(
            f"{length} events rebuilt from {window}: cosine {cosine.mean():.4f}, "
            f"{same:.1f} of 10 items the same"
        )


def user_vectors(engine: LiveEngine, histories: list[list[LiveEvent]]) -> np.ndarray:
    """User vectors after histories of new users."""
    states = engine.updater.apply([Update(None, NEVER, history) for history in histories])
    return engine.model.encoder.vectors(engine.updater.stack(states))


async def load(options: argparse.Namespace, path: Path, items: np.ndarray, event_type: str) -> None:
    """Start a server over the store at `path`, send requests, and print what happened."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(SERVE), str(options.run), "--http", f"127.0.0.1:{port}"]
    command += ["--workers", str(options.workers), "--store", str(path)]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    client = Client("127.0.0.1", port)
    try:
        await until_ready(client, options.workers)
        acknowledged = await send(client, options, items, event_type, options.rate[0], "warm")
        memory = memory_of(server)
        for rate in options.rate:
            acknowledged += await send(client, options, items, event_type, rate)
        grown = memory_of(server) - memory
    finally:
        client.close()
        server.terminate()
        server.wait(60)
    print(
        f"server: {memory / 2**20:,.0f} MiB after the warm-up, "
        f"{grown / 2**20:+,.0f} MiB after the load"
    )
    print(f"acknowledged events that are not stored: {missing(path, acknowledged):,}")


def memory_of(server: subprocess.Popen) -> int:
    """Bytes of a process and its workers."""
    process = psutil.Process(server.pid)
    return sum(p.memory_info().rss for p in (process, *process.children(recursive=True)))


async def until_ready(client: Client, workers: int) -> None:
    """Wait until all workers answer."""
    ready = 0
    while ready < 10 * workers:
        try:
            status, _ = await client.get("/health/ready")
        except ConnectionError:
            status = 0
        client.close()  # another worker may take the next connection
        ready = ready + 1 if status == 200 else 0
        await asyncio.sleep(0.01 if ready else 0.1)


async def send(client, options, items, event_type: str, rate: float, name: str = ""):
    """Send requests, print their latencies from when they were due, and counts by status.

    Returns:
        The user and the id of every acknowledged event.
    """
    random = np.random.default_rng(len(name))
    count = int(rate * (5 if name else options.seconds))
    times, outcomes, acknowledged = [], Counter(), []
    start = time.perf_counter()

    async def one(number: int, due: float) -> None:
        user = f"u{random.integers(options.users)}"
        event = {"user_id": user, "item_id": str(items[number % len(items)]), "event": event_type}
        event["event_id"] = f"{name}-{rate:g}-{number}"
        try:
            if number % 2:
                status, _ = await client.get(f"/users/{user}/recommendations")
            else:
                status, _ = await client.post("/events", event)
            outcomes[status] += 1
            if status == 200 and number % 2 == 0:
                acknowledged.append((user, event["event_id"]))
        except ConnectionError as error:
            outcomes[type(error).__name__] += 1
        times.append(time.perf_counter() - start - due)

    async with asyncio.TaskGroup() as requests:
        for number in range(count):  # start each when it is due, so that few tasks wait
            due = number / rate
            await asyncio.sleep(due - (time.perf_counter() - start))
            requests.create_task(one(number, due))
    if not name:
        shown = ", ".join(f"p{100 * q:g} {1000 * np.quantile(times, q):.1f} ms" for q in QUANTILES)
        print(f"{count:,} requests at {rate:,.0f} a second: {shown}; {dict(outcomes)}")
    return acknowledged


def missing(path: Path, sent: list[tuple[str, str]]) -> int:
    """Number of acknowledged events that the store does not hold."""
    documents = SQLiteStore(path).load(list({user for user, _ in sent})).documents
    stored = {(user, e.event_id) for user, document in documents.items() for e in document.events}
    return len(set(sent) - stored)


if __name__ == "__main__":
    main()
