import numpy as np
import pytest

from jaxrec.inference.history_rows import batches, in_rows


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_histories_stay_whole_in_rows_of_similar_length(rows):
    lengths = np.array([9, 5, 5, 4, 1, 1, 0])
    ends = 10 + np.cumsum(lengths)
    packed = in_rows(ends - lengths, ends, rows)
    slots = packed.slots(rows, slice(0, lengths.sum()))
    used = slots >= 0
    np.testing.assert_array_equal(used.sum(1), packed.lengths)
    assert not np.any(used[:, 1:] & ~used[:, :-1])
    assert not np.any(np.diff(packed.lengths) > 0)
    numbers, owners = packed.numbers[slots[used]], packed.histories[slots[used]]
    histories = np.split(numbers, np.flatnonzero(np.diff(owners)) + 1)
    expected = [np.arange(end - n, end) for n, end in zip(lengths, ends, strict=True) if n]
    assert sorted(map(list, histories)) == sorted(map(list, expected))
    assert used.any(0).sum() == {1: lengths.sum(), 3: 10, 8: 9}[rows]


@pytest.mark.parametrize("rows", [1, 8, 512])
def test_slots_stay_in_proportion_to_events_beside_one_long_history(rows):
    lengths = np.array([200_000, *[40] * (rows - 1)])
    seen, slots, shapes = np.zeros(rows, int), 0, set()
    for width, steps in batches(lengths):
        shape = width, steps.stop - steps.start
        shapes.add(shape)
        slots += shape[0] * shape[1]
        seen[:width] += np.clip(lengths[:width] - steps.start, 0, shape[1])
    np.testing.assert_array_equal(seen, lengths)
    assert slots <= 9 * lengths.sum()
    assert len(shapes) <= 4
    assert len(list(batches(np.array([60, 50, 1])))) == 15
