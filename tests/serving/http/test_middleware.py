"""Errors, metrics, keys and rate limits."""

import sqlite3
import threading
import time
from contextlib import closing

import pytest
from fastapi.testclient import TestClient
from helpers.servers import START, payload, wait, wait_until_ready

from jaxrec.errors import StoreError
from jaxrec.serving.http import middleware, upkeep
from jaxrec.serving.http.app import create_app
from jaxrec.serving.options import LiveOptions


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "reason"),
    [
        ("POST", "/events", {"user_id": "u", "item_id": "i", "event": "wish"}, 422, "buy, view"),
        ("POST", "/events", {"user_id": "", "item_id": "i"}, 422, "at least 1"),
        (
            "POST",
            "/events",
            {"user_id": "u", "item_id": "i", "event": "buy", "timestamp": -5},
            422,
            "",
        ),
        (
            "POST",
            "/events",
            {"user_id": "u", "item_id": "i", "event": "buy", "timestamp": 2**33 - 1},
            422,
            "not in the future",
        ),
        ("POST", "/events", [payload("u", 0)] * 1001, 422, "at most 1000 items"),
        ("POST", "/events", {"user_id": "u" * 2**21, "item_id": "i"}, 413, "larger than"),
        ("GET", "/users/u/recommendations?k=0", None, 422, "greater than"),
        ("GET", "/users/u/recommendations?k=100000", None, 422, "less than"),
        ("GET", "/users/u/recommendations?k=200", None, 422, "k=200"),
        ("GET", "/users/u/recommendations?target=colour", None, 422, "no node type"),
        ("GET", "/users/u/recommendations?where=nonsense", None, 422, "cannot be used"),
        ("GET", "/users/u/recommendations?context=wish", None, 422, "buy, view"),
        ("GET", "/nowhere", None, 404, "Not Found"),
    ],
)
def test_errors_are_problems_that_give_the_reason(client, method, path, content, status, reason):
    response = client.request(method, path, json=content)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == status
    assert reason in str(problem)


def test_a_failing_store_is_answered_with_503_and_logged(trained_run, tmp_path, caplog):
    path = tmp_path / "store.db"
    app = create_app(trained_run, LiveOptions(store=str(path)))
    app.state.service.store.connection.execute("PRAGMA busy_timeout = 50")
    other = sqlite3.connect(path, isolation_level=None)
    with closing(other), TestClient(app) as client:
        wait_until_ready(client)
        other.execute("BEGIN IMMEDIATE")
        response = client.post("/events", json=payload("u", 0))
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        assert response.json()["title"] == "the store fails"
        assert "locked" in caplog.text
        assert client.get("/users/u/recommendations").status_code == 200  # reading does not wait
        other.execute("ROLLBACK")
        assert client.post("/events", json=payload("u", 0)).json() == {"outcomes": ["accepted"]}


def test_metrics_count_events_and_requests_without_user_ids(client):
    client.post("/events", json=payload("fay", 0))
    client.get("/users/fay/recommendations")
    text = client.get("/metrics").text
    assert 'jaxrec_events_total{outcome="accepted"}' in text
    assert 'route="/users/{user_id}/recommendations"' in text
    assert "fay" not in text


def test_metrics_that_wait_for_the_store_hold_up_no_other_request(client, monkeypatch):
    asked, answered = threading.Event(), threading.Event()

    def slow_count() -> int:
        asked.set()
        return int(answered.wait(20))

    monkeypatch.setattr(client.app.state.service.store, "count", slow_count)
    scrape = threading.Thread(target=client.get, args=["/metrics"])
    scrape.start()
    assert asked.wait(20)
    assert client.get("/health/live").status_code == 200
    assert scrape.is_alive()
    answered.set()
    scrape.join(20)


def test_a_key_and_the_rate_limit_protect_users_before_the_body_is_read(trained_run, tmp_path):
    options = LiveOptions(store=str(tmp_path / "s.db"), api_key="sécret", rate=3)
    with TestClient(create_app(trained_run, options)) as client:
        wait_until_ready(client)
        path, key = "/users/u/recommendations", {"X-API-Key": "sécret".encode()}
        assert client.get(path).status_code == 401
        assert client.get(path, headers={"X-API-Key": "guess"}).status_code == 401
        time.sleep(1)  # refused requests count for the rate as well
        codes = [client.get(path, headers=key).status_code for _ in range(8)]
        assert codes[0] == 200
        assert 429 in codes


def test_each_key_allows_what_it_is_for(trained_run, tmp_path):
    options = LiveOptions(store=str(tmp_path / "s.db"), read_key="r", write_key="w", api_key="all")
    with TestClient(create_app(trained_run, options)) as client:
        wait_until_ready(client)
        requests = {
            "read": ("GET", "/users/u/recommendations", None),
            "write": ("POST", "/events", payload("u", 0)),
            "delete": ("DELETE", "/users/u", None),
        }
        allowed = {
            (key, role)
            for key in ("r", "w", "all", "", "é")
            for role, (method, path, body) in requests.items()
            if client.request(
                method, path, json=body, headers={"Authorization": f"Bearer {key}".encode()}
            ).status_code
            != 401
        }
        assert allowed == {("r", "read"), ("w", "write")} | {("all", role) for role in requests}
        assert client.post("/events", content=b"{" * 100).status_code == 401  # not 422
        assert client.get("/openapi.json").status_code == 401
        assert {client.get(path).status_code for path in ("/docs", "/redoc")} == {401}
        for path in ("/", "/health/live", "/health/ready", "/metrics"):
            assert client.get(path).status_code == 200
            assert client.get(path).headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize("timestamp", ["9999-01-01T00:00:00Z", 1e12, 1_700_000_000.0, True])
