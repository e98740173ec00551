"""Arrays that processes share by memory mapping."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.large import WIDTH, write_large_run
from helpers.paths import ROOT

from jaxrec.artifacts import mapped, run_directory
from jaxrec.artifacts.mapped import MappedArrays
from jaxrec.inference import loading

NUM_ITEMS = 100_000


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mapped"


def directories(cache):
    return [path for root in cache.iterdir() if root.is_dir() for path in root.iterdir()]


def test_a_shared_model_ranks_as_any_other(trained_run, known_shop, cache):
    plain = loading.load(trained_run)
    for _ in range(2):  # written, then read
        shared = loading.load(trained_run, shared=True)
        assert (shared.version, shared.step) == (plain.version, plain.step)
        for index in (shared.index, plain.index):
            assert index.unit_vectors("brand").shape == (256, 32)
        np.testing.assert_array_equal(
            shared.index.unit_vectors("brand"), plain.index.unit_vectors("brand")
        )
        np.testing.assert_array_equal(shared.words.items.vectors, plain.words.items.vectors)
        for options in ({"k": 5}, {"k": 3, "target": "brand"}):
            lists = [model.recommend(known_shop.events, **options) for model in (plain, shared)]
            assert lists[0].equals(lists[1])
    assert len(directories(cache)) == 1


def test_another_checkpoint_replaces_the_files_and_leaves_mapped_ones_readable(
    trained_run, cache, monkeypatch
):
    before = loading.load(trained_run, shared=True)
    [old] = directories(cache)
    vectors = np.asarray(before.index.vectors).copy()
    late = MappedArrays(old)
    monkeypatch.setattr(run_directory, "identity", lambda run: "another")
    loading.load(trained_run, shared=True)
    [new] = directories(cache)
    assert new != old
    np.testing.assert_array_equal(before.index.vectors, vectors)
    # a process that still serves the old checkpoint writes one more array
    assert late.array("late", lambda: np.zeros(3)).tolist() == [0, 0, 0]
    monkeypatch.undo()
    monkeypatch.setenv("JAXREC_CACHE", str(cache.parent))
    again = loading.load(trained_run, shared=True)
    np.testing.assert_array_equal(again.index.vectors, vectors)


def test_a_checkpoint_that_training_replaces_meanwhile_is_read_again(
    trained_run, cache, monkeypatch
):
    identities = iter(["first", "second", "second", "second"])
    monkeypatch.setattr(mapped.run_directory, "identity", lambda run: next(identities))
    loading.load(trained_run, shared=True)
    assert [path.name for path in directories(cache)] == [mapped._hash("second")]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_memory_of_a_second_process_does_not_hold_the_table(tmp_path):
    run = tmp_path / "run"
    write_large_run(run, NUM_ITEMS)
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}  # one device
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(Path(ROOT, "tests"))])
    command = [
        sys.executable,
        str(Path(ROOT, "tests", "helpers", "load_large.py")),
        str(run),
        "shared",
    ]

    def growth():
        done = subprocess.run(command, env=environment, capture_output=True, check=True)
        return int(done.stdout)

    growth()  # writes the files
    assert growth() < NUM_ITEMS * WIDTH * 4 / 2
