"""A client of the service."""

import pytest
from fastapi.testclient import TestClient
from helpers.servers import wait_until_ready

from jaxrec.serving.http.app import create_app
from jaxrec.serving.options import LiveOptions


@pytest.fixture(scope="package")
def client(trained_run, tmp_path_factory):
    store = tmp_path_factory.mktemp("service") / "store.db"
    with TestClient(create_app(trained_run, LiveOptions(store=str(store)))) as client:
        wait_until_ready(client)
        yield client
