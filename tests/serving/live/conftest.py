"""The live engine over a store of its own."""

import pytest

from jaxrec.inference import loading
from jaxrec.serving.live.engine import LiveEngine
from jaxrec.serving.stores.sqlite import SQLiteStore


@pytest.fixture(scope="module")
def model(trained_run):
    return loading.load(trained_run)


@pytest.fixture
def online(model, tmp_path):
    return LiveEngine(model, SQLiteStore(tmp_path / "store.db"), window=3)
