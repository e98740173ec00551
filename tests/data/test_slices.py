"""Operations on arrays in slices equal those on the whole."""

import numpy as np
import pytest

from jaxrec.data import slices
from jaxrec.data.slices import counts, counts_before, look_up, time_order, user_blocks


@pytest.fixture(autouse=True)
def _small_slices(monkeypatch):
    monkeypatch.setattr(slices, "SLICE", 7)


def test_counts_and_look_ups():
    numbers = np.random.default_rng(0).integers(0, 5, 30)
    np.testing.assert_array_equal(counts(numbers, 6), np.bincount(numbers, minlength=6))
    values = np.array([3, 1, 4, 1, 5], np.float32)
    np.testing.assert_array_equal(look_up(values, numbers), values[numbers])
    assert counts_before(np.array([True, False, True])).tolist() == [0, 1, 1, 2]


@pytest.mark.parametrize("lengths", [[3, 20, 1, 0, 2, 4], [1], [0, 0], [8, 8]])
def test_blocks_hold_every_row_once_and_all_of_a_user_together(lengths):
    users = np.repeat(np.arange(len(lengths)), lengths)
    users = np.random.default_rng(1).permutation(users)
    blocks = list(user_blocks(users, np.array(lengths)))
    np.testing.assert_array_equal(np.sort(np.concatenate(blocks)), np.arange(len(users)))
    held = [set(users[rows]) for rows in blocks]
    assert sum(map(len, held)) == len(set(users))
    for rows in blocks:
        assert (np.diff(rows) > 0).all()
        assert len(rows) <= 7 or len(set(users[rows])) == 1


@pytest.mark.parametrize("largest", [4, 2**62])  # two keys do not fit into one number
@pytest.mark.parametrize("with_ties", [False, True])
def test_rows_are_sorted_by_user_and_time_and_equal_ones_keep_their_order(largest, with_ties):
    random = np.random.default_rng(2)
    users, times = random.integers(0, 4, 40), random.integers(-3, 4, 40) * (largest // 4)
    ties = random.integers(0, 3, 40) if with_ties else None
    keys = (times, users) if ties is None else (ties, times, users)
    np.testing.assert_array_equal(time_order(users, times, ties), np.lexsort(keys))
    assert len(time_order(users[:0], times[:0])) == 0
