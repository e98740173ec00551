"""What the service answers when its store, or a part of it, fails."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from helpers.servers import payload


@pytest.fixture
def store(client):
    return client.app.state.service.store


def test_a_damaged_document_fails_only_requests_of_its_user(client, store):
    for user in ("damaged", "whole"):
        assert client.post("/events", json=payload(user, 0)).status_code == 200
    store.connection.execute(
        "UPDATE shoppers SET version = 9, document = x'00' WHERE user_id = 'damaged'"
    )

    def ask(number):
        user = ("damaged", "whole", "new")[number % 3]
        if number % 2:
            answer = client.get(f"/users/{user}/recommendations")
        else:
            answer = client.post("/events", json=payload(user, number))
        return user, answer.status_code

    with ThreadPoolExecutor(12) as clients:
        answers = set(clients.map(ask, range(60)))
    assert answers == {("damaged", 503), ("whole", 200), ("new", 200)}
    assert client.delete("/users/damaged").status_code == 204
    assert client.get("/users/damaged/recommendations").json()["events"] == 0


@pytest.mark.thorough
def test_lists_do_not_wait_for_a_locked_store(client, store):
    """The lock is held until the list has come."""
    assert client.post("/events", json=payload("reader", 0)).status_code == 200
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert client.get("/users/reader/recommendations").json()["events"] == 1
        assert client.get("/users/reader/profile").json()["events"]
        assert client.post("/events", json=payload("reader", 1)).status_code == 503
        other.execute("ROLLBACK")
    assert client.post("/events", json=payload("reader", 1)).status_code == 200


def test_a_late_event_does_not_bring_a_deleted_user_back(client):
    assert client.post("/events", json=payload("gone", 0)).json() == {"outcomes": ["accepted"]}
    assert client.delete("/users/gone").status_code == 204
    assert client.post("/events", json=payload("gone", 1)).json() == {"outcomes": ["too_late"]}
    assert client.get("/users/gone/recommendations").json()["events"] == 0
