"""Two histories, split into training, validation and test."""

import numpy as np
import polars as pl

from jaxrec.config import SplitConfig
from jaxrec.data.events import build_event_log
from jaxrec.data.splits import Split, split_log

ITEMS = pl.Series([None, "a", "b", "c", "d"], dtype=pl.String)
HISTORIES = {"u": "abcab", "v": "bcda"}
EVENT_TYPES = {"u": ["view", "buy", "view", "view", "buy"], "v": ["buy", "view", "view", "view"]}


def make_split() -> Split:
    rows = [
        (user, item, step * 1000, event_type)
        for user, items in HISTORIES.items()
        for step, (item, event_type) in enumerate(zip(items, EVENT_TYPES[user], strict=True))
    ]
    events = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "event"], orient="row")
    log = build_event_log(events, ITEMS)
    return split_log(log, SplitConfig(scheme="leave_one_out"), np.ones(len(log.items), bool))
