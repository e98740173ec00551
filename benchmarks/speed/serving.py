"""The live service under load, and what an event costs.

    python benchmarks/serving.py runs/beauty --users 100000 --rate 200 --seconds 60

Fills a store with `--users` documents whose histories are drawn from a Zipf law over the catalogue;
times folding and ranking for a short and a long history, beside encoding the history anew; tells
how far states are from exact that a new model rebuilds from the kept events; then
starts `serve.py --http` over the store and sends `--rate` requests a second whether or not it
keeps up, half of them events and half recommendations. Printed are the latencies from the moment
a request was due, the events that were lost (acknowledged and not stored), and the memory of the
server. Client and server share the machine.
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

import aiohttp
import numpy as np
import polars as pl
import psutil

import jaxrec
from jaxrec.api import enable_compilation_cache
from jaxrec.inference.trained_model import unit_rows
from jaxrec.ranking.top_k import best_items, no_adjustments
from jaxrec.serving.live.engine import LiveEngine
from jaxrec.serving.live.recorder import UserEvent
from jaxrec.serving.stores.base import NEVER, LiveEvent
from jaxrec.serving.stores.sqlite import SQLiteStore

SERVE = Path(__file__).parents[2] / "serve.py"
START, HOUR = 1_700_000_000, 3600
BATCH = 4096
QUANTILES = (0.5, 0.99, 0.999)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--events", type=int, default=8, help="of a user in the store")
    parser.add_argument("--rate", type=float, default=200, help="requests a second")
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    enable_compilation_cache()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.db"
        store = SQLiteStore(path)
        online = LiveEngine(jaxrec.load(options.run), store)
        online.warm_up()
        items = drawn_items(online, options.users * options.events)
        fill(online, items.reshape(options.users, options.events))
        by_length(online, items)
        drift(online, items)
        store.close()
        gc.collect()
        gc.freeze()  # the client's collector must not add pauses of its own
        asyncio.run(load(options, path, items))


def drawn_items(online: LiveEngine, count: int) -> np.ndarray:
    """Item ids, popular ones more often."""
    ids = online.model.index.catalog.item_ids.drop_nulls().to_numpy()
    random = np.random.default_rng(0)
    return ids[np.minimum(random.zipf(1.2, count), len(ids)) - 1]


def user_events_of(user: str, items, event_type: str, start: int = START) -> list[UserEvent]:
    events = (LiveEvent(start + HOUR * n, item, event_type) for n, item in enumerate(items))
    return [UserEvent(user, event) for event in events]


def fill(online: LiveEngine, items: np.ndarray) -> None:
    event_type = online.model.artifacts.event_type_names[0]
    began = time.perf_counter()
    users_at_a_time = BATCH // items.shape[1]
    for first in range(0, len(items), users_at_a_time):
        part = enumerate(items[first : first + users_at_a_time], first)
        online.record(
            [r for user, theirs in part for r in user_events_of(f"u{user}", theirs, event_type)]
        )
    seconds = time.perf_counter() - began
    print(f"{items.size:,} events of {len(items):,} users: {items.size / seconds:,.0f} events/s")


def by_length(online: LiveEngine, items: np.ndarray, repeats: int = 50) -> None:
    """Milliseconds to fold one event and rank, for histories of ten and a thousand events."""
    event_type = online.model.artifacts.event_type_names[0]
    for length in (10, 1000):
        user = f"history of {length}"
        history = user_events_of(user, items[:length], event_type)
        online.record(history)
        times: dict[str, list[float]] = {"live": [], "anew": []}
        events = pl.DataFrame(
            {
                "user_id": user,
                "item_id": items[:length],
                "timestamp": [report.event.time for report in history],
                "event": event_type,
            }
        )
        for n in range(repeats):
            began = time.perf_counter()
            online.record(
                user_events_of(user, items[n : n + 1], event_type, START + HOUR * (length + n))
            )
            online.recommend([user], k=10)
            times["live"].append(time.perf_counter() - began)
        for _ in range(repeats // 10):
            began = time.perf_counter()
            online.model.recommend(events, k=10)
            times["anew"].append(time.perf_counter() - began)
        live, anew = (1000 * np.median(times[name]) for name in ("live", "anew"))
        print(f"{user} events: {live:.1f} ms to fold one and rank, {anew:.1f} ms to encode it anew")


def drift(online: LiveEngine, items: np.ndarray, users: int = 200) -> None:
    """How far states that a new model rebuilds from the kept events are from exact ones."""
    event_type, window = online.model.artifacts.event_type_names[0], online.folder.window
    for length in (2 * window, 4 * window, 16 * window):
        histories = [
            tuple(
                r.event
                for r in user_events_of("", items[u * length : (u + 1) * length], event_type)
            )
            for u in range(users)
        ]
        exact, rebuilt = (
            online.model.encoder.vectors(
                online.folder.states(online.folder.after([(None, NEVER, h) for h in kept]))
            )
            for kept in (histories, [h[-window:] for h in histories])
        )
        cosine = (unit_rows(exact[:, 1:]) * unit_rows(rebuilt[:, 1:])).sum(1)  # without priors
        ranked = [
            best_items(
                v, online.folder.items, no_adjustments, online.model.index.items.valid, 10
            ).items
            for v in (exact, rebuilt)
        ]
        same = np.mean([len(set(a) & set(b)) for a, b in zip(*ranked, strict=True)])
        print(
            f"{length} events rebuilt from {window}: cosine {cosine.mean():.4f}, "
            f"{same:.1f} of 10 items the same"
        )


async def load(options: argparse.Namespace, path: Path, items: np.ndarray) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, str(SERVE), str(options.run), "--http", address]
    server = subprocess.Popen([*command, "--store", str(path)], stderr=subprocess.DEVNULL)
    connector = aiohttp.TCPConnector(limit=0)
    try:
        async with aiohttp.ClientSession(f"http://{address}", connector=connector) as client:
            await until_ready(client)
            await send(client, options, items[:2000], warm=True)
            memory = psutil.Process(server.pid).memory_info().rss
            times, outcomes, sent = await send(client, options, items)
            grown = psutil.Process(server.pid).memory_info().rss - memory
    finally:
        server.terminate()
        server.wait(60)
    shown = ", ".join(f"p{100 * q:g} {1000 * np.quantile(times, q):.1f} ms" for q in QUANTILES)
    print(f"{len(times):,} requests at {options.rate:,.0f} a second: {shown}; {dict(outcomes)}")
    print(f"server: {memory / 2**20:,.0f} MiB at first, {grown / 2**20:+,.0f} MiB after the load")
    print(f"acknowledged events that the store lacks: {missing(path, sent):,}")


async def until_ready(client: aiohttp.ClientSession) -> None:
    for _ in range(3000):
        try:
            async with client.get("/health/ready") as answer:
                if answer.status == 200:
                    return
        except aiohttp.ClientConnectionError:
            pass
        await asyncio.sleep(0.1)
    raise TimeoutError("the server is not ready")


async def send(client, options, items, warm: bool = False):
    """Latencies from when requests were due, counts by status, and acknowledged event ids."""
    random = np.random.default_rng(int(warm))
    seconds = 5 if warm else options.seconds
    count = int(options.rate * seconds)
    times, outcomes, acknowledged = [], Counter(), []
    began = time.perf_counter()

    async def one(number: int, due: float) -> None:
        user = f"u{random.integers(options.users)}"
        event_id = f"{'warm' if warm else 'load'}-{number}"
        event = {"user_id": user, "item_id": str(items[number]), "event_id": event_id}
        asked = (
            client.get(f"/users/{user}/recommendations")
            if number % 2
            else client.post("/events", json=event)
        )
        try:
            async with asked as answer:
                await answer.read()
                outcomes[answer.status] += 1
            if answer.status == 200 and number % 2 == 0:
                acknowledged.append((user, event_id))
        except aiohttp.ClientError as error:
            outcomes[type(error).__name__] += 1
        times.append(time.perf_counter() - began - due)

    async with asyncio.TaskGroup() as requests:
        for number in range(count):  # begun when they are due, so that few wait at a time
            due = number / options.rate
            await asyncio.sleep(due - (time.perf_counter() - began))
            requests.create_task(one(number, due))
    return times, outcomes, acknowledged


def missing(path: Path, sent: list[tuple[str, str]]) -> int:
    kept = SQLiteStore(path).load(list({user for user, _ in sent}))
    stored = {(user, e.event_id) for user, document in kept.items() for e in document.events}
    return len(set(sent) - stored)


if __name__ == "__main__":
    main()
