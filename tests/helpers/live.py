"""Live events, and a comparison with batch scoring."""

from dataclasses import replace

import numpy as np
import polars as pl

from jaxrec.serving.live.engine import time_of_deletion
from jaxrec.serving.live.item_recorder import ItemChange
from jaxrec.serving.stores.base import LiveEvent

START = 1_704_067_200
DAY = 86_400


def rescaled(model):
    """Another model with the same catalogue."""
    return replace(model, index=replace(model.index, vectors=model.index.vectors * 1.5))


def event(time, item="i01", event_type="view", event_id=None):
    return LiveEvent(START + time, item, event_type, event_id)


def delete(engine, user_id):
    return engine.store.delete(user_id, time_of_deletion(engine.model.config))


def change(recorder, operation, items):
    """The outcomes of one change of items; raises why it was not made."""
    [outcomes] = recorder.record([ItemChange(operation, items)])
    if isinstance(outcomes, Exception):
        raise outcomes
    return outcomes


def table(user_events):
    return pl.DataFrame(
        {
            "user_id": [r.user_id for r in user_events],
            "item_id": [r.event.item_id for r in user_events],
            "event": [r.event.event_type for r in user_events],
            "timestamp": [r.event.time for r in user_events],
        }
    )


def assert_as_in_batch(engine, user_events):
    """Compare states and lists of all users with batch scoring of the same events."""
    model = engine.model
    log = model.encoder.event_log(table(user_events))
    expected = model.encoder.states(log)
    documents = engine.store.load(log.user_ids.to_list()).documents
    for user, state in zip(log.user_ids, expected, strict=True):
        np.testing.assert_allclose(documents[user].state, state, atol=1e-5)
    lists = model.recommend(table(user_events), k=5)
    for live_list in engine.recommend(log.user_ids.to_list(), k=5):
        expected_list = lists.filter(pl.col("user_id") == live_list.user_id).drop("user_id")
        np.testing.assert_allclose(live_list.table["score"], expected_list["score"], atol=1e-4)
        assert live_list.table["item_id"].to_list() == expected_list["item_id"].to_list()
        assert not live_list.approximate
