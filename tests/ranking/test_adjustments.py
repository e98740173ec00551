import numpy as np
import pytest
from helpers.splits import ITEMS, make_split

from jaxrec.ranking import adjustments
from jaxrec.ranking.adjustments import (
    ScoreAdjustments,
    as_blocks,
    mask_adjustments,
    repeat_adjustments,
    scale,
)
from jaxrec.types import NEG_INF, Queries


def test_scaled_adjustments_keep_masks():
    blocks = as_blocks(
        ScoreAdjustments(np.array([0, 1, 1]), np.array([4, 5, 6]), np.float32([2, NEG_INF, -1]))
    )
    result = scale(blocks, 0.1)(1, 2)
    assert result.rows.tolist() == [0, 0]
    np.testing.assert_allclose(result.amounts, [NEG_INF, -0.1])


@pytest.fixture
def split():
    return make_split()


def masked(split, mask):
    rows, items, amounts = mask_adjustments(split.log, split.test["last"], mask)(0, 2)
    assert (amounts == NEG_INF).all()
    return {(int(row), ITEMS[int(item)]) for row, item in zip(rows, items, strict=True)}


def test_masks_cover_exactly_the_history(split):
    seen = {(0, "a"), (0, "b"), (0, "c"), (1, "b"), (1, "c"), (1, "d")}
    assert masked(split, ("seen",)) == seen
    assert masked(split, ("none",)) == set()
    assert masked(split, ("buy",)) == {(0, "b"), (1, "b")}
    with pytest.raises(ValueError, match="cart"):
        mask_adjustments(split.log, split.test["last"], ("cart",))


def test_the_target_is_never_masked(split):
    queries = split.test["last"]
    targets = np.array([ITEMS.to_list().index(item) for item in ("b", "a")])
    rows, items, _ = mask_adjustments(split.log, queries, ("seen",), targets)(0, 2)
    result = {(int(row), ITEMS[int(item)]) for row, item in zip(rows, items, strict=True)}
    assert result == masked(split, ("seen",)) - {(0, "b")}
    rows, items, _ = mask_adjustments(split.log, queries, ("seen",), targets)(1, 2)
    assert set(rows) == {0} and len(items) == 3


def test_repeat_bias_depends_on_event_type_and_age(split):
    """The second of the five events of u is a buy, two events before the last of the history."""
    view, buy = (split.log.event_type_names.index(event_type) for event_type in ("view", "buy"))
    repeat_bias = np.zeros((2, 3), np.float32)
    repeat_bias[view], repeat_bias[buy] = [1, 2, 3], [10, 20, 30]
    rows, items, amounts = repeat_adjustments(split.log, split.test["last"], repeat_bias)(0, 2)
    biases = [
        (int(row), ITEMS[int(item)], float(amount))
        for row, item, amount in zip(rows, items, amounts, strict=True)
    ]
    of_u = [(0, "b", 30), (0, "c", 2), (0, "a", 1)]
    of_v = [(1, "b", 30), (1, "c", 2), (1, "d", 1)]
    assert biases == of_u + of_v
    second = repeat_adjustments(split.log, split.test["last"], repeat_bias)(1, 2)
    assert second.rows.tolist() == [0, 0, 0]
    untrained = repeat_adjustments(split.log, split.test["last"], np.zeros((2, 3), np.float32))
    assert not len(untrained(0, 2).rows)


@pytest.mark.parametrize("mask", [("seen",), ("buy",), ("none",)])
def test_long_histories_mask_each_item_once(split, mask, monkeypatch):
    """One user's long history behind many queries takes no more entries than scores."""
    log = split.log
    users = np.array([1, 0, 0, 0, 1])
    queries = Queries(users, log.offsets[users] + np.array([4, 0, 3, 5, 2]))
    targets = np.array([1, 0, 2, 3, 2])
    plain = mask_adjustments(log, queries, mask, targets)
    blocks = [plain(0, 5), plain(2, 4)]
    monkeypatch.setattr(adjustments, "MAX_EVENTS", 0)
    distinct = mask_adjustments(log, queries, mask, targets)
    for expected, result in zip(blocks, [distinct(0, 5), distinct(2, 4)], strict=True):
        pairs = list(zip(result.rows.tolist(), result.items.tolist(), strict=True))
        assert set(pairs) == set(zip(expected.rows.tolist(), expected.items.tolist(), strict=True))
        assert len(set(pairs)) == len(pairs)
        assert (np.diff(result.rows) >= 0).all()
