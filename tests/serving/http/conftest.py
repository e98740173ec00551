"""A client of the service."""

from functools import partialmethod

import pytest
from fastapi.testclient import TestClient
from helpers.servers import wait_until_ready

from jaxrec.serving.http.app import create_app
from jaxrec.serving.live.engine import LiveEngine
from jaxrec.serving.live.state_updater import BATCHES
from jaxrec.serving.options import LiveOptions


@pytest.fixture(scope="package", autouse=True)
def small_batches():
    """Services of these tests get few requests at a time; large batches take long to compile."""
    with pytest.MonkeyPatch.context() as patch:
        small = partialmethod(LiveEngine.warm_up, BATCHES[:2])
        patch.setattr(LiveEngine, "warm_up", small)
        yield


@pytest.fixture(scope="package")
def client(trained_run, tmp_path_factory):
    store = tmp_path_factory.mktemp("service") / "store.db"
    with TestClient(create_app(trained_run, LiveOptions(store=str(store)))) as client:
        wait_until_ready(client)
        yield client
