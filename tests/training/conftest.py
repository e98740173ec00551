"""A small recommender for objectives."""

import pytest
from flax import nnx
from helpers.objective import CONFIG, SIZES

from jaxrec.models.recommender import Recommender


@pytest.fixture(scope="module")
def model():
    return Recommender(CONFIG.model, SIZES, nnx.Rngs(0))
