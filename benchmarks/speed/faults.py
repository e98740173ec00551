"""The live service under load while things break around it.

    pip install aiohttp psutil
    python benchmarks/speed/faults.py runs/shop --minutes 10
    python benchmarks/speed/faults.py runs/shop --minutes 10 --redis

Clients send events and ask for lists at a steady rate, hostile clients send what they should not,
and one fault after another comes: the service is killed, its store is locked, its disk is full (a
small tmpfs, if this process may mount one), Redis is restarted, and the run changes under it.
Every event that is not acknowledged is sent again with its `event_id`. At the end the store is
read. Printed are the acknowledged events that are missing or there twice, the answers by status,
503 answers without a reason, other 5xx answers, and the slowest list that was answered or refused
after each fault.
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import aiohttp

import jaxrec
from jaxrec.serving.stores.opening import open_store

ROOT = Path(__file__).parents[2]
START = 1_700_000_000
EVENTS_PER_USER = 50  # fewer than a window, so that every event stays in the document
FAULT_SECONDS = 20  # from one fault to the next
LIST_TIMEOUT = 2.0
POST = b"POST /events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
HOSTILE = [
    POST + b"Content-Length: 9\r\n\r\n[",
    POST + b"Content-Length: 1047001\r\n\r\n[" + b"{}," * 349_000,
    b"GET /users/u/recommendations?where=" + b"not(" * 45 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /users/u/recommendations?where="
    + b"title||" * 500
    + b"title HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /users/u/recommendations?where=1" + b"%2B1" * 1900 + b"%3E0 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00" * 50,
    b"GET /health/live HTTP/1.1\r\n",
]


class Service:
    """`jaxrec serve` on a port that stays the same when it is started again."""

    def __init__(self, run: Path, store: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.command = [sys.executable, "-m", "jaxrec", "serve", str(run), "--store", store]
        self.command += ["--http", f"127.0.0.1:{self.port}", "--refresh", "1"]
        self.command += ["--list-timeout", str(LIST_TIMEOUT)]
        self.start()

    def start(self) -> None:
        """Start the process; it answers 503 until the model is compiled."""
        self.process = subprocess.Popen(self.command, cwd=ROOT)

    def kill(self) -> None:
        """Kill the process and start another."""
        self.process.kill()
        self.process.wait()
        self.start()


class Clients:
    """Sends events until they are acknowledged, asks for lists, and counts the answers."""

    def __init__(self, services: list[Service], items: list[str], rate: float):
        self.services, self.items, self.rate = services, items, rate
        self.acknowledged: dict[str, set[str]] = defaultdict(set)
        self.statuses: Counter[tuple[str, int]] = Counter()
        self.without_reason = 0
        self.slowest_lists: dict[str, tuple[float, int]] = {}  # seconds and status by fault
        self.fault = "none yet"
        self.ended = False

    async def run(self) -> None:
        """Start a request whenever one is due, until `ended`."""
        timeout = aiohttp.ClientTimeout(total=60)
        events, lists = (aiohttp.TCPConnector(limit=500) for _ in range(2))  # neither waits
        async with (
            aiohttp.ClientSession(timeout=timeout, connector=events) as event_session,
            aiohttp.ClientSession(timeout=timeout, connector=lists) as list_session,
            asyncio.TaskGroup() as tasks,
        ):
            for number in itertools.count():
                if self.ended:
                    break
                if number % 2:
                    tasks.create_task(self.event(event_session, number // 2))
                else:
                    tasks.create_task(self.list(list_session, number // 2))
                await asyncio.sleep(1 / self.rate)

    async def event(self, session: aiohttp.ClientSession, number: int) -> None:
        """Send one event until it is acknowledged."""
        user, place = f"u{number // EVENTS_PER_USER}", number % EVENTS_PER_USER
        event = {
            "user_id": user,
            "item_id": random.choice(self.items),
            "event_id": f"{user}-{place}",
            "timestamp": START + place,
        }
        while not self.ended:
            status, answer, _ = await self.request(session, "POST", "/events", event)
            if status == 200 and answer["outcomes"][0] in ("accepted", "duplicate"):
                self.acknowledged[user].add(event["event_id"])
                return
            await asyncio.sleep(random.uniform(1, 3))  # `Retry-After`, and not all at once

    async def list(self, session: aiohttp.ClientSession, number: int) -> None:
        """Ask for one list."""
        path = f"/users/u{random.randint(0, number // EVENTS_PER_USER)}/recommendations"
        status, _, seconds = await self.request(session, "GET", path)
        if status:
            slowest = self.slowest_lists.get(self.fault, (0.0, 0))
            self.slowest_lists[self.fault] = max(slowest, (seconds, status))

    async def request(
        self, session: aiohttp.ClientSession, method: str, path: str, body: dict | None = None
    ) -> tuple[int, dict, float]:
        """Status (0: no connection), content and seconds of one request to any service."""
        port = random.choice(self.services).port
        start, kind = time.perf_counter(), path.rpartition("/")[2]
        try:
            url = f"http://127.0.0.1:{port}{path}"
            async with session.request(method, url, json=body) as response:
                text = await response.text()
                status = response.status
        except aiohttp.ClientError:
            self.statuses[kind, 0] += 1
            return 0, {}, time.perf_counter() - start
        self.statuses[kind, status] += 1
        answer = json.loads(text) if text.startswith("{") else {}
        self.without_reason += status >= 500 and not answer.get("detail")
        return status, answer, time.perf_counter() - start


def attack(services: list[Service]) -> None:
    """Send one hostile message and leave without reading all of the answer."""
    with suppress(OSError):
        address = ("127.0.0.1", random.choice(services).port)
        with socket.create_connection(address, 2) as connection:
            connection.sendall(random.choice(HOSTILE))
            connection.settimeout(0.2)
            connection.recv(1000)


def lock(path: Path) -> None:
    """Hold the write lock of a SQLite store for four seconds."""
    with suppress(sqlite3.OperationalError):
        other = sqlite3.connect(path, timeout=5, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        time.sleep(4)
        other.execute("ROLLBACK")
        other.close()


def fill_disk(folder: Path) -> None:
    """Leave no space in a small file system for four seconds."""
    ballast = folder / "ballast"
    with suppress(OSError), ballast.open("wb") as file:
        while True:
            file.write(bytes(2**16))
            file.flush()
    time.sleep(4)
    ballast.unlink()


def change_run(run: Path) -> None:
    """Give the run another calibration, which the services load."""
    path = run / "calibration.json"
    fitted = json.loads(path.read_text())
    fitted["inverse_temperature"] *= 1 + 1e-6
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(fitted))
    draft.replace(path)


class Redis:
    """A server that writes every change to disk before it answers."""

    def __init__(self, folder: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"redis://127.0.0.1:{port}/0"
        options = {"port": port, "dir": folder, "appendonly": "yes", "appendfsync": "always"}
        self.command = ["redis-server", "--save", ""]
        self.command += [text for name, value in options.items() for text in (f"--{name}", value)]
        self.start()

    def start(self) -> None:
        """Start the server and wait until it accepts connections."""
        self.process = subprocess.Popen(list(map(str, self.command)), stdout=subprocess.DEVNULL)
        time.sleep(1)

    def restart(self) -> None:
        """Kill the server and start it again two seconds later."""
        self.process.kill()
        self.process.wait()
        time.sleep(2)
        self.start()

    def pause(self) -> None:
        """Stop the server for four seconds."""
        self.process.send_signal(signal.SIGSTOP)
        time.sleep(4)
        self.process.send_signal(signal.SIGCONT)


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a file system of 256 MB on a folder, if this process may."""
    folder.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", folder], stderr=subprocess.DEVNULL
        ).returncode
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", folder])


