"""Reloading checkpoints and surviving kills."""

import shutil
import signal
import time

import pytest
from fastapi.testclient import TestClient
from helpers.servers import Load, Service, wait_until_ready

from jaxrec.inference import loading
from jaxrec.serving.http.app import create_app
from jaxrec.serving.options import LiveOptions
from jaxrec.serving.stores.sqlite import SQLiteStore


def test_a_new_checkpoint_is_loaded_while_requests_are_answered(trained_run, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    app = create_app(run, LiveOptions(refresh=0.2))
    with TestClient(app) as client:
        wait_until_ready(client)
        service = app.state.service
        first = service.engine
        service.served = -1, True  # as if another checkpoint had been the best
        (run / "checkpoints" / "finished").touch()
        for _ in range(600):
            assert client.get("/users/u/recommendations").status_code == 200
            if service.engine is not first:
                break
            time.sleep(0.1)
        assert service.engine is not first
        assert service.load_best() is service.engine

        def load(run):
            raise InterruptedError

        monkeypatch.setattr(loading, "load", load)
        (run / "calibration.json").unlink()
        with pytest.raises(InterruptedError):
            service.load_best()


def test_killing_the_service_loses_no_acknowledged_event(trained_run, tmp_path):
    store = tmp_path / "store.db"
    server = Service(trained_run, store)
    with Load([server]) as load:
        load.wait_for(60)
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    assert load.lost(SQLiteStore(store)) == set()
    restarted = Service(trained_run, store)
    response = restarted.client.get("/users/user0/recommendations").json()
    assert response["events"] >= sum(user == "user0" for user, _ in load.acknowledged)
    assert restarted.stop() == 128 + signal.SIGTERM  # uvicorn raises it again once all is answered
