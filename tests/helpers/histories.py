"""Histories of single users."""

import numpy as np
import polars as pl

from jaxrec.types import EventLog


def new_user_of_brand(brand, items=(0, 1, 2, 3), later=0):
    """Events of a new user who views items of one brand."""
    return pl.DataFrame(
        {
            "user_id": [f"fan{brand}"] * len(items),
            "item_id": [f"i{10 * brand + item:02}" for item in items],
            "timestamp": [1_704_067_200 + later + 3600 * place for place in range(len(items))],
            "event": ["view"] * len(items),
        }
    )


def with_purchases(events):
    """The same events, every second one a purchase: only these raise `random_neighbours`."""
    is_second = pl.int_range(pl.len()) % 2 == 1
    return events.with_columns(
        event=pl.when(is_second).then(pl.lit("buy")).otherwise(pl.col("event"))
    )


def log_of(*histories, event_types=("view", "buy", "dislike", "like"), has_time=True):
    """A log of histories of (item, event type, time in s)."""
    events = [event for history in histories for event in history]
    return EventLog(
        user_ids=pl.Series([f"u{n}" for n in range(len(histories))]),
        event_type_names=event_types,
        offsets=np.cumsum([0, *map(len, histories)]),
        items=np.array([item for item, _, _ in events], np.int32),
        event_types=np.array(
            [event_types.index(event_type) for _, event_type, _ in events], np.int32
        ),
        times=np.array([time for _, _, time in events], np.int64),
        has_time=has_time,
    )