def lost_and_doubled(store: str, acknowledged: dict[str, set[str]]) -> tuple[int, int]:
    """Acknowledged events that a store lacks, and events that it holds more than once."""
    documents = open_store(store).load(list(acknowledged)).documents
    lost = doubled = 0
    for user, ids in acknowledged.items():
        kept = [event.event_id for event in documents[user].events] if user in documents else []
        lost += len(ids - set(kept))
        doubled += len(kept) - len(set(kept))
    return lost, doubled


async def break_things(
    minutes: float, services: list[Service], clients: Clients, faults: dict[str, Callable]
) -> None:
    """One fault after another, and hostile clients all the time."""
    end = time.monotonic() + 60 * minutes
    order = itertools.cycle(faults.items())
    next_fault = time.monotonic() + FAULT_SECONDS
    while time.monotonic() < end:
        await asyncio.to_thread(attack, services)
        await asyncio.sleep(0.1)
        if time.monotonic() > next_fault and end - time.monotonic() > FAULT_SECONDS:
            clients.fault, fault = next(order)
            print(f"{60 * minutes - (end - time.monotonic()):4.0f} s: {clients.fault}", flush=True)
            await asyncio.to_thread(fault)
            next_fault = time.monotonic() + FAULT_SECONDS
    clients.ended = True


async def measure(options: argparse.Namespace, folder: Path, has_small_disk: bool) -> None:
    """Run the services, the clients and the faults, then read the store."""
    run = folder / "run"
    shutil.copytree(options.run, run, ignore=shutil.ignore_patterns("*.db*"))
    items = jaxrec.load(run).catalog.item_ids.drop_nulls().to_list()
    redis = Redis(folder) if options.redis else None
    path = folder / "disk" / "users.db"
    store = redis.address if redis else str(path)
    services = [Service(run, store) for _ in range(2 if redis else 1)]
    clients = Clients(services, items, options.rate)
    faults: dict[str, Callable] = {
        "kill": lambda: random.choice(services).kill(),
        "changed run": lambda: change_run(run),
    }
    if redis:
        faults |= {"Redis restarts": redis.restart, "Redis stands still": redis.pause}
    else:
        faults["locked store"] = lambda: lock(path)
        if has_small_disk:
            faults["full disk"] = lambda: fill_disk(folder / "disk")
    print("faults:", ", ".join(faults), flush=True)
    await asyncio.gather(clients.run(), break_things(options.minutes, services, clients, faults))
    for service in services:
        service.process.terminate()
        print("exit code", service.process.wait(60))
    lost, doubled = lost_and_doubled(store, clients.acknowledged)
    count = sum(map(len, clients.acknowledged.values()))
    print(f"{count:,} acknowledged events: {lost} lost, {doubled} doubled")
    for (kind, status), number in sorted(clients.statuses.items()):
        print(f"{kind:16} {status or 'no connection'}: {number:,}")
    print(f"5xx without a reason: {clients.without_reason}")
    print(f"slowest lists, with a timeout of {LIST_TIMEOUT:g} s:")
    for fault, (seconds, status) in clients.slowest_lists.items():
        print(f"  {fault:20} {seconds:.2f} s, status {status}")
    if redis:
        redis.process.kill()


def main() -> None:
    """Measure what a service loses while things break."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rate", type=float, default=100, help="requests a second")
    parser.add_argument("--redis", action="store_true", help="two services on one Redis")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, small_disk(Path(name) / "disk") as has_small_disk:
        asyncio.run(measure(options, Path(name), has_small_disk))


if __name__ == "__main__":
    main()
