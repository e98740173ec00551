import numpy as np
import polars as pl
import pytest

from jaxrec.config import EvaluationConfig, SplitConfig
from jaxrec.data.events import build_event_log
from jaxrec.data.splits import Split, split_log
from jaxrec.evaluation.protocol import (
    evaluate,
    evaluate_baselines,
    item_counts,
    segment_masks,
)
from jaxrec.evaluation.tables import results_table
from jaxrec.ranking.adjustments import mask_adjustments, repeat_adjustments
from jaxrec.ranking.item_table import ItemTable
from jaxrec.ranking.top_k import EvalQueries
from jaxrec.types import NEG_INF, Queries

ITEMS = pl.Series([None, "a", "b", "c", "d"], dtype=pl.String)
HISTORIES = {"u": "abcab", "v": "bcda"}
KINDS = {"u": ["view", "buy", "view", "view", "buy"], "v": ["buy", "view", "view", "view"]}


@pytest.fixture
def split() -> Split:
    rows = [
        (user, item, step * 1000, event_type)
        for user, items in HISTORIES.items()
        for step, (item, event_type) in enumerate(zip(items, KINDS[user], strict=True))
    ]
    events = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "event"], orient="row")
    log = build_event_log(events, ITEMS)
    return split_log(log, SplitConfig(scheme="leave_one_out"), np.ones(len(log.items), bool))


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


def test_segments_tell_repeats_novelties_and_cold_items(split):
    everything = np.ones(len(split.log.items), bool)
    counts = item_counts(split.log, split.in_training, len(ITEMS))
    np.testing.assert_array_equal(counts, [0, 1, 2, 2, 0])
    masks = segment_masks(split.log, split.test["last"], everything, counts)
    np.testing.assert_array_equal(masks["targets: repeat"], [True, False])
    np.testing.assert_array_equal(masks["targets: novel"], [False, True])
    np.testing.assert_array_equal(masks["users: 1-3 events"], [False, True])
    other = Queries(np.array([1]), np.array([7]))
    assert segment_masks(split.log, other, everything, counts)["items: cold"].all()


def test_only_choices_make_a_repeat_or_teach_a_baseline(split):
    """The first of u's two b was bought."""
    log, queries = split.log, split.test["last"]
    valid, config = np.array([False, True, True, True, True]), EvaluationConfig(mask=("none",))
    repeats, found = {}, {}
    for event_type in log.event_type_names:
        chosen = log.event_types == log.event_type_names.index(event_type)
        counts = item_counts(log, split.in_training & chosen, len(ITEMS))
        masks = segment_masks(log, queries, chosen, counts)
        repeats[event_type] = masks["targets: repeat"].tolist()
        results = evaluate_baselines(split, queries, config, valid, chosen, counts, masks)
        found[event_type] = results["personal_frequency"]["ndcg@10"]
    assert repeats == {"buy": [True, False], "view": [False, False]}
    assert found["buy"] > found["view"]


def test_a_model_that_knows_the_answer_ranks_it_first(split):
    queries = split.test["last"]
    items = np.eye(5, dtype=np.float32)
    valid = np.array([False, True, True, True, True])
    answers = items[split.log.items[queries.positions]]
    pairs = mask_adjustments(split.log, queries, ("seen",))
    targets, counts = split.log.items[queries.positions], np.ones(5, np.float32)
    eval_queries = EvalQueries(answers, targets, pairs)
    scores, ranking = evaluate(eval_queries, ItemTable(items, valid), counts, 10)
    assert scores["ndcg@10"] == 1.0
    np.testing.assert_array_equal(ranking.ranks, [0, 0])


def test_popularity_by_hand(split):
    """Unmasked: b and c lead with 2 events each, a has 1, d 0; both users' targets: b and a."""
    valid = np.array([False, True, True, True, True])
    config = EvaluationConfig(mask=("none",))
    queries, everything = split.test["last"], np.ones(len(split.log.items), bool)
    counts = item_counts(split.log, split.in_training, len(valid))
    masks = segment_masks(split.log, queries, everything, counts)
    results = evaluate_baselines(split, queries, config, valid, everything, counts, masks)
    expected = np.mean([1 / np.log2(0.5 + 2), 1 / np.log2(2 + 2)])
    assert results["popularity"]["ndcg@10"] == pytest.approx(expected)
    assert results["personal_frequency"]["recall@5"] == 1.0
    table = results_table({**results, "segments": {}}, "test")
    assert table.row_count == 4
