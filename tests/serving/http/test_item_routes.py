"""Changing items over HTTP."""

import time

import pytest
from fastapi.testclient import TestClient
from helpers.servers import wait, wait_until_ready

from jaxrec.serving.http.app import create_app
from jaxrec.serving.http.middleware import role_of
from jaxrec.serving.options import LiveOptions

NEW = {"title": "brand x item k", "brand": "brand1", "price": 12.5, "stock": 4}


@pytest.fixture(scope="module")
def service(trained_run, tmp_path_factory):
    """A service of its own, because its items change."""
    store = tmp_path_factory.mktemp("items") / "store.db"
    options = LiveOptions(store=str(store), keep_items=1100, list_timeout=60)
    with TestClient(create_app(trained_run, options)) as client:
        wait_until_ready(client)
        yield client


def listed(client, where):
    path = "/users/nobody/recommendations"
    answer = client.get(path, params={"where": where, "k": 30})
    return [item["id"] for item in answer.json().get("items", [])]


def metric(client, name):
    [line] = [li for li in client.get("/metrics").text.splitlines() if li.startswith(f"{name} ")]
    return float(line.split()[1])


def test_an_item_is_put_read_changed_and_removed(service):
    assert service.get("/items/a/b").status_code == 404
    item = {"item_id": "a/b", **NEW, "merchant": "m"}
    recorded = service.put("/items", json=item).json()
    assert recorded["outcomes"] == ["created"]
    assert "merchant: the run has no relation sold_by" in recorded["notes"][0]
    assert service.get("/items/a/b").json() == item  # before any list holds it
    wait(lambda: listed(service, "stock > 3") == ["a/b"])
    answer = service.get("/users/nobody/recommendations", params={"where": "stock > 3"}).json()
    assert answer["items"][0]["price"] == 12.5
    assert answer["items"][0]["title"] == "brand x item k"
    assert service.put("/items", json=item).json()["outcomes"] == ["unchanged"]
    assert service.patch("/items/a/b", json={"stock": 1}).json() == {
        "outcomes": ["updated"],
        "notes": [],
    }
    wait(lambda: listed(service, "stock > 3") == [])
    before = service.get("/model").json()["items"]
    assert service.delete("/items/a/b").status_code == 204
    assert service.delete("/items/a/b").status_code == 204
    wait(lambda: service.get("/items", params={"q": "item k"}).json() == {"items": []})
    assert service.get("/model").json()["items"] == before - 1
    assert service.get("/items/a/b").status_code == 404
    assert service.patch("/items/a/b", json={"stock": 1}).status_code == 404
    assert service.delete("/items/unknown").status_code == 404
    assert metric(service, "jaxrec_items") == before - 1
    assert metric(service, "jaxrec_failed_item_updates_total") == 0


def test_many_items_are_changed_at_once(service):
    items = [{"item_id": f"i{n:02}", "price": 1000 + n} for n in range(5)]
    sent = [*items, {"item_id": "missing", "price": 1}]
    outcomes = service.patch("/items", json=sent).json()["outcomes"]
    assert outcomes == ["updated"] * 5 + ["unknown"]
    wait(lambda: set(listed(service, "price >= 1000")) == {f"i{n:02}" for n in range(5)})
    assert service.get("/items/i03").json()["brand"] == "brand0"


def test_a_list_is_never_made_of_half_an_update(service):
    for price in (2000, 3000, 2000):
        service.patch(
            "/items", json=[{"item_id": f"i{n:02}", "price": price} for n in range(20, 30)]
        )
        for _ in range(20):
            assert len(listed(service, f"price = {price}")) in (0, 10)
        wait(lambda price=price: len(listed(service, f"price = {price}")) == 10)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ([], "at least 1 item"),
        ([{"item_id": "n"}] * 1001, "at most 1000"),
        ([{"item_id": "n"}, {"item_id": "n"}], "send each item_id once"),
        ({"title": "no id"}, "Field required"),
        ({"item_id": "a\nb"}, "is no id"),
        ({"item_id": ".."}, "is no id"),
        ({"item_id": "n", "price": "3"}, "valid number"),
        ({"item_id": "n", "price": 1e999}, "finite number"),
        ({"item_id": "n", "title": 3}, "valid string"),
        ({"item_id": "n", "title": "x" * 20_001}, "at most 20000 characters"),
        ({"item_id": "n", "brand": {"name": "a"}}, "send text, a number"),
        ({"item_id": "n", "brand": 1.5}, "send a text, or a list of texts"),
        ({"item_id": "n", "own": {"a": 1}}, "send text, a number"),
        ({"item_id": "n", "own": [1, "a"]}, "a list of texts, or a list of numbers"),
        ({"item_id": "n", "own": [[1]]}, "a list of texts, or a list of numbers"),
        ({"item_id": "n", "own": ["x"] * 257}, "at most 256 texts"),
        ({"item_id": "n", "own": 2**63}, "a number of 64 bits"),
        ({"item_id": "n", "x" * 65: 1}, "name of 1 to 64"),
        ({"item_id": "n", "": 1}, "name of 1 to 64"),
        ({"item_id": "n", "a\tb": 1}, "name of 1 to 64"),
        ({"item_id": "n", **{f"c{n}": 1 for n in range(129)}}, "at most 128 columns"),
        ({"item_id": "n", "PRICE": 1}, "columns of the same name"),
        ({"item_id": "n", "categories": 3}, None),
        ({"item_id": "n", "categories": 3.0}, None),
    ],
)
def test_items_of_another_form_are_refused(service, body, problem):
    if problem == "finite number":
        text = '{"item_id": "n", "price": NaN}'
        answer = service.put("/items", content=text, headers={"content-type": "application/json"})
    else:
        answer = service.put("/items", json=body)
    if problem is None:  # a number is a label
        assert answer.status_code == 200
        return
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem in answer.json()["detail"]


def test_half_of_a_surrogate_pair_is_refused(service):
    for text in ('{"item_id": "n", "title": "\\ud800"}', '{"item_id": "n", "own": ["\\ud800"]}'):
        answer = service.put("/items", content=text, headers={"content-type": "application/json"})
        assert answer.status_code == 422


def test_a_full_store_refuses_new_items(service):
    answer = service.put("/items", json=[{"item_id": f"full{n}"} for n in range(1000)])
    assert answer.status_code == 200
    answer = service.put("/items", json=[{"item_id": f"more{n}"} for n in range(200)])
    assert answer.status_code == 507
    assert "--keep-items" in answer.json()["detail"]
    assert service.patch("/items/full3", json={"price": 3}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "role"),
    [
        ("PUT", "/items", "write"),
        ("PATCH", "/items", "write"),
        ("PATCH", "/items/a", "write"),
        ("DELETE", "/items/a", "delete"),
        ("GET", "/items/a", "read"),
        ("GET", "/items", "read"),
    ],
)
def test_changes_need_the_keys_of_other_changes(method, path, role):
    assert role_of(method, path) == role


def test_a_larger_engine_takes_over_while_lists_go_on(service, monkeypatch):
    state = service.app.state.service
    first = state.engine
    monkeypatch.setattr(type(first), "needs_room", property(lambda engine: engine is first))
    service.patch("/items/i30", json={"price": 7777})
    for _ in range(6000):
        assert service.get("/users/nobody/recommendations").status_code == 200
        if state.engine is not first:
            break
        time.sleep(0.01)
    assert state.engine is not first
    assert listed(service, "price = 7777") == ["i30"]
