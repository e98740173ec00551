"""A data set that processes share is read as it was written, by mapping."""

from dataclasses import fields, replace

import jax
import numpy as np
import polars as pl
import pytest
from helpers.training import config
from polars.testing import assert_frame_equal, assert_series_equal

from jaxrec.data.dataset import Dataset, prepare
from jaxrec.data.prepared import prepared_by_first
from jaxrec.data.shared_files import SharedFiles
from jaxrec.training.batches import make_packing
from jaxrec.types import EventLog


def assert_same(left, right) -> None:
    """Of data sets and their parts, array by array."""
    assert type(left) is type(right)
    match left:
        case np.ndarray():
            np.testing.assert_array_equal(left, right)
            assert left.dtype == right.dtype
        case pl.Series():
            assert_series_equal(left, right, check_names=False)
        case pl.DataFrame():
            assert_frame_equal(left, right)
        case dict():
            assert left.keys() == right.keys()
            for name, value in left.items():
                assert_same(value, right[name])
        case tuple():
            assert len(left) == len(right)
            for value, other in zip(left, right, strict=True):
                assert_same(value, other)
        case _ if hasattr(left, "__dataclass_fields__"):
            for field in fields(left):
                assert_same(getattr(left, field.name), getattr(right, field.name))
        case _:
            assert left == right


@pytest.fixture(params=["global_time", "leave_one_out"])
def options(request):
    return config(**{"split.scheme": request.param})


@pytest.fixture
def dataset(options, tables) -> Dataset:
    return prepare(options, tables)


@pytest.fixture
def mapped(dataset, tmp_path) -> Dataset:
    return prepared_by_first(lambda: dataset, SharedFiles(tmp_path / "shared"))


def test_a_mapped_data_set_is_the_one_that_was_prepared(dataset, mapped):
    assert_same(replace(mapped, files=dataset.files), dataset)


def test_arrays_of_events_are_mapped(mapped):
    log: EventLog = mapped.split.log
    for values in (log.items, log.event_types, log.times, log.offsets, mapped.target_weights):
        assert isinstance(values.base, np.memmap)
        assert not values.flags.writeable


def test_mapped_batches_are_those_of_the_data_set(options, dataset, mapped):
    packing, other = make_packing(options, dataset), make_packing(options, mapped)
    assert isinstance(other.packed.starts.base, np.memmap)
    assert packing.steps_per_epoch == other.steps_per_epoch > 1
    for step in range(packing.steps_per_epoch):
        jax.tree.map(np.testing.assert_array_equal, packing.batch(1, step), other.batch(1, step))


def test_without_a_directory_nothing_is_written(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert prepared_by_first(lambda: dataset, SharedFiles()) is dataset
    assert not list(tmp_path.iterdir())
