import numpy as np
from helpers.live import event

from jaxrec.serving.live.reasons import DECAY, strongest_items
from jaxrec.serving.stores.base import UserDocument


def test_the_reason_is_similar_and_recent(engine):
    number, model = engine.updater.item_number, engine.trained
    shown = ["i00", "i30", "i01", "i12"]
    document = UserDocument("gus", events=tuple(event(n, item) for n, item in enumerate(shown)))
    lists = np.array([[number["i02"], number["i35"], 0]])
    found = strongest_items(engine.updater, "item", lists, [document])
    leads = np.asarray(model.index.items.vectors) - model.explainer.average_item
    leads /= np.maximum(np.linalg.norm(leads, axis=1, keepdims=True), 1e-12)
    for item, reason in zip(lists[0, :2], found, strict=True):
        weights = {
            number[own]: max(float(leads[item] @ leads[number[own]]), 0) * DECAY ** (3 - place)
            for place, own in enumerate(shown)
        }
        assert reason == max(weights, key=weights.get)


def test_a_user_without_events_has_no_reason(engine):
    lists = np.array([[1, 2, 0], [3, 0, 0]])
    documents = [UserDocument("a"), UserDocument("b", events=(event(0, "unknown"),))]
    assert strongest_items(engine.updater, "item", lists, documents).tolist() == [0, 0, 0]
