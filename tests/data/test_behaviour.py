"""What users did, as text."""

import polars as pl
from helpers.histories import log_of

from jaxrec.data.behaviour import behaviour_texts

LABELS = pl.Series(["unknown item", "Red lipstick", "Nail file", "i3"])


def test_events_are_written_in_the_past_tense_the_newest_last():
    log = log_of(
        [(1, "view", 0), (2, "buy", 60), (3, "dislike", 120)],
        [(2, "like", 0)],
    )
    assert behaviour_texts(log, LABELS, 10) == [
        "viewed Red lipstick; bought Nail file; disliked i3",
        "liked Nail file",
    ]


def test_only_the_newest_events_are_written():
    log = log_of([(1, "view", 0), (2, "buy", 60), (3, "view", 120)], [(1, "buy", 0)])
    assert behaviour_texts(log, LABELS, 2) == ["bought Nail file; viewed i3", "bought Red lipstick"]


def test_unknown_items_and_impressions_are_left_out_and_take_no_place():
    events = [(1, "view", 0), (0, "view", 1), (2, "impression", 2), (3, "add_to_list", 3)]
    log = log_of(events, [(0, "view", 0)], [], event_types=("add_to_list", "impression", "view"))
    texts = behaviour_texts(log, LABELS, 2)
    assert texts == ["viewed Red lipstick; add to list i3", "", ""]
