"""The HTTP service, in this process and as a real server that is killed."""

import signal
import subprocess
import sys
from contextlib import suppress
from urllib.parse import quote

import polars as pl
import pytest
from helpers.paths import ROOT
from helpers.servers import START, Service, payload
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable

from jaxrec.inference import loading
from jaxrec.serving.http.item_schemas import ItemColumns


def test_events_change_the_next_list_which_equals_batch_scoring(client, trained_run):
    before = client.get("/users/ann/recommendations", params={"k": 5}).json()
    events = [payload("ann", n) for n in range(4)]
    assert client.post("/events", json=events).json() == {"outcomes": ["accepted"] * 4}
    assert client.post("/events", json=events[0]).json() == {"outcomes": ["duplicate"]}
    after = client.get("/users/ann/recommendations", params={"k": 5}).json()
    assert after["events"] == 4
    assert not after["approximate"]
    assert [i["id"] for i in after["items"]] != [i["id"] for i in before["items"]]
    table = pl.DataFrame(events).drop("event_id")
    expected = loading.load(trained_run).recommend(table, k=5)
    assert [item["id"] for item in after["items"]] == expected["item_id"].to_list()
    assert [item["title"] for item in after["items"]] == expected["title"].to_list()
    assert all(item["because"].startswith("brand w") for item in after["items"][:2])


def test_other_targets_conditions_and_words(client):
    client.post("/events", json=[payload("bob", n) for n in range(3)])
    brands = client.get("/users/bob/recommendations", params={"k": 2, "target": "brand"}).json()
    assert {item["id"] for item in brands["items"]} <= {f"brand{n}" for n in range(4)}
    cheap = client.get("/users/bob/recommendations", params={"where": "price < 10"}).json()
    assert {item["id"] for item in cheap["items"]} <= {f"i{n:02}" for n in range(7)}
    bought = client.get("/users/bob/recommendations", params={"context": "buy"})
    assert bought.status_code == 200
    query = {"user_id": "bob", "words": "brand x item f. brand1. Beauty > Shelf 0", "strength": 1}
    steered = client.post("/query", json=query).json()["items"]
    plain = client.get("/users/bob/recommendations").json()["items"]
    assert sum(i["id"][1] == "1" for i in steered) > sum(i["id"][1] == "1" for i in plain)


def test_a_profile_holds_interests_and_the_events_behind_them(client):
    client.post("/events", json=[payload("cat", n, "i05" if n == 2 else None) for n in range(3)])
    profile = client.get("/users/cat/profile", params={"top": 2}).json()
    assert [event["item_id"] for event in profile["events"]] == ["i00", "i01", "i05"]
    assert profile["events"][2]["title"] == "brand w item f"
    assert {interest["type"] for interest in profile["interests"]} >= {"brand", "item"}


def test_deleting_a_user_leaves_nothing(client):
    client.post("/events", json=payload("dan", 0))
    assert client.delete("/users/dan").status_code == 204
    profile = client.get("/users/dan/profile").json()
    assert profile["events"] == []
    assert client.get("/users/dan/recommendations").json()["events"] == 0


def test_the_service_survives_a_panic_in_a_rust_library(client):
    path = "/users/eve/recommendations"
    for _ in range(2):
        assert client.get(path, params={"where": "least() > 1"}).status_code == 422
    assert client.get(path).status_code == 200


def test_user_ids_may_hold_slashes(client):
    user = "shop/eve #1"
    path = f"/users/{quote(user, safe='')}"
    client.post("/events", json=[payload(user, 0)])
    assert client.get(f"{path}/recommendations").json()["events"] == 1
    assert client.get(f"{path}/profile").json()["user_id"] == user
    assert client.delete(path).status_code == 204
    assert client.get(f"{path}/recommendations").json()["events"] == 0


