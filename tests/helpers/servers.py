"""Servers that tests start and kill, and clients that send them events meanwhile."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import redis

from helpers.paths import ROOT

START = 1_704_067_200


def payload(user, number, item=None, event_type="view"):
    return {
        "user_id": user,
        "item_id": item or f"i{number % 40:02}",
        "event": event_type,
        "timestamp": START + 3600 * number,
        "event_id": f"{user}-{number}",
    }


def wait(condition, seconds=60):
    for _ in range(100 * seconds):
        if condition():
            return
        time.sleep(0.01)
    raise TimeoutError(f"waited for {seconds} s")


def without_log(store):
    """Wait until the write-ahead log of a SQLite store is in its file."""
    store.erased.set()
    wait(lambda: not store.erased.is_set())


def wait_until_ready(client):
    def ready():
        try:
            return client.get("/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    wait(ready, seconds=120)


class Service:
    """`python serve.py RUN --http` in a separate process."""

    def __init__(self, run, store, *options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        command = [sys.executable, str(ROOT / "serve.py"), str(run), "--http", address]
        self.process = subprocess.Popen(
            [*command, "--store", str(store), *options], env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        self.client = httpx.Client(base_url=f"http://{address}", timeout=30)
        wait_until_ready(self.client)

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(60)


class Load:
    """Four users who send events to the services, one after another, until the block ends."""

    def __init__(self, services):
        self.acknowledged = set()
        self.refusals = 0
        self.stopped = threading.Event()
        self.senders = [
            threading.Thread(target=self.send, args=(services[n % len(services)], f"user{n}"))
            for n in range(4)
        ]

    def __enter__(self):
        for sender in self.senders:
            sender.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        for sender in self.senders:
            sender.join()

    def send(self, service, user):
        number = 0
        while not self.stopped.is_set():
            event = payload(user, number)
            try:
                response = service.client.post("/events", json=event)
            except httpx.TransportError:
                return  # the service was killed
            if response.status_code == 200:
                self.acknowledged.add((user, event["event_id"]))
                number += 1
            else:
                assert response.status_code == 503
                self.refusals += 1

    def wait_for(self, count):
        """Wait until `count` more events are acknowledged."""
        total = len(self.acknowledged) + count
        wait(lambda: len(self.acknowledged) >= total)

    def wait_for_refusals(self, count):
        wait(lambda: self.refusals >= count)

    def lost(self, store):
        """Acknowledged events that a store neither keeps nor has truncated."""
        documents = store.load([f"user{n}" for n in range(4)]).documents
        kept = {(user, e.event_id) for user, d in documents.items() for e in d.events}
        return {
            (user, event_id)
            for user, event_id in self.acknowledged - kept
            if int(event_id.split("-")[1]) >= documents[user].truncated
        }


class RedisServer:
    """A Redis server that writes every change to disk before it answers."""

    def __init__(self, directory):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.directory = directory
        self.address = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self, fsync="always"):
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--appendonly", "yes", "--appendfsync", fsync, "--dir", str(self.directory)]
        command += ["--rdbcompression", "no"]  # tests look for text in its files
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        with redis.Redis(port=self.port) as client:

            def answers():
                try:
                    return client.ping()
                except redis.RedisError:
                    return False

            wait(answers)

    def kill(self):
        self.process.kill()
        self.process.wait()
