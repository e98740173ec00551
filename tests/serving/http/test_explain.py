"""Explained lists over HTTP, without the start of a service."""

from dataclasses import replace

import pytest
from fastapi.testclient import TestClient
from helpers.servers import payload
from helpers.shop import random_neighbours

from jaxrec.artifacts.run_directory import COOCCURRENCE, SIMILAR_TEXT
from jaxrec.inference.loading import load
from jaxrec.ranking.steps import Boost, Feedback, Session
from jaxrec.serving.http.app import create_app
from jaxrec.serving.live.engine import LiveEngine
from jaxrec.serving.options import LiveOptions

STRATEGY = (Session(), Boost(where="price > 20", by=0.7), Feedback())


@pytest.fixture(scope="module")
def raising(trained_run):
    """A model whose lists hold the neighbours of the items of purchases."""
    model = load(trained_run)
    neighbours = {
        name: replace(part, amounts=50 * abs(part.amounts))
        for name, part in random_neighbours(model).items()
    }
    return replace(model, neighbours=neighbours)


@pytest.fixture(scope="module")
def explained(raising, trained_run, tmp_path_factory):
    store = str(tmp_path_factory.mktemp("explain") / "store.db")
    app = create_app(trained_run, LiveOptions(store=store, list_timeout=120), STRATEGY)
    service = app.state.service
    service.engine = LiveEngine(raising, service.store, strategy=STRATEGY)
    client = TestClient(app)  # not entered, so that nothing starts
    client.post("/events", json=[payload("gus", n) for n in range(5)])
    for item, event_type in (("i12", "buy"), ("i33", "like")):  # a session of today
        client.post("/events", json={"user_id": "gus", "item_id": item, "event": event_type})
    yield client
    service.close()


def test_an_explained_list_is_the_list_with_its_reasons(explained):
    plain = explained.get("/users/gus/recommendations?k=3").json()["items"]
    answer = explained.get("/users/gus/recommendations?k=3&explain=full")
    assert answer.status_code == 200, answer.text
    items = answer.json()["items"]
    assert [item["id"] for item in items] == [item["id"] for item in plain]
    for item in items:
        reason = item["explanation"]
        amounts = [part["amount"] for part in reason["parts"]]
        assert sum(amounts) == pytest.approx(item["score"], abs=1e-4)
        assert reason["item_id"] == item["id"]
        assert reason["sentence"].startswith("Recommended ")
        assert len(reason["events"]) == 6
        assert reason["events_by"] == "leave_one_out"
    parts = [{part["part"] for part in item["explanation"]["parts"]} for item in items]
    neighbours = {COOCCURRENCE, SIMILAR_TEXT}
    assert {"session", "feedback"} | neighbours <= set.union(*parts)
    by_neighbours = [i["because"] for i, own in zip(items, parts, strict=True) if own & neighbours]
    assert set(by_neighbours) == {"brand x item c"}  # the purchase


def test_live_events_count_as_in_a_table(explained, raising, known_shop):
    engine = explained.app.state.service.engine
    own = known_shop.events.filter(user_id="u003").rows(named=True)
    sent = [{**row, "timestamp": row["timestamp"] // 1000} for row in own]
    assert explained.post("/events", json=sent).status_code == 200
    [item] = explained.get("/users/u003/recommendations?k=1&explain=full").json()["items"]
    events = known_shop.events.filter(user_id="u003")
    # the session of these events is over, so it changes nothing
    expected = raising.explain(events, item["id"], strategy=STRATEGY[1:])
    live = item["explanation"]["events"]
    for name, tolerance in (("amount", 1e-3), ("share", 1e-5)):
        of_table = [getattr(event, name) for event in expected.events]
        assert [event[name] for event in live] == pytest.approx(of_table, abs=tolerance)
    assert item["explanation"]["sentence"] == expected.sentence
    assert engine.document("u003").events[-1].item_id == events["item_id"][-1]


def test_a_new_user_gets_reasons_without_events(explained):
    [item] = explained.get("/users/nobody/recommendations?k=1&explain=full").json()["items"]
    assert item["explanation"]["events"] == []
    assert item["explanation"]["sentence"].startswith("Recommended as a first suggestion")


@pytest.mark.parametrize("query", ["k=11", "target=brand&k=2", "explain=all"])
def test_lists_that_cannot_be_explained_are_refused(explained, query):
    answer = explained.get(f"/users/gus/recommendations?explain=full&{query}")
    assert answer.status_code == 422


def test_a_service_with_a_key_explains_only_if_it_is_told_to(explained, monkeypatch):
    service = explained.app.state.service
    path = "/users/gus/recommendations?explain=full&k=1"
    monkeypatch.setattr(service, "options", replace(service.options, open=True))
    assert explained.get(path).status_code == 403
    assert not explained.get("/model").json()["explain"]
    monkeypatch.setattr(service, "options", replace(service.options, explain=True))
    assert explained.get(path).status_code == 200
