import shutil

import pytest
from helpers.shop import random_neighbours

import jaxrec
from jaxrec.inference.neighbours_file import write_neighbours


@pytest.fixture(scope="session")
def run(trained_run, tmp_path_factory):
    """The trained run, whose scores have item neighbours too."""
    run = tmp_path_factory.mktemp("edge") / "shop"
    shutil.copytree(trained_run, run, ignore=shutil.ignore_patterns("shoppers.db*"))
    write_neighbours(run, random_neighbours(jaxrec.load(trained_run)))
    return run


@pytest.fixture(scope="session")
def model(run):
    return jaxrec.load(run)
