from dataclasses import replace

import numpy as np
import pytest
from helpers.histories import log_of

from jaxrec.inference.event_scores import event_leads, event_scores, event_shares


def test_unknown_items_and_negative_types_speak_for_nothing(model):
    data = replace(model.config.data, negative_event_types=("buy",))
    own = replace(model, config=replace(model.config, data=data))
    log = log_of([(3, "view", 0), (0, "view", 1), (3, "buy", 2), (4, "view", 3)])
    items = np.asarray(model.index.items.vectors)
    leads = event_leads(own, log, items)
    assert leads.any(1).tolist() == [True, False, False, True]
    np.testing.assert_allclose(leads[[0, 3]], items[[3, 4]] - model.explainer.average_item)


def test_scores_are_decayed_similarities_and_what_events_add():
    events = np.array([[2.0, 0], [0, 1], [-1, 0], [0, 0]])
    leads, added = np.array([[3.0, 0], [3, 4]]), np.array([[0.0, 0], [1, 0], [0, 0], [0, -1]])
    scores = event_scores(events, leads, added, decay=0.5, weight=0.3)
    expected = [[1 / 8, 0.6 / 8], [0.3, 0.8 / 4], [0, 0], [0, -0.3]]
    assert scores == pytest.approx(np.array(expected))
    assert event_scores(events[:0], leads, added[:0]).shape == (0, 2)


def test_shares_are_means_of_scores_of_one_size():
    amounts, scores = np.array([[3.0], [-1], [0]]), np.array([[0.0], [0.1], [0.1]])
    assert event_shares(amounts, scores)[:, 0] == pytest.approx([3 / 8, 1 / 8, 1 / 4])
    assert not event_shares(np.zeros((2, 1)), np.zeros((2, 1))).any()
    assert event_shares(np.zeros((0, 3)), np.zeros((0, 3))).shape == (0, 3)
