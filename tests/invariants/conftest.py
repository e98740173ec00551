"""Encoders, models, runs and histories that the invariants share."""

import pytest
from helpers.encoders import (
    GRAPH_ENCODERS,
    SEQUENCE_ENCODERS,
    make_graph_encoder,
    make_sequence_encoder,
)
from helpers.encoding import all_queries, make_items, make_log, make_recommender
from helpers.training import complete_run

import jaxrec
from jaxrec.serving.live.engine import LiveEngine
from jaxrec.serving.stores.sqlite import SQLiteStore


@pytest.fixture(scope="module", params=SEQUENCE_ENCODERS)
def sequence(request):
    return make_sequence_encoder(request.param)


@pytest.fixture(scope="module", params=GRAPH_ENCODERS)
def graph_encoder(request):
    return make_graph_encoder(request.param)


@pytest.fixture(scope="module")
def recommender():
    return make_recommender()


@pytest.fixture(scope="module")
def items():
    return make_items()


@pytest.fixture(scope="module")
def log():
    return make_log()


@pytest.fixture(scope="module")
def queries(log):
    return all_queries(log)


@pytest.fixture(scope="session")
def whole_run(tables, tmp_path_factory, worker_id):
    return complete_run(tables, tmp_path_factory, worker_id)


@pytest.fixture(scope="module")
def model(trained_run):
    return jaxrec.load(trained_run)


@pytest.fixture
def engine(model, tmp_path):
    return LiveEngine(model, SQLiteStore(tmp_path / "store.db"), window=3)
