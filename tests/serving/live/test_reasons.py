import numpy as np
import pytest
from helpers.live import event

from jaxrec.inference.event_scores import ADDED, DECAY
from jaxrec.ranking.history_bias import HistoryBias, ItemNeighbours
from jaxrec.serving.live.reasons import NEWEST, strongest_items
from jaxrec.serving.stores.base import UserDocument

SHOWN = ["i00", "i30", "i01", "i12"]


@pytest.fixture
def silent(engine):
    """A history bias that adds nothing."""
    return HistoryBias(np.zeros((len(engine.updater.event_type_number), 1), np.float32))


def document_of(items):
    return UserDocument("gus", events=tuple(event(n, item) for n, item in enumerate(items)))


def similarities(engine, item):
    """Decayed cosines of an item and the shown ones."""
    number, model = engine.updater.item_number, engine.trained
    leads = np.asarray(model.index.items.vectors) - model.explainer.average_item
    leads /= np.maximum(np.linalg.norm(leads, axis=1, keepdims=True), 1e-12)
    return {
        number[own]: max(float(leads[item] @ leads[number[own]]), 0) * DECAY ** (3 - place)
        for place, own in enumerate(SHOWN)
    }


def test_the_reason_is_similar_and_recent(engine, silent):
    number = engine.updater.item_number
    lists = np.array([[number["i02"], number["i35"], 0]])
    found = strongest_items(engine.updater, "item", lists, [document_of(SHOWN)], silent)
    for item, reason in zip(lists[0, :2], found, strict=True):
        weights = similarities(engine, item)
        assert reason == max(weights, key=weights.get)


def test_an_item_that_raised_the_score_is_the_reason(engine, silent):
    number = engine.updater.item_number
    listed, weights = number["i02"], similarities(engine, number["i02"])
    weakest = min(weights, key=weights.get)
    age = 3 - list(weights).index(weakest)
    lead = max(weights.values()) - weights[weakest]
    types = np.ones(len(engine.updater.event_type_number), bool)
    items = np.zeros((len(number) + 1, 1), np.int32)
    items[weakest] = listed
    for excess, is_reason in ((0.01, True), (-0.01, False)):
        amounts = np.full((len(items), 1), (lead + excess) / ADDED * 2**age, np.float32)
        bias = HistoryBias(silent.repeats, {"x": ItemNeighbours(items, amounts, 1.0, types)})
        lists = np.array([[listed]])
        [found] = strongest_items(engine.updater, "item", lists, [document_of(SHOWN)], bias)
        assert (found == weakest) == is_reason
        # a brand of the same number is not the item
        with_bias = strongest_items(engine.updater, "brand", lists, [document_of(SHOWN)], bias)
        without = strongest_items(engine.updater, "brand", lists, [document_of(SHOWN)], silent)
        assert with_bias == without


def test_only_the_newest_events_are_read(engine, silent):
    lists = np.array([[engine.updater.item_number["i31"]]])
    old = document_of(["i31"] + ["unknown"] * NEWEST)
    assert strongest_items(engine.updater, "item", lists, [old], silent) == [0]
    assert strongest_items(engine.updater, "item", lists, [document_of(["i31"])], silent) == lists


def test_a_user_without_events_has_no_reason(engine, silent):
    lists = np.array([[1, 2, 0], [3, 0, 0]])
    documents = [UserDocument("a"), UserDocument("b", events=(event(0, "unknown"),))]
    found = strongest_items(engine.updater, "item", lists, documents, silent)
    assert found.tolist() == [0, 0, 0]
