import numpy as np
import pytest
from helpers.splits import ITEMS, make_split

from jaxrec.config import EvaluationConfig
from jaxrec.evaluation.baselines import popularity
from jaxrec.evaluation.protocol import Protocol, segment_masks, summary
from jaxrec.evaluation.tables import baseline_lines, results_table
from jaxrec.evaluation.tuned_baselines import fit_baselines
from jaxrec.ranking.adjustments import mask_adjustments
from jaxrec.ranking.item_table import ItemTable
from jaxrec.ranking.top_k import EvalQueries, rank_queries
from jaxrec.types import Queries


@pytest.fixture
def split():
    return make_split()


def evaluate_baselines(split, positives, counts, masks):
    """Test figures by name, without a mask."""
    valid = np.arange(len(ITEMS)) > 0
    protocol = Protocol(split, EvaluationConfig(mask=("none",)), valid, positives, counts)
    queries, fitted = split.test["last"], fit_baselines(protocol).fitted
    return {
        name: protocol.evaluate(protocol.scorer(baseline)(queries), queries, masks)
        for name, baseline in fitted.items()
    }


def test_segments_separate_repeats_new_choices_and_cold_items(split):
    everything = np.ones(len(split.log.items), bool)
    counts = popularity(split.log.items[split.in_training], len(ITEMS))
    np.testing.assert_array_equal(counts, [0, 1, 2, 2, 0])
    masks = segment_masks(split.log, split.test["last"], everything, counts)
    np.testing.assert_array_equal(masks["targets: repeat"], [True, False])
    np.testing.assert_array_equal(masks["targets: novel"], [False, True])
    np.testing.assert_array_equal(masks["users: 1-3 events"], [False, True])
    other = Queries(np.array([1]), np.array([7]))
    assert segment_masks(split.log, other, everything, counts)["items: cold"].all()


def test_only_positive_events_count_as_repeats_and_train_baselines(split):
    """User u chose b twice and bought it the first time."""
    log, queries = split.log, split.test["last"]
    repeats, ndcg = {}, {}
    for event_type in log.event_type_names:
        chosen = log.event_types == log.event_type_names.index(event_type)
        counts = popularity(log.items[split.in_training & chosen], len(ITEMS))
        masks = segment_masks(log, queries, chosen, counts)
        repeats[event_type] = masks["targets: repeat"].tolist()
        results = evaluate_baselines(split, chosen, counts, masks)
        ndcg[event_type] = results["personal_frequency"]["ndcg@10"]
    assert repeats == {"buy": [True, False], "view": [False, False]}
    assert ndcg["buy"] > ndcg["view"]


def test_vectors_of_the_targets_rank_them_first(split):
    queries = split.test["last"]
    items = np.eye(5, dtype=np.float32)
    valid = np.array([False, True, True, True, True])
    answers = items[split.log.items[queries.positions]]
    pairs = mask_adjustments(split.log, queries, ("seen",))
    targets, counts = split.log.items[queries.positions], np.ones(5, np.float32)
    eval_queries = EvalQueries(answers, targets, pairs)
    ranking = rank_queries(eval_queries, ItemTable(items, valid), 10)
    scores = summary(ranking, valid, counts)
    assert scores["ndcg@10"] == 1.0
    np.testing.assert_array_equal(ranking.ranks, [0, 0])


def test_popularity_by_hand(split):
    """Unmasked: b and c lead with 2 events each, a has 1, d 0; both users' targets: b and a."""
    queries, everything = split.test["last"], np.ones(len(split.log.items), bool)
    counts = popularity(split.log.items[split.in_training], len(ITEMS))
    masks = segment_masks(split.log, queries, everything, counts)
    results = evaluate_baselines(split, everything, counts, masks)
    expected = np.mean([1 / np.log2(0.5 + 2), 1 / np.log2(2 + 2)])
    assert results["popularity"]["ndcg@10"] == pytest.approx(expected)
    assert results["personal_frequency"]["recall@5"] == 1.0
    table = results_table({**results, "segments": {}}, "test")
    assert table.row_count == 6


def test_lines_say_what_was_chosen_and_what_is_left_out():
    rated = {"validation": {"ndcg@10": 0.25}}
    point = {"half_life": 3, "popularity_exponent": 0.0}
    lines = baseline_lines(
        {
            "popularity": {"hyperparameters": {}, **rated},
            "cooccurrence": {"hyperparameters": point, **rated},
            "ease": {"left_out": "9 items were chosen, and the limit is 8"},
            "blend": {"baseline": "cooccurrence", "weight": 0.1, **rated},
        }
    )
    assert lines == [
        "cooccurrence: half_life 3, popularity_exponent 0; validation N@10 0.2500",
        "ease: left out, 9 items were chosen, and the limit is 8",
        "blend: model + 0.1 x cooccurrence, standardised scores; validation N@10 0.2500",
    ]
