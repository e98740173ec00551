"""The item of a user's history that a live list names as the reason of each entry."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from jaxrec.data.graph import ITEM
from jaxrec.inference.event_scores import event_leads, event_scores
from jaxrec.ranking.history_bias import HistoryBias
from jaxrec.serving.live.state_updater import StateUpdater
from jaxrec.serving.stores.base import UserDocument

NEWEST = 128  # events that are read; older similarities would weigh less than .0015


def strongest_items(
    updater: StateUpdater,
    target: str,
    lists: Int[np.ndarray, "U K"],
    documents: Sequence[UserDocument],
    bias: HistoryBias,
) -> Int[np.ndarray, " n"]:
    """The user's recent item that speaks most for every node of all lists; 0 without one.

    It is the item of the event with the largest `event_scores`; events of negative types, such as
    a return, are no reason.

    Args:
        bias: what events add to the scores of items.
    """
    model, reasons = updater.model, list[np.ndarray]()
    vectors, average = model.index.host_vectors(target), model.explainer.average_item
    for nodes, document in zip(lists, documents, strict=True):
        listed = nodes[nodes > 0]
        log = updater.event_log([document.events[-NEWEST:]])
        events = event_leads(model, log, updater.items)
        speaks = events.any(1)
        if not speaks.any():
            reasons.append(np.zeros(len(listed), np.int64))
            continue
        is_item = target == ITEM
        added = bias.of_events(log, listed) if is_item else np.zeros((len(events), len(listed)))
        scores = event_scores(events, vectors[listed] - average, added)[speaks]
        reasons.append(log.items[speaks][scores.argmax(0)])
    return np.concatenate(reasons)
