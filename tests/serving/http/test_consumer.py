"""Events from a stream, with a real Redis server."""

import asyncio
import json
import shutil
import signal
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import redis
from fastapi.testclient import TestClient
from helpers.servers import START, RedisServer, Service, payload, wait, wait_until_ready

from jaxrec.errors import ConfigError, InputError
from jaxrec.serving.http import consumer
from jaxrec.serving.http.app import create_app
from jaxrec.serving.http.stream import parse_entry, parse_stream
from jaxrec.serving.options import LiveOptions
from jaxrec.serving.stores.opening import open_store

needs_redis = pytest.mark.skipif(
    not shutil.which("redis-server"), reason="needs a Redis server (Debian: redis-server)"
)
STREAM, GROUP = "events", consumer.GROUP


@pytest.fixture
def server(tmp_path):
    server = RedisServer(tmp_path)
    yield server
    server.kill()


@pytest.fixture
def stream(server):
    """The database with the stream; the store is in another one."""
    with redis.Redis(port=server.port, db=1, decode_responses=True) as client:
        yield client


@pytest.fixture
def consuming(trained_run, server, monkeypatch):
    """A service in this process that consumes, and takes over after a second."""
    monkeypatch.setattr(consumer, "CLAIM_SECONDS", 1.0)

    @contextmanager
    def start(store=server.address):
        options = LiveOptions(store=store, consume=address(server))
        with TestClient(create_app(trained_run, options)) as client:
            wait_until_ready(client)
            yield client

    return start


def address(server):
    return f"redis://127.0.0.1:{server.port}/1/{STREAM}"


def add(stream, events):
    pipeline = stream.pipeline()
    for event in events:
        pipeline.xadd(STREAM, {"event": json.dumps(event)})
    return pipeline.execute()


def unread(stream):
    """Entries that are not acknowledged."""
    [group] = stream.xinfo_groups(STREAM) or [{"lag": None, "pending": None}]
    return group["lag"] + group["pending"]


def rejected(stream):
    return [fields for _, fields in stream.xrange(f"{STREAM}:rejected")]


def test_the_log_of_a_failing_stream_names_no_user(unchecked, monkeypatch, caplog):
    """Errors of a pipeline hold its command."""
    metrics = SimpleNamespace(counter=lambda *_: None, latest=lambda *_: None)
    reader = consumer.StreamConsumer(SimpleNamespace(metrics=metrics), "redis://localhost/1/events")

    async def fail():
        raise redis.ResponseError(
            "Command # 1 (XADD events:rejected * fields secret) of pipeline caused error: OOM"
        )

    async def stop(_):
        raise asyncio.CancelledError

    monkeypatch.setattr(reader, "_create_group", fail)
    monkeypatch.setattr(consumer.asyncio, "sleep", stop)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(reader.run())
    assert "the stream events fails: OOM" in caplog.text and "secret" not in caplog.text


@needs_redis
@pytest.mark.slow
def test_a_killed_process_loses_no_entry_and_none_counts_twice(
    trained_run, server, stream, consuming
):
    users = [f"u{number}" for number in range(60)]
    events = [payload(user, number) for number in range(100) for user in users]
    for event in events:
        del event["event_id"]

    def both_have_entries():
        consumers = stream.xinfo_consumers(STREAM, GROUP)
        return len(consumers) == 2 and all(c["pending"] for c in consumers)

    with consuming() as client:
        killed = Service(trained_run, server.address, "--consume", address(server))
        add(stream, events)
        wait(both_have_entries)
        killed.stop(signal.SIGKILL)
        assert unread(stream) > 0
        wait(lambda: unread(stream) == 0)
        assert "jaxrec_stream_entries_total" in client.get("/metrics").text
    store = open_store(server.address)
    documents = store.load(users).documents
    store.close()
    for user in users:
        times = [event.time for event in documents[user].events]
        assert times == [START + 3600 * number for number in range(100)]
    assert rejected(stream) == []


@needs_redis
@pytest.mark.slow
def test_workers_consume_as_one_group_and_count_together(trained_run, server, stream):
    add(stream, [payload(f"u{n % 50}", n) for n in range(2000)])
    service = Service(trained_run, server.address, "--workers", "2", "--consume", address(server))

    def metrics():
        return service.client.get("/metrics").text.splitlines()

    wait(lambda: 'jaxrec_stream_entries_total{result="recorded"} 2000.0' in metrics())
    wait(lambda: {"jaxrec_stream_lag 0.0", "jaxrec_stream_pending 0.0"} <= {*metrics()})
    assert service.stop() == 128 + signal.SIGTERM


@pytest.mark.thorough
@needs_redis
def test_entries_of_a_consumer_that_ended_go_to_another(stream, consuming):
    [known, sent_again] = [payload("a", 1), payload("a", 1)]
    stream.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
    add(stream, [known, sent_again])
    stream.xreadgroup(GROUP, "dead", {STREAM: ">"}, 10)
    deleted = stream.xadd(STREAM, {"event": json.dumps(payload("a", 2))})
    stream.xreadgroup(GROUP, "dead", {STREAM: ">"}, 10)
    stream.xdel(STREAM, deleted)
    with consuming() as client:
        wait(lambda: stream.xinfo_groups(STREAM)[0]["pending"] == 0)
        assert client.get("/users/a/recommendations").json()["events"] == 1


