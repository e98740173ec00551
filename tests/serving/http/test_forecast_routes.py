"""The route of a forecast, without the start of a service."""

import pytest
from fastapi.testclient import TestClient
from helpers.servers import payload

from jaxrec.inference.loading import load
from jaxrec.serving.http.app import create_app
from jaxrec.serving.live.engine import LiveEngine
from jaxrec.serving.options import LiveOptions


@pytest.fixture(scope="module")
def forecasts(forecast_run, tmp_path_factory):
    store = str(tmp_path_factory.mktemp("forecast") / "store.db")
    app = create_app(forecast_run, LiveOptions(store=store, list_timeout=60))
    service = app.state.service
    service.engine = LiveEngine(load(forecast_run), service.store)
    client = TestClient(app)  # not entered, so that nothing starts
    client.post("/events", json=[payload("gus", n) for n in range(5)])
    yield client
    service.close()


def test_a_forecast_has_steps_and_a_movement(forecasts):
    assert forecasts.get("/model").json()["forecast"] == 4
    answer = forecasts.get("/users/gus/forecast?steps=3&k=2")
    assert answer.status_code == 200, answer.text
    content = answer.json()
    assert [step["step"] for step in content["steps"]] == [1, 2, 3]
    assert [[item["rank"] for item in step["items"]] for step in content["steps"]] == 3 * [[1, 2]]
    recommended = forecasts.get("/users/gus/recommendations?k=2").json()["items"]
    first = content["steps"][0]["items"]
    assert [item["id"] for item in first] == [item["id"] for item in recommended]
    # all roll-outs agree on the first step, but for rounding
    assert all(item["low"] - 1e-6 <= item["weight"] <= item["high"] + 1e-6 for item in first)
    movement, profile = content["movement"], forecasts.get("/users/gus/profile").json()["movement"]
    assert movement["names"] == profile["names"] and movement["type"] == profile["type"]
    assert movement["weights"][0] == pytest.approx(profile["weights"][-1], abs=1e-5)
    assert len(movement["low"]) == len(movement["high"]) == 3
    new = forecasts.get("/users/nobody/forecast").json()
    assert len(new["steps"]) == 4 and new["movement"]["names"] == []


def test_a_forecast_that_cannot_be_made_is_refused(forecasts, client):
    for query, part in (("steps=5", "trained for 1 to 4"), ("steps=0", ""), ("k=0", "")):
        answer = forecasts.get(f"/users/gus/forecast?{query}")
        assert answer.status_code == 422 and part in answer.json()["detail"]
    refusal = client.get("/users/gus/forecast")
    assert refusal.status_code == 404
    assert "no decoder" in refusal.json()["detail"]
    assert client.get("/model").json()["forecast"] == 0
    assert "/users/{user_id}/forecast" in client.get("/openapi.json").json()["paths"]
