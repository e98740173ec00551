"""DELETE removes a user from everything that the service was pointed at, also without a model."""

import shutil

import pytest
from fastapi.testclient import TestClient
from helpers.jobs import holding
from helpers.servers import START

from jaxrec.artifacts.files import locked
from jaxrec.data.forgotten import read_forgotten
from jaxrec.serving import forgetting
from jaxrec.serving.http.app import create_app
from jaxrec.serving.http.schemas import DeletionProblem, DeletionReport
from jaxrec.serving.options import LiveOptions
from jaxrec.serving.stores.base import Impression, UserDocument

GONE = "secret-user-1"


@pytest.fixture
def client(trained_run, tmp_path):
    """A service of a run that has no checkpoint yet, and of outputs and states of two users."""
    run = tmp_path / "run"
    shutil.copytree(trained_run / "catalog", run / "catalog")
    shutil.copy(trained_run / "config.yaml", run)
    for name in ("lists", "states"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part-0.csv").write_text(f"user_id,rank\n{GONE},1\nother,1\n")
    options = LiveOptions(
        store=str(tmp_path / "store.db"),
        forgotten=tmp_path / "forgotten.txt",
        forget_outputs=(str(tmp_path / "lists"),),
        forget_states=(str(tmp_path / "states"),),
        forget_runs=(run,),
    )
    with TestClient(create_app(run, options)) as client:
        yield client


def test_no_byte_of_a_deleted_user_remains(client, tmp_path):
    assert holding(tmp_path, GONE) == {"part-0.csv"}
    for _ in range(2):
        assert client.delete(f"/users/{GONE}").status_code == 204
    assert holding(tmp_path, GONE) == set()
    assert holding(tmp_path, "other") >= {"part-0.csv"}
    assert len(read_forgotten(tmp_path / "forgotten.txt").until) == 1


def test_a_place_that_fails_is_told_and_the_request_can_be_repeated(
    client, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(forgetting, "BUSY_SECONDS", 0.0)
    with locked(tmp_path / "lists"):
        answer = client.delete(f"/users/{GONE}")
    assert answer.status_code == 503
    assert "not removed from every place (outputs); send the request again" in answer.text
    assert GONE not in (tmp_path / "states" / "part-0.csv").read_text()
    assert "another process is writing" in caplog.text
    assert GONE not in caplog.text
    assert client.delete(f"/users/{GONE}").status_code == 204
    assert holding(tmp_path, GONE) == set()


def test_the_report_says_what_was_removed_from_each_place(client, tmp_path):
    store = client.app.state.service.store
    store.save([UserDocument(GONE), UserDocument("other")])
    store.add_impressions([Impression(GONE, START, "m", ("i1",), (1.0,))])

    def place(kind, name, users, **removed):
        own = {"kind": kind, "place": str(tmp_path / name), "users": users, "removed": removed}
        notes = [forgetting.NOT_COMPACT] if kind == "store" else []
        return own | {"notes": notes, "failure": ""}

    answer = client.delete(f"/users/{GONE}", params={"report": True})
    assert answer.status_code == 200
    assert answer.json() == {
        "users": 1,
        "complete": True,
        "places": [
            place("store", "store.db", 1, documents=1, impressions=1),
            place("list", "forgotten.txt", 0, entries=1),
            place("outputs", "lists", 1, rows=1, files=1),
            place("states", "states", 1, rows=1, files=1),
            place("run", "run", 0, rows=0),
        ],
    }
    assert DeletionReport.model_validate(answer.json())
    assert GONE not in answer.text
    assert store.load(["other"]).documents["other"].version
    again = client.delete(f"/users/{GONE}", params={"report": True}).json()
    assert [place["users"] for place in again["places"]] == [0] * 5


def test_the_report_of_a_place_that_fails_comes_with_the_problem(client, tmp_path, monkeypatch):
    monkeypatch.setattr(forgetting, "BUSY_SECONDS", 0.0)
    with locked(tmp_path / "lists"):
        answer = client.delete(f"/users/{GONE}", params={"report": True})
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    report = DeletionProblem.model_validate(answer.json()).report
    assert not report.complete
    [failed] = [place for place in report.places if place.failure]
    assert failed.place == str(tmp_path / "lists")
    assert "another process is writing" in failed.failure
    assert client.delete(f"/users/{GONE}", params={"report": True}).json()["complete"]
