"""Live events, and a comparison with batch scoring."""

from dataclasses import replace

import jax
import numpy as np
import polars as pl

from jaxrec.serving.stores.base import LiveEvent

START = 1_704_067_200
DAY = 86_400


def rescaled(model):
    """Another model over the same catalogue."""
    return replace(model, index=replace(model.index, vectors=model.index.vectors * 1.5))


def event(time, item="i01", event_type="view", event_id=None):
    return LiveEvent(START + time, item, event_type, event_id)


def table(user_events):
    return pl.DataFrame(
        {
            "user_id": [r.user_id for r in user_events],
            "item_id": [r.event.item_id for r in user_events],
            "event": [r.event.event_type for r in user_events],
            "timestamp": [r.event.time for r in user_events],
        }
    )


def assert_as_in_batch(online, user_events):
    """States and lists of all users equal those of batch scoring over the same events."""
    model = online.model
    log = model.encoder.event_log(table(user_events))
    expected = np.concatenate(
        [
            np.asarray(leaf).reshape(log.num_users, -1)
            for leaf in jax.tree.leaves(model.encoder.states(log))
        ],
        axis=1,
    )
    documents = online.store.load(log.user_ids.to_list())
    for user, state in zip(log.user_ids, expected, strict=True):
        np.testing.assert_allclose(documents[user].state, state, atol=1e-5)
    lists = model.recommend(table(user_events), k=5)
    answers = online.recommend(log.user_ids.to_list(), k=5)
    for answer in answers:
        theirs = lists.filter(pl.col("user_id") == answer.user_id).drop("user_id")
        np.testing.assert_allclose(answer.table["score"], theirs["score"], atol=1e-4)
        assert answer.table["item_id"].to_list() == theirs["item_id"].to_list()
        assert not answer.approximate
