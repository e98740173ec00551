"""A small recommender for objectives, and a complete run."""

import pytest
from flax import nnx
from helpers.objective import CONFIG, SIZES, make_tower
from helpers.training import complete_run

from jaxrec.models.recommender import Recommender


@pytest.fixture(scope="module")
def model():
    return Recommender(CONFIG.model, SIZES, nnx.Rngs(0))


@pytest.fixture(scope="module")
def tower():
    return make_tower()


@pytest.fixture(scope="session")
def whole_run(tables, tmp_path_factory, worker_id):
    return complete_run(tables, tmp_path_factory, worker_id)
