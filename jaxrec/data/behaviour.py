"""What users did, as text."""

import numpy as np
import polars as pl

from jaxrec.data.events import position_in_history, some_events, user_of_event
from jaxrec.data.text import MAX_CHARACTERS
from jaxrec.types import EventLog

PAST_TENSE = {
    "event": "chose",  # of events without a type
    "view": "viewed",
    "click": "clicked",
    "cart": "added to cart",
    "remove": "removed from cart",
    "favourite": "saved",
    "buy": "bought",
    "review": "reviewed",
    "rating": "rated",
    "like": "liked",
    "dislike": "disliked",
    "hide": "hid",
    "share": "shared",
    "cancel": "cancelled",
    "return": "returned",
}
IMPRESSION = "impression"  # which is no action of the user


def behaviour_texts(log: EventLog, labels: pl.Series, last: int) -> list[str]:
    """The newest events of every user as text, the newest last.

    An example is "viewed Red lipstick; bought Nail file". Impressions and events of unknown items
    are left out. An event type that has no past tense here stays as it is.

    Args:
        labels: title or id of each item, in index order.
        last: the most events of a user.

    Returns:
        One text for each user; empty without events.
    """
    names = pl.Series(log.event_type_names, dtype=pl.String)
    is_action = (names != IMPRESSION).to_numpy()
    actions = some_events(log, (log.items > 0) & is_action[log.event_types])
    ages = np.repeat(actions.lengths, actions.lengths) - position_in_history(actions)
    newest = some_events(actions, ages <= last)
    verbs = names.replace(PAST_TENSE).str.replace_all("_", " ").gather(newest.event_types)
    titles = labels.gather(newest.items).str.slice(0, MAX_CHARACTERS)
    events = pl.DataFrame({"user": user_of_event(newest), "text": verbs + " " + titles})
    texts = [""] * log.num_users
    for user, text in events.group_by("user").agg(pl.col("text").str.join("; ")).iter_rows():
        texts[user] = text
    return texts
