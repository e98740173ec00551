"""The live service while its catalogue changes: latency of lists, freshness, memory.

    pip install aiohttp psutil
    python benchmarks/speed/live_catalogue.py runs/scientific --upserts 100000 --seconds 60

`serve.py --http` starts with an empty store. It gets `--lists` requests for lists a second, first
alone, then while `--items` items a second are sent, one in two of them new and the others with a
new price. Then `--upserts` new items fill the catalogue, with a hundred titles that repeat, so that
the text encoder does not decide the time, and the first two measurements are repeated. Printed are
latencies of lists from when they were due, the seconds from the answer to a PUT until a list holds
the item, the memory of the server, and its time to start again with these items. Client and server
share the machine.
"""

import argparse
import asyncio
import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import numpy as np
import polars as pl
import psutil

SERVE = Path(__file__).parents[2] / "serve.py"
BATCH = 1000  # items in one request of the filling
TITLES = 100  # in one request


def main() -> None:
    """Measure before and after the catalogue has grown."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--upserts", type=int, default=100_000)
    parser.add_argument("--items", type=float, default=50, help="sent a second")
    parser.add_argument("--lists", type=float, default=50, help="asked for a second")
    parser.add_argument("--seconds", type=float, default=60, help="of each measurement")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(options, Path(folder) / "store.db"))


async def measure(options: argparse.Namespace, store: Path) -> None:
    """Print the measurements of one service, and the time to start it again."""
    table = pl.read_parquet(options.run / "catalog" / "items.parquet").filter(
        pl.col("item_id").is_not_null()
    )
    async with service(options.run, store) as (client, process):
        await load(client, options, table, items=0, seconds=5, name="warm")  # not printed
        for items in (0, options.items):
            print(await load(client, options, table, items, options.seconds, f"first{items:g}"))
        print(f"memory: {memory(process)}")
        await fill(client, process, options.upserts, table)
        await rooms(client, options.upserts)
        for items in (0, options.items):
            print(await load(client, options, table, items, options.seconds, f"last{items:g}"))
        print(f"memory: {memory(process)}; store: {store.stat().st_size / 2**20:,.0f} MiB")
    start = time.perf_counter()
    async with service(options.run, store) as (_, process):
        seconds = time.perf_counter() - start
        print(f"started again in {seconds:.1f} s; memory: {memory(process)}")


@contextlib.asynccontextmanager
async def service(
    run: Path, store: Path
) -> AsyncIterator[tuple[aiohttp.ClientSession, subprocess.Popen]]:
    """A service that is ready, and a client of it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, str(SERVE), str(run), "--http", address, "--store", str(store)]
    process = subprocess.Popen(
        [*command, "--list-timeout", "60"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    timeout = aiohttp.ClientTimeout(total=600)
    connector = aiohttp.TCPConnector(limit=0)
    try:
        async with aiohttp.ClientSession(
            f"http://{address}", connector=connector, timeout=timeout
        ) as client:
            while not await is_ready(client):
                if process.poll() is not None:
                    sys.exit("serve.py ended before it was ready")
                await asyncio.sleep(0.2)
            yield client, process
    finally:
        process.terminate()
        process.wait(60)


async def is_ready(client: aiohttp.ClientSession) -> bool:
    """Whether the service answers."""
    try:
        async with client.get("/health/ready") as answer:
            return answer.status == 200
    except aiohttp.ClientConnectionError:
        return False


def memory(process: subprocess.Popen) -> str:
    """The memory of the server."""
    used = psutil.Process(process.pid).memory_full_info()
    return f"{used.rss / 2**20:,.0f} MiB, of which {used.uss / 2**20:,.0f} private"


async def load(
    client: aiohttp.ClientSession,
    options: argparse.Namespace,
    table: pl.DataFrame,
    items: float,
    seconds: float,
    name: str,
) -> str:
    """Latencies of lists while items are sent, and how soon they are ranked."""
    times, outcomes, waits = list[float](), Counter[str](), list[float]()
    start = time.perf_counter()

    async def one_list(due: float) -> None:
        user = f"user{int(due * 1000) % 1000}"
        async with client.get(f"/users/{user}/recommendations") as answer:
            await answer.read()
            outcomes[f"lists {answer.status}"] += 1
        times.append(time.perf_counter() - start - due)

    async def one_item(number: int) -> None:
        if number % 2:
            body = {"price": number + 0.5}
            request = client.patch(f"/items/{table['item_id'][number % len(table)]}", json=body)
        else:
            body = new_item(table, number, f"{name}-{number}", f"{name} {number}")
            request = client.put("/items", json=body)
        async with request as answer:
            await answer.read()
            outcomes[f"items {answer.status}"] += 1
        if number % 2 == 0 and number % int(max(2 * (items // 2), 2)) == 0:  # one a second
            waits.append(await seconds_until_ranked(client, body))

    async with asyncio.TaskGroup() as requests:
        requests.create_task(
            at_rate(requests, options.lists, seconds, lambda n, due: one_list(due))
        )
        if items:
            requests.create_task(at_rate(requests, items, seconds, lambda n, due: one_item(n)))
    quantiles = ", ".join(
        f"p{100 * q:g} {1000 * np.quantile(times, q):.1f} ms" for q in (0.5, 0.99)
    )
    ranked = (
        f"; ranked within p50 {np.median(waits):.2f} s, most {max(waits):.2f} s" if waits else ""
    )
    return f"{options.lists:g} lists/s and {items:g} items/s: {quantiles}{ranked}; {dict(outcomes)}"


async def at_rate(tasks: asyncio.TaskGroup, rate: float, seconds: float, make) -> None:
    """Start tasks when they are due."""
    start = time.perf_counter()
    for number in range(int(rate * seconds)):
        due = number / rate
        await asyncio.sleep(due - (time.perf_counter() - start))
        tasks.create_task(make(number, due))


def new_item(table: pl.DataFrame, number: int, item_id: str, mark: str, titles: int = 0) -> dict:
    """A copy of an item under another id, with a column by which a condition finds it."""
    [row] = table[number % (titles or len(table))].to_dicts()
    columns = {name: value for name, value in row.items() if value is not None}
    title = f"{columns.get('title', 'item')} {'' if titles else mark}"
    return {**columns, "item_id": item_id, "title": title, "price": 9.5, "mark": mark}


async def seconds_until_ranked(client: aiohttp.ClientSession, item: dict) -> float:
    """Seconds until a list holds an item that was sent."""
    start = time.perf_counter()
    query = {"where": f"mark = '{item['mark']}'", "k": 1}
    while time.perf_counter() - start < 120:
        async with client.get("/users/nobody/recommendations", params=query) as answer:
            if answer.status == 200 and (await answer.json())["items"]:
                break
        await asyncio.sleep(0.1)
    return time.perf_counter() - start


async def fill(
    client: aiohttp.ClientSession, process: subprocess.Popen, count: int, table: pl.DataFrame
) -> None:
    """Send new items, with the memory at ten moments."""
    start = time.perf_counter()
    for first in range(0, count, BATCH):
        body = [
            new_item(table, n, f"fill-{n}", "fill", titles=TITLES)
            for n in range(first, min(first + BATCH, count))
        ]
        while body:  # a body has at most 1 MiB
            part, body = body[:250], body[250:]
            async with client.put("/items", json=part) as answer:
                answer.raise_for_status()
        sent = min(first + BATCH, count)
        if sent == count or sent * 10 // count > first * 10 // count:
            seconds = time.perf_counter() - start
            print(f"{sent:,} new items in {seconds:,.0f} s; memory: {memory(process)}", flush=True)


async def rooms(client: aiohttp.ClientSession, count: int) -> None:
    """Wait until all items may be listed, and print how long that took."""
    start = time.perf_counter()
    while time.perf_counter() - start < 1800:
        async with client.get("/model") as answer:
            if (await answer.json())["items"] >= count:
                break
        await asyncio.sleep(0.2)
    print(f"all in the lists {time.perf_counter() - start:.1f} s after the last answer")


if __name__ == "__main__":
    main()
