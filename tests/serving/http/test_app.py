"""The HTTP service, in process and as a real server that is killed."""

import shutil
import signal
import sqlite3
import threading
import time
from contextlib import closing, suppress
from urllib.parse import quote

import polars as pl
import pytest
from fastapi.testclient import TestClient
from helpers.servers import Load, Service, payload, wait_until_ready
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable

from jaxrec.inference import loading
from jaxrec.serving.http import app as service
from jaxrec.serving.http.app import create_app, serve_http
from jaxrec.serving.options import LiveOptions
from jaxrec.serving.stores.sqlite import SQLiteStore


@pytest.fixture(scope="module")
def client(trained_run, tmp_path_factory):
    store = tmp_path_factory.mktemp("service") / "store.db"
    with TestClient(create_app(trained_run, LiveOptions(store=str(store)))) as client:
        wait_until_ready(client)
        yield client


def test_events_move_the_next_list_which_is_that_of_batch_scoring(client, trained_run):
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
    asked = {"user_id": "bob", "words": "brand x item f. brand1. Beauty > Shelf 0", "strength": 1}
    found = client.post("/query", json=asked).json()["items"]
    plain = client.get("/users/bob/recommendations").json()["items"]
    assert sum(i["id"][1] == "1" for i in found) > sum(i["id"][1] == "1" for i in plain)


def test_a_profile_holds_interests_and_the_events_behind_them(client):
    client.post("/events", json=[payload("cat", n, "i05" if n == 2 else None) for n in range(3)])
    profile = client.get("/users/cat/profile", params={"top": 2}).json()
    assert [event["item_id"] for event in profile["events"]] == ["i00", "i01", "i05"]
    assert profile["events"][2]["title"] == "brand w item f"
    assert {interest["type"] for interest in profile["interests"]} >= {"brand", "item"}


def test_deleting_a_user_forgets_everything(client):
    client.post("/events", json=payload("dan", 0))
    assert client.delete("/users/dan").status_code == 204
    profile = client.get("/users/dan/profile").json()
    assert profile["events"] == []
    assert client.get("/users/dan/recommendations").json()["events"] == 0


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "told"),
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
            "to come",
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
def test_errors_are_problems_that_say_why(client, method, path, content, status, told):
    answer = client.request(method, path, json=content)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert told in str(problem)


def test_one_bad_request_spoils_no_other_of_its_batch(client):
    answers = {}

    def ask(name, where):
        params = {"where": where, "k": 3}
        answers[name] = client.get("/users/eve/recommendations", params=params).status_code

    asking = [
        threading.Thread(target=ask, args=(n, "price < 30" if n % 2 else "bad ( condition"))
        for n in range(8)
    ]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert answers == {n: 200 if n % 2 else 422 for n in range(8)}


def test_a_condition_that_panics_stops_nobody(client):
    path = "/users/eve/recommendations"
    for _ in range(2):
        assert client.get(path, params={"where": "least() > 1"}).status_code == 422
    assert client.get(path).status_code == 200


def test_a_queue_that_grows_without_end_is_refused(client, monkeypatch):
    monkeypatch.setattr(service, "MOST_WAITING", 0)
    answer = client.post("/events", json=payload("eve", 0))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_ids_with_slashes_are_read_and_forgotten(client):
    user = "shop/eve #1"
    path = f"/users/{quote(user, safe='')}"
    client.post("/events", json=[payload(user, 0)])
    assert client.get(f"{path}/recommendations").json()["events"] == 1
    assert client.get(f"{path}/profile").json()["user_id"] == user
    assert client.delete(path).status_code == 204
    assert client.get(f"{path}/recommendations").json()["events"] == 0


def test_thumbs_move_the_list_and_the_answer_says_so(client):
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


def test_a_store_that_fails_is_told_as_503_and_logged(trained_run, tmp_path, caplog):
    path = tmp_path / "store.db"
    app = create_app(trained_run, LiveOptions(store=str(path)))
    app.state.live.store.connection.execute("PRAGMA busy_timeout = 50")
    other = sqlite3.connect(path, isolation_level=None)
    with closing(other), TestClient(app) as client:
        wait_until_ready(client)
        other.execute("BEGIN IMMEDIATE")
        answer = client.post("/events", json=payload("u", 0))
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["title"] == "the store fails"
        assert "locked" in caplog.text
        assert client.get("/users/u/recommendations").status_code == 200  # readers go on
        other.execute("ROLLBACK")
        assert client.post("/events", json=payload("u", 0)).json() == {"outcomes": ["accepted"]}


def test_metrics_count_what_was_done(client):
    client.post("/events", json=payload("fay", 0))
    client.get("/users/fay/recommendations")
    text = client.get("/metrics").text
    assert 'jaxrec_events_total{outcome="accepted"}' in text
    assert 'route="/users/{user_id}/recommendations"' in text
    assert "fay" not in text


