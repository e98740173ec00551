"""The live engine over a store of its own."""

import pytest

from jaxrec.serving.live.engine import LiveEngine
from jaxrec.serving.stores.sqlite import SQLiteStore


@pytest.fixture
def engine(model, tmp_path):
    return LiveEngine(model, SQLiteStore(tmp_path / "store.db"), window=3)
