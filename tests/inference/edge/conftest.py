import shutil

import pytest
from helpers.shop import random_followers

import jaxrec
from jaxrec.inference.followers_file import write_followers


@pytest.fixture(scope="session")
def run(trained_run, tmp_path_factory):
    """The trained run, whose scores have co-occurrence too."""
    run = tmp_path_factory.mktemp("edge") / "shop"
    shutil.copytree(trained_run, run, ignore=shutil.ignore_patterns("shoppers.db*"))
    write_followers(run, random_followers(jaxrec.load(trained_run)))
    return run


@pytest.fixture(scope="session")
def model(run):
    return jaxrec.load(run)
