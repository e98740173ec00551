"""Random requests: to a service in this process, and to one that may crash or hang."""

import json
import os
import subprocess
import sys

import pytest
from fastapi.testclient import TestClient
from helpers.fuzzing import COUNT, SEED
from helpers.paths import ROOT, TESTS
from helpers.send_requests import send_all
from helpers.servers import wait_until_ready

from jaxrec.serving.http.app import create_app
from jaxrec.serving.options import LiveOptions

USUAL = ("POST 200", "PUT 200", "PATCH 200", "GET 200", "DELETE 204")


@pytest.mark.thorough
def test_random_requests_are_answered_or_refused(trained_run, tmp_path):
    options = LiveOptions(store=":memory:", keep_items=200, list_timeout=60, example_users=True)
    app = create_app(trained_run, options)
    with TestClient(app) as client:
        wait_until_ready(client)
        statuses = client.portal.call(send_all, app, 0, 300, tmp_path / "last")
    assert all(statuses[usual] for usual in USUAL)


@pytest.mark.slow
def test_very_many_random_requests_are_answered_or_refused_in_time(trained_run, tmp_path):
    program = TESTS / "helpers" / "send_requests.py"
    log, last = tmp_path / "log", tmp_path / "last"
    arguments = map(str, (program, trained_run, SEED, COUNT, last))
    with log.open("w") as errors:
        process = subprocess.run(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "PYTHONPATH": f"{TESTS}:{ROOT}", "JAX_PLATFORMS": "cpu"},
        )
    texts = [file.read_bytes()[-9000:].decode(errors="replace") for file in (log, last)]
    assert process.returncode == 0, "\n".join(texts)
    print(process.stdout)  # with -s
    assert all(json.loads(process.stdout)[usual] for usual in USUAL)