@needs_redis
def test_entries_that_cannot_be_used_are_set_aside_with_the_reason(stream, consuming):
    valid = {key: str(value) for key, value in payload("flat", 0).items()}
    wrong = [
        ({"event": "{"}, "JSON"),
        ({"event": "[]"}, "object"),
        ({"event": "[" * 100_000}, "JSON"),
        ({"event": json.dumps({"user_id": "u"})}, "item_id"),
        ({"colour": "red"}, "send the fields of an event"),
        ({b"event": b'{"user_id": "\xff"}'}, "unicode"),
        ({b"user_id": b"\xff", "item_id": "i"}, "user_id"),
        ({**valid, "event": "juggle"}, "send one of"),
        ({**valid, "timestamp": str(2**33 - 1)}, "not in the future"),
        ({**valid, "timestamp": "9" * 5000}, "timestamp"),
        ({**valid, "user_id": "a\nb"}, "user_id"),
    ]
    for fields, _ in wrong:
        stream.xadd(STREAM, fields)
    stream.xadd(STREAM, valid)
    with consuming() as client:
        wait(lambda: stream.exists(f"{STREAM}:rejected") and unread(stream) == 0)
        assert client.get("/users/flat/recommendations").json()["events"] == 1
    reasons = [fields["reason"] for fields in rejected(stream)]
    assert len(reasons) == len(wrong)
    for reason, (_, expected) in zip(reasons, wrong, strict=True):
        assert expected in reason


@pytest.mark.thorough
@needs_redis
def test_a_damaged_document_does_not_hold_up_the_stream(stream, consuming, tmp_path, monkeypatch):
    monkeypatch.setattr(consumer, "RETRY_SECONDS", 0.01)
    with consuming(str(tmp_path / "store.db")) as client:
        for user in ("damaged", "whole"):
            client.post("/events", json=payload(user, 0))
        store = client.app.state.service.store
        store.connection.execute(
            "UPDATE shoppers SET version = 9, document = x'00' WHERE user_id = 'damaged'"
        )
        add(stream, [payload("damaged", 1), payload("whole", 1)])
        wait(lambda: len(rejected(stream)) == 1)
        assert client.get("/users/whole/recommendations").json()["events"] == 2


@needs_redis
def test_entries_wait_while_the_store_or_the_stream_fails(
    stream, server, consuming, tmp_path, monkeypatch
):
    monkeypatch.setattr(consumer, "RETRY_SECONDS", 0.01)
    directory = tmp_path / "store"
    directory.mkdir()
    store = RedisServer(directory)
    with consuming(store.address) as client:
        store.kill()
        add(stream, [payload("a", 1)])
        wait(lambda: stream.xinfo_groups(STREAM)[0]["pending"] == 1)
        store.start()
        wait(lambda: unread(stream) == 0)
        server.kill()
        server.start()
        add(stream, [payload("a", 2)])
        wait(lambda: unread(stream) == 0)
        stream.delete(STREAM)  # with its group
        add(stream, [payload("a", 3)])
        wait(lambda: stream.xinfo_groups(STREAM) and unread(stream) == 0)
        assert client.get("/users/a/recommendations").json()["events"] == 3
    store.kill()
    assert rejected(stream) == []


@needs_redis
def test_an_event_that_fails_alone_does_not_hold_up_its_batch(stream, consuming, caplog):
    events = [payload("good", 0), payload("secret", 0), payload("good", 1)]
    with consuming() as client:
        engine = client.app.state.service.engine
        record = engine.record

        def failing(user_events):
            if any(user_event.user_id == "secret" for user_event in user_events):
                raise ZeroDivisionError(user_events[0].user_id, "hid" + "den")
            return record(user_events)

        engine.record = failing
        add(stream, events)
        wait(lambda: rejected(stream) and unread(stream) == 0)
        assert client.get("/users/good/recommendations").json()["events"] == 2
    [entry] = rejected(stream)
    assert "ZeroDivisionError" in entry["reason"]
    assert "ZeroDivisionError" in caplog.text and "hidden" not in caplog.text


def test_an_entry_without_id_and_time_has_those_of_the_stream():
    event = parse_entry("1704067200123-4", {"user_id": "u", "item_id": "i"})
    assert (event.event_id, event.timestamp) == ("1704067200123-4", 1_704_067_200)
    own = {"user_id": "u", "item_id": "i", "event_id": "e", "timestamp": "7", "event": ""}
    event = parse_entry("1704067200123-4", own)
    assert (event.event_id, event.timestamp, event.event) == ("e", 7, None)
    with pytest.raises(InputError, match="timestamp"):
        parse_entry("1-1", {**own, "timestamp": "²"})


def test_the_address_of_a_stream_names_server_database_and_stream():
    found = parse_stream("rediss://shop:a%40b@host:1/2/shop:events/new?ssl_cert_reqs=none")
    assert found.server == "rediss://shop:a%40b@host:1/2?ssl_cert_reqs=none"
    assert (found.name, found.rejected) == ("shop:events/new", "shop:events/new:rejected")
    for wrong in (
        "events",
        "redis://host/events",
        "redis://host/0",
        "redis://host/0/",
        "http://h/0/s",
        "redis://h:x/0/s",
        "redis://h:99999/0/s",
        "redis:///0/s",
    ):
        with pytest.raises(ConfigError, match="--consume: write redis://"):
            parse_stream(wrong)
