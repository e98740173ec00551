"""Errors, metrics, keys and rate limits."""

import sqlite3
import time
from contextlib import closing

import pytest
from fastapi.testclient import TestClient
from helpers.servers import payload, wait_until_ready

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
        ("POST", "/events", [payload("u", 0)] * 1001, 413, "1,001 events"),
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


def test_api_key_and_rate_limit_protect_user_routes(trained_run, tmp_path):
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
