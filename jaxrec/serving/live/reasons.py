"""The item of a user's history that a live list names as the reason of each entry."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from jaxrec.inference.catalog_index import unit_rows
from jaxrec.serving.live.state_updater import StateUpdater
from jaxrec.serving.stores.base import UserDocument

DECAY = 0.9  # of a similarity, with each later event


def strongest_items(
    updater: StateUpdater,
    target: str,
    lists: Int[np.ndarray, "U K"],
    documents: Sequence[UserDocument],
) -> Int[np.ndarray, " n"]:
    """The user's kept item that speaks most for every node of all lists; 0 without one.

    It is the most similar one, by the cosine of what sets both apart from the average item, times
    `DECAY` for each later event. `benchmarks/quality/faithfulness.py` measures how often that is
    the item without which the score would fall most.
    """
    vectors, reasons = updater.model.index.host_vectors(target), list[np.ndarray]()
    average = updater.model.explainer.average_item
    for nodes, document in zip(lists, documents, strict=True):
        listed = vectors[nodes[nodes > 0]] - average
        ages: dict[int, int] = {}  # item -> how many events ago
        for age, event in enumerate(reversed(document.events)):
            ages.setdefault(updater.item_number.get(event.item_id, 0), age)
        ages.pop(0, None)
        if not ages:
            reasons.append(np.zeros(len(listed), np.int64))
            continue
        own = np.array(list(ages), np.int64)
        # the lengths of the recommended nodes do not change which item comes first
        alike = listed @ unit_rows(np.asarray(updater.items[own]) - average).T
        weights = DECAY ** np.array(list(ages.values()))
        reasons.append(own[(np.maximum(alike, 0) * weights).argmax(1)])
    return np.concatenate(reasons)