def test_times_are_seconds_or_iso_8601_and_not_in_the_future(client, timestamp):
    event = payload("u", 0) | {"timestamp": timestamp}
    assert client.post("/events", json=event).status_code == 422


@pytest.mark.parametrize("timestamp", ["1700000000", "2024-01-01", "2024-01-01T00:00:00", [], -1])
def test_other_texts_and_times_without_an_offset_are_refused(client, timestamp):
    event = payload("u", 0) | {"timestamp": timestamp}
    assert client.post("/events", json=event).status_code == 422


def test_iso_8601_and_seconds_are_the_same_moment(client):
    events = [
        payload("tim", 0) | {"timestamp": moment, "event_id": None}
        for moment in (1_704_067_200, "2024-01-01T00:00:00Z", "2024-01-01T02:00:00+02:00")
    ]
    assert client.post("/events", json=events).status_code == 200
    times = [event["time"] for event in client.get("/users/tim/profile").json()["events"]]
    assert times == [1_704_067_200] * 3


def test_many_wrong_events_get_a_short_answer(client):
    headers = {"Content-Type": "application/json"}
    many = client.post("/events", content=f"[{','.join(['{}'] * 349_000)}]", headers=headers)
    assert (many.status_code, len(many.content) < 1000) == (422, True)
    thousand = client.post("/events", json=[{}] * 1000)
    assert (thousand.status_code, len(thousand.content) < 3000) == (422, True)
    deep = client.post("/events", content="[" * 500_000, headers=headers)
    assert deep.status_code in (400, 422)


def test_all_waiting_bodies_together_are_bounded(client, monkeypatch):
    monkeypatch.setattr(middleware, "MAX_BODIES", 50)
    response = client.post("/events", json=[payload("u", 0)] * 10)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert client.post("/events", json=payload("u", 0) | {"event_id": None}).status_code != 200
    monkeypatch.undo()
    assert client.post("/events", json=payload("u", 0)).status_code == 200


def test_health_answers_head_and_tells_of_the_store(trained_run, tmp_path, monkeypatch):
    monkeypatch.setattr(upkeep, "CHECK_SECONDS", 0.05)
    app = create_app(trained_run, LiveOptions(store=str(tmp_path / "s.db")))
    with TestClient(app) as client:
        wait_until_ready(client)
        assert client.head("/health/live").status_code == 200
        assert client.head("/health/ready").status_code == 200
        assert client.get("/health/ready").json()["reload"] == "ok"

        def fail():
            raise StoreError("the disk is full")

        monkeypatch.setattr(app.state.service.store, "check", fail)
        wait(lambda: client.get("/health/ready").status_code == 503)
        assert "disk is full" in client.get("/health/ready").json()["detail"]
        assert client.get("/health/live").status_code == 200
        monkeypatch.undo()
        wait_until_ready(client)


def test_the_log_holds_nothing_that_users_send(client, caplog, monkeypatch):
    path = "/users/secret-user/recommendations"
    client.get(path, params={"where": "secret-condition("})
    event = payload("secret-user", 0, "secret-item")
    answers = [
        client.post("/events", json=event | sent)
        for sent in (
            {},
            {"event_id": "secret-event"},
            {"timestamp": "secret-time"},
            {"event": "secret-type"},
            {"item_id": "\nsecret-item"},
        )
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 422, 422, 422]
    engine = client.app.state.service.engine
    for error in (StoreError("down"), RuntimeError("of secret-user")):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(engine, "recommend_each", fail)
        # the server gets no exception, whose message it would log
        assert client.get(path).status_code == (503 if isinstance(error, StoreError) else 500)
        monkeypatch.undo()
    assert "down" in caplog.text
    assert "RuntimeError" in caplog.text
    assert "secret" not in "".join(r.getMessage() for r in caplog.records if "httpx" not in r.name)
    metrics = client.get("/metrics").text
    assert "secret" not in metrics and str(START) not in metrics


def test_a_list_that_takes_too_long_is_refused(trained_run, tmp_path, monkeypatch):
    options = LiveOptions(store=str(tmp_path / "s.db"), list_timeout=0.05)
    with TestClient(create_app(trained_run, options)) as client:
        wait_until_ready(client)
        engine, released = client.app.state.service.engine, threading.Event()
        monkeypatch.setattr(engine, "recommend_each", lambda *_: released.wait(60))
        response = client.get("/users/u/recommendations")
        released.set()
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert "no answer within 0.05 s" in response.json()["detail"]
