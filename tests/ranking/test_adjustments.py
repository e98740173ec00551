import numpy as np
import pytest
from helpers.splits import ITEMS, make_split

from jaxrec.ranking.adjustments import (
    ScoreAdjustments,
    as_blocks,
    mask_adjustments,
    repeat_adjustments,
    scale,
)
from jaxrec.types import NEG_INF


def test_scaled_pairs_leave_out_what_they_did():
    pairs = as_blocks(
        ScoreAdjustments(np.array([0, 1, 1]), np.array([4, 5, 6]), np.float32([2, NEG_INF, -1]))
    )
    found = scale(pairs, 0.1)(1, 2)
    assert found.rows.tolist() == [0, 0]
    np.testing.assert_allclose(found.amounts, [NEG_INF, -0.1])


@pytest.fixture
def split():
    return make_split()


def masked(split, mask):
    rows, items, amounts = mask_adjustments(split.log, split.test["last"], mask)(0, 2)
    assert (amounts == NEG_INF).all()
    return {(int(row), ITEMS[int(item)]) for row, item in zip(rows, items, strict=True)}


def test_masks_hold_the_history_and_no_more(split):
    seen = {(0, "a"), (0, "b"), (0, "c"), (1, "b"), (1, "c"), (1, "d")}
    assert masked(split, ("seen",)) == seen
    assert masked(split, ("none",)) == set()
    assert masked(split, ("buy",)) == {(0, "b"), (1, "b")}
    with pytest.raises(ValueError, match="cart"):
        mask_adjustments(split.log, split.test["last"], ("cart",))


def test_a_mask_spares_the_target(split):
    queries = split.test["last"]
    spared = np.array([ITEMS.to_list().index(item) for item in ("b", "a")])
    rows, items, _ = mask_adjustments(split.log, queries, ("seen",), spared)(0, 2)
    found = {(int(row), ITEMS[int(item)]) for row, item in zip(rows, items, strict=True)}
    assert found == masked(split, ("seen",)) - {(0, "b")}
    rows, items, _ = mask_adjustments(split.log, queries, ("seen",), spared)(1, 2)
    assert set(rows) == {0} and len(items) == 3


def test_events_add_to_their_items_by_kind_and_age(split):
    """The second of u's five events is 2 before the last of the history, and of event_type buy."""
    view, buy = (split.log.event_type_names.index(event_type) for event_type in ("view", "buy"))
    repeat_bias = np.zeros((2, 3), np.float32)
    repeat_bias[view], repeat_bias[buy] = [1, 2, 3], [10, 20, 30]
    rows, items, amounts = repeat_adjustments(split.log, split.test["last"], repeat_bias)(0, 2)
    found = [
        (int(row), ITEMS[int(item)], float(amount))
        for row, item, amount in zip(rows, items, amounts, strict=True)
    ]
    assert found == [(0, "b", 30), (0, "c", 2), (0, "a", 1), (1, "b", 30), (1, "c", 2), (1, "d", 1)]
    second = repeat_adjustments(split.log, split.test["last"], repeat_bias)(1, 2)
    assert second.rows.tolist() == [0, 0, 0]
    untrained = repeat_adjustments(split.log, split.test["last"], np.zeros((2, 3), np.float32))
    assert not len(untrained(0, 2).rows)