def test_a_key_and_a_rate_guard_what_concerns_users(trained_run, tmp_path):
    options = LiveOptions(store=str(tmp_path / "s.db"), api_key="sécret", rate=3)
    with TestClient(create_app(trained_run, options)) as client:
        wait_until_ready(client)
        path, key = "/users/u/recommendations", {"X-API-Key": "sécret".encode()}
        assert client.get(path).status_code == 401
        assert client.get(path, headers={"X-API-Key": "guess"}).status_code == 401
        time.sleep(1)  # guesses count as well
        codes = [client.get(path, headers=key).status_code for _ in range(8)]
        assert codes[0] == 200
        assert 429 in codes


def test_a_new_checkpoint_is_picked_up_while_requests_are_served(
    trained_run, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    app = create_app(run, LiveOptions(refresh=0.2))
    with TestClient(app) as client:
        wait_until_ready(client)
        live = app.state.live
        first = live.online
        live.served = -1, True  # as if another had been the best until now
        (run / "checkpoints" / "finished").touch()
        for _ in range(600):
            assert client.get("/users/u/recommendations").status_code == 200
            if live.online is not first:
                break
            time.sleep(0.1)
        assert live.online is not first
        assert live.load_better() is live.online

        def load(run):
            raise InterruptedError

        monkeypatch.setattr(loading, "load", load)
        (run / "calibration.json").unlink()
        with pytest.raises(InterruptedError):
            live.load_better()


def test_kill_9_loses_no_acknowledged_event(trained_run, tmp_path):
    store = tmp_path / "store.db"
    server = Service(trained_run, store)
    with Load([server]) as load:
        load.wait_for(60)
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    assert load.lost(SQLiteStore(store)) == set()
    again = Service(trained_run, store)
    answer = again.client.get("/users/user0/recommendations").json()
    assert answer["events"] >= sum(user == "user0" for user, _ in load.acknowledged)
    assert again.stop() == 128 + signal.SIGTERM  # uvicorn raises it again once all is answered


def test_whatever_is_sent_the_service_answers_as_its_document_says(trained_run, tmp_path):
    """Requests made from the OpenAPI document, valid and not, by schemathesis."""
    schemathesis = pytest.importorskip("schemathesis")
    # event types and columns are the model's, so that 422 may answer what the document allows
    checks = pytest.importorskip("schemathesis.specs.openapi.checks")
    server = Service(trained_run, tmp_path / "store.db")
    document = schemathesis.openapi.from_url(f"{server.client.base_url}/openapi.json")
    calm = settings(
        max_examples=12,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    for found in document.get_all_operations():
        for mode in schemathesis.GenerationMode:

            @calm
            @given(case=found.ok().as_strategy(generation_mode=mode))
            def check(case):
                case.call_and_validate(excluded_checks=[checks.positive_data_acceptance])

            with suppress(Unsatisfiable):  # what takes nothing cannot be asked wrongly
                check()
    assert server.stop() == 128 + signal.SIGTERM


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium (Debian: chromium)")
def test_the_page_shows_the_list_change_after_a_click(trained_run, tmp_path):
    """In a real browser: look a document up, buy something, search, all by labels."""
    playwright = pytest.importorskip("playwright.sync_api")
    server = Service(trained_run, tmp_path / "store.db")
    server.client.post("/events", json=[payload("gus", n) for n in range(3)])
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox", "--disable-background-networking"],
        )
        page = browser.new_page(viewport={"width": 390, "height": 800})  # a phone
        failures = []
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.goto(str(server.client.base_url))
        page.get_by_label("UserDocument").fill("gus")
        page.get_by_role("button", name="Show").click()
        page.wait_for_selector("#list li")
        items = page.locator("#list li")
        before = items.evaluate_all("rows => rows.map(row => row.dataset.item)")
        assert len(before) == 10
        assert page.locator("#events li").count() == 3
        assert page.get_by_role("img").get_attribute("aria-label").startswith("Share of interest")
        page.locator("#list li").nth(4).get_by_role("button", name="buy").click()
        page.wait_for_function("document.querySelectorAll('#events li').length === 4")
        after = items.evaluate_all("rows => rows.map(row => row.dataset.item)")
        assert after != before
        assert before[4] not in after
        page.get_by_label("Looks for").fill("brand x item f")
        page.get_by_role("button", name="Steer").click()
        page.wait_for_function(
            "before => [...document.querySelectorAll('#list li')]"
            ".map(row => row.dataset.item).join() !== before",
            arg=",".join(after),
        )
        wide = page.evaluate("document.documentElement.scrollWidth > innerWidth")
        page.screenshot(path=str(tmp_path / "page.png"), full_page=True)
        browser.close()
    assert server.stop() == 128 + signal.SIGTERM
    assert not failures
    assert not wide


@pytest.mark.parametrize("address", ["8080", "host:", ":http"])
def test_addresses_that_are_none_are_refused(trained_run, address):
    with pytest.raises(ValueError, match="HOST:PORT"):
        serve_http(trained_run, LiveOptions(http=address))
