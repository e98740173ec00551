"""The trained model and the events of its training."""

import pytest

import jaxrec


@pytest.fixture(scope="module")
def model(trained_run):
    return jaxrec.load(trained_run)


@pytest.fixture(scope="module")
def events(known_shop):
    return known_shop.events
