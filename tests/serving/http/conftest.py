"""A client of the service."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod

import pytest
from fastapi.testclient import TestClient
from helpers.servers import wait_until_ready

from jaxrec.serving.http.app import create_app
from jaxrec.serving.live.engine import LiveEngine
from jaxrec.serving.live.state_updater import BATCHES
from jaxrec.serving.options import LiveOptions

SMALL_START = partialmethod(LiveEngine.warm_up, BATCHES[:1])


@contextmanager
def small_start() -> Iterator[None]:
    """Services start with few shapes; a test compiles the others that it needs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LiveEngine, "warm_up", SMALL_START)
        yield


@pytest.fixture(scope="module", autouse=True)
def small_starts():
    with small_start():
        yield


@pytest.fixture(scope="package")
def client(trained_run, tmp_path_factory):
    store = tmp_path_factory.mktemp("service") / "store.db"
    options = LiveOptions(store=str(store), list_timeout=60)  # a busy machine is slow
    with TestClient(create_app(trained_run, options)) as client:
        with small_start():
            wait_until_ready(client)
        yield client
