"""DELETE removes a user from everything that the service was pointed at, also without a model."""

import shutil

import pytest
from fastapi.testclient import TestClient
from helpers.jobs import holding

from jaxrec.artifacts.files import locked
from jaxrec.data.forgotten import read_forgotten
from jaxrec.serving import forgetting
from jaxrec.serving.http.app import create_app
from jaxrec.serving.options import LiveOptions

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
