"""Lists of ids and the correction for popularity."""

import gzip
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from jaxrec.errors import DataError
from jaxrec.ranking.filters import is_listed, listed_ids, popularity_bias

ITEM_IDS = pl.Series([None, "a", "b", "c"])


def test_an_item_is_listed_by_its_id_and_without_an_id_never():
    listed = pl.Series(["c", "a", "a", "elsewhere"])

    np.testing.assert_array_equal(is_listed(ITEM_IDS, listed), [False, True, False, True])


def test_an_empty_list_of_ids_selects_nothing():
    nothing = listed_ids(())

    assert not is_listed(ITEM_IDS, nothing).any()


def test_ids_are_read_from_a_file_as_text(tmp_path):
    file = tmp_path / "ids.csv"
    file.write_text("item_id,note\n007,x\n12,y\n")

    assert listed_ids(file).to_list() == ["007", "12"]
    assert listed_ids(str(file)).to_list() == ["007", "12"]


@pytest.mark.parametrize("source", [("007", "b"), ["007", "b"]])
def test_ids_are_taken_from_a_sequence(source):
    assert listed_ids(source).to_list() == ["007", "b"]


@pytest.mark.parametrize("source", [Path("B001"), "B001"])
def test_a_word_that_names_no_file_is_an_id(source):
    assert listed_ids(source).to_list() == ["B001"]


def test_lists_in_a_directory_compressed_or_with_blank_lines(tmp_path):
    text = "# today\nitem_id\n007\n12\n\n"
    (tmp_path / "ids.csv.gz").write_bytes(gzip.compress(text.encode()))
    for source in (tmp_path, tmp_path / "ids.csv.gz"):
        assert listed_ids(source).to_list() == ["007", "12"]


def test_lists_of_ids_that_cannot_be_used_are_refused(tmp_path):
    unnamed = tmp_path / "ids.csv"
    unnamed.write_text("id\n1\n")
    without_ending = tmp_path / "ids"
    without_ending.write_text("item_id\n1\n")

    with pytest.raises(DataError, match=r"ids\.csv: no column 'item_id'"):
        listed_ids(unnamed)
    with pytest.raises(DataError, match="unknown file format"):
        listed_ids(without_ending)
    with pytest.raises(DataError, match="no such file"):
        listed_ids(tmp_path / "missing.csv.gz")
    with pytest.raises(DataError, match="null or empty"):
        listed_ids(("a", ""))


def test_popularity_bias_at_strength_one_is_the_negative_log_of_popularity():
    counts = np.array([0, 1, 3, 4])

    bias = popularity_bias(counts, 1.0)

    assert bias.dtype == np.float32
    np.testing.assert_allclose(bias, -np.log([1 / 3, 2 / 3, 4 / 3, 5 / 3]), rtol=1e-6)
    np.testing.assert_allclose(popularity_bias(counts, 0.5), bias / 2, rtol=1e-6)


def test_popularity_bias_vanishes_at_strength_zero_and_for_equal_counts():
    np.testing.assert_array_equal(popularity_bias(np.array([0, 9, 2]), 0.0), np.zeros(3))
    np.testing.assert_array_equal(popularity_bias(np.full(3, 7), 2.0), np.zeros(3))


def test_a_text_that_is_too_long_for_a_file_name_is_an_id():
    assert listed_ids("i" * 5000).to_list() == ["i" * 5000]


def test_half_a_surrogate_pair_is_no_id():
    for source in ("i\udc81", ["i1", "i\udc81"]):
        with pytest.raises(DataError, match="give ids as text"):
            listed_ids(source)
