"""Reloading checkpoints and surviving kills."""

import json
import shutil
import signal
import time

import pytest
from fastapi.testclient import TestClient
from helpers.servers import Load, Service, wait, wait_until_ready

from jaxrec.artifacts.files import write_json
from jaxrec.inference import loading
from jaxrec.serving.http.app import create_app
from jaxrec.serving.options import LiveOptions
from jaxrec.serving.stores.sqlite import SQLiteStore


@pytest.mark.thorough
def test_a_changed_run_is_loaded_while_requests_are_answered(trained_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    app = create_app(run, LiveOptions(refresh=0.2, list_timeout=60))
    with TestClient(app) as client:
        wait_until_ready(client)
        service = app.state.service
        first = service.engine
        (run / "checkpoints" / "finished").touch()  # another file, with nothing new to serve
        assert service.load_best() is first
        calibration = run / "calibration.json"  # the same step, but other scores
        fitted = json.loads(calibration.read_text())
        write_json(calibration, {**fitted, "inverse_temperature": 2.0})
        for _ in range(600):
            assert client.get("/users/u/recommendations").status_code == 200
            if service.engine is not first:
                break
            time.sleep(0.1)
        assert service.engine.model.inverse_temperature == 2.0
        assert service.load_best() is service.engine


@pytest.mark.thorough
def test_a_run_copied_in_place_is_served_once_it_is_whole(trained_run, tmp_path):
    run, kept = tmp_path / "run", tmp_path / "kept"
    shutil.copytree(trained_run, run)
    parameters = run / "checkpoints" / str(loading.load(trained_run).step) / "params"
    shutil.move(parameters, kept)
    with TestClient(create_app(run, LiveOptions(refresh=0.2))) as client:
        wait(lambda: "cannot be" in client.get("/health/ready").json()["detail"])
        assert client.get("/users/u/recommendations").status_code == 503
        assert "jaxrec_failed_reloads_total 0.0" not in client.get("/metrics").text
        shutil.copytree(kept, parameters)
        wait_until_ready(client)
        assert client.get("/users/u/recommendations").status_code == 200


@pytest.mark.slow
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