def test_feedback_changes_the_list_and_the_response_says_so(client):
    client.post("/events", json=[payload("ian", n) for n in range(3)])
    path = "/users/ian/recommendations"
    before = client.get(path).json()["items"]
    assert client.get("/model").json()["feedback"][0] == "cancel"
    dislike = payload("ian", 9, before[0]["id"], "dislike")
    assert client.post("/events", json=dislike).json() == {"outcomes": ["accepted"]}
    after = client.get(path).json()["items"]
    assert before[0]["id"] not in [item["id"] for item in after]
    assert any(item["rules"] == ["feedback"] for item in after)
    assert {item["propensity"] for item in after} == {1.0}
    events = client.get("/users/ian/profile").json()["events"]
    assert [event["event_type"] for event in events] == ["view", "view", "view", "dislike"]


def test_the_document_names_what_the_model_accepts(client):
    document = client.get("/openapi.json").json()
    event = document["components"]["schemas"]["EventRequest"]
    assert event["properties"]["event"]["enum"][:2] == ["buy", "view"]
    assert "dislike" in event["properties"]["event"]["enum"]
    assert "event" in event["required"]
    listed = document["paths"]["/users/{user_id}/recommendations"]["get"]["parameters"]
    named = {parameter["name"]: parameter["schema"] for parameter in listed}
    assert named["target"]["enum"] == client.get("/model").json()["targets"]
    assert named["context"]["enum"] == ["", "buy", "view"]
    assert named["k"]["maximum"] == client.get("/model").json()["items"]


def within_the_model(case):
    """A valid case without what no schema can say."""
    if "where" in (case.query or {}):
        case.query["where"] = "price < 50"  # which texts are conditions
    if "target" in (case.query or {}):
        case.query |= {"target": "item"}  # rules act on items only
    bodies = case.body if isinstance(case.body, list) else [case.body]
    for number, body in enumerate(body for body in bodies if isinstance(body, dict)):
        if "where" in body:
            body["where"] = ""
        if "timestamp" in body:
            body["timestamp"] = START + number  # which moments are past
        if "item_id" in body and "event" not in body:
            body["item_id"] = f"item {number}"  # each once
        if case.path.startswith("/items"):
            for name in body.keys() - ItemColumns.model_fields - {"item_id"}:
                del body[name]  # two columns of one name, in capitals and not
            lists = {name for name, value in body.items() if isinstance(value, list)}
            labels = body.keys() & {"brand", "category", "categories", "genres", "merchant"}
            body |= dict.fromkeys(lists | labels, "text")  # the type in the catalogue; 64 bits


@pytest.mark.slow
def test_all_responses_fit_the_openapi_document(trained_run, tmp_path):
    """For valid and invalid requests that schemathesis generates from the document."""
    schemathesis = pytest.importorskip("schemathesis")
    server = Service(trained_run, tmp_path / "store.db")
    document = schemathesis.openapi.from_url(f"{server.client.base_url}/openapi.json")
    unhurried = settings(
        max_examples=12,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    for operation in document.get_all_operations():
        for mode in schemathesis.GenerationMode:

            @unhurried
            @given(case=operation.ok().as_strategy(generation_mode=mode))
            def check(case):
                if case.meta.generation.mode == schemathesis.GenerationMode.POSITIVE:
                    within_the_model(case)
                case.call_and_validate()

            with suppress(Unsatisfiable):  # an operation without input has no invalid request
                check()
    assert server.stop() == 128 + signal.SIGTERM


def test_batch_scoring_imports_no_web_framework():
    code = "import sys, jaxrec.serving.batch; print({'fastapi', 'uvicorn'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.strip() == "set()", run.stderr


def test_text_that_is_no_id_is_refused(client):
    """Such a user could never be read or deleted over HTTP."""
    for field in ("user_id", "item_id", "event_id"):
        event = {"user_id": "u", "item_id": "i01", "event": "view", field: "a\nb"}
        response = client.post("/events", json=event)
        assert response.status_code == 422
        assert "'a\\nb' is no id" in response.json()["detail"]
