"""Several workers at one address, as processes."""

import os
import re
import signal
from pathlib import Path

import httpx
import pytest
from helpers.servers import Service, payload, wait

from jaxrec.cli import main

pytestmark = pytest.mark.slow
WORKERS = 2


@pytest.fixture
def service(trained_run, tmp_path):
    service = Service(trained_run, tmp_path / "store.db", "--workers", str(WORKERS))
    yield service
    service.process.kill()
    service.process.wait()


def workers_of(service):
    """Process ids of the workers, which alone have the socket open beside the supervisor."""
    children = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children")
    return {
        int(child)
        for child in children.read_text().split()
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
    }


def ask(service, path, **options):
    """A request over a connection of its own, which any worker may accept."""
    method = "POST" if options else "GET"
    return httpx.request(method, service.client.base_url.join(path), timeout=60, **options)


def ask_to(service, method, path, body=None):
    return httpx.request(method, service.client.base_url.join(path), timeout=60, json=body)


def lists_with_stock(service):
    answer = ask(service, "/users/u/recommendations?where=stock%20%3E%200").json()
    return [item["id"] for item in answer.get("items", ())]


def all_ready(service):
    return all(ask(service, "/health/ready").status_code == 200 for _ in range(10))


def metric(service, name):
    [value] = re.findall(rf"^{re.escape(name)} (\S+)$", ask(service, "/metrics").text, re.M)
    return float(value)


def is_alive(pid):
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def test_workers_share_a_port_and_the_metrics_and_are_started_again(service):
    wait(lambda: all_ready(service))
    first = workers_of(service)
    assert len(first) == WORKERS
    for number in range(20):
        answer = ask(service, "/events", json=payload("u", number))
        assert answer.json() == {"outcomes": ["accepted"]}
    assert metric(service, 'jaxrec_events_total{outcome="accepted"}') == 20
    assert metric(service, "jaxrec_users") == 1
    step = metric(service, "jaxrec_model_step")
    assert step == ask(service, "/model").json()["step"]

    item = {"item_id": "new", "title": "brand x item k", "brand": "brand1", "stock": 3}
    assert ask_to(service, "PUT", "/items", item).json()["outcomes"] == ["created"]
    wait(lambda: all(lists_with_stock(service) == ["new"] for _ in range(10)))
    ask_to(service, "DELETE", "/items/new")
    wait(lambda: all(lists_with_stock(service) == [] for _ in range(10)))

    os.kill(min(first), signal.SIGKILL)
    answers = set()

    def lowest_step():  # 0 while one of the workers is loading
        answers.add(ask(service, "/users/u/recommendations").status_code)
        return metric(service, "jaxrec_model_step")

    wait(lambda: lowest_step() == 0)
    wait(lambda: lowest_step() == step)
    now = workers_of(service)
    assert len(now) == WORKERS and now != first
    assert answers == {200}
    assert ask(service, "/users/u/recommendations").json()["events"] == 20
    assert metric(service, 'jaxrec_events_total{outcome="accepted"}') == 20
    assert metric(service, "jaxrec_model_step") == step

    last = workers_of(service)
    assert service.stop() == 128 + signal.SIGTERM
    wait(lambda: not any(map(is_alive, last)))


def test_workers_end_with_a_supervisor_that_is_killed(service):
    workers = workers_of(service)
    assert len(workers) == WORKERS
    service.stop(signal.SIGKILL)
    wait(lambda: not any(map(is_alive, workers)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--store", ":memory:"], "--workers 2 cannot share --store :memory:"),
        (["--store", "nowhere/store.db"], "nowhere/store.db cannot be used as a store"),
        (["--consume", "redis://host"], "write redis://HOST:PORT/DB/STREAM"),
    ],
)
def test_what_workers_cannot_use_stops_the_supervisor(trained_run, refused, wrong, message):
    arguments = ("serve", str(trained_run), "--http", "127.0.0.1:0", "--workers", "2", *wrong)
    assert message in refused(main, arguments)
