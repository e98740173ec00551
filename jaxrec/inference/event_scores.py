"""How strongly the events of a history speak for items: cheap scores, and shares of all reasons."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Array, Float

from jaxrec.inference.catalog_index import unit_rows
from jaxrec.types import EventLog

if TYPE_CHECKING:
    from jaxrec.inference.model_core import ModelCore  # whose methods call this

DECAY = 0.95  # of a similarity, with each later event
ADDED = 0.3  # weight of what an event adds to the score of an item by itself


def event_leads(
    model: "ModelCore", log: EventLog, items: Float[Array | np.ndarray, "I F"]
) -> Float[np.ndarray, "M F"]:
    """What sets the item of each event apart from the average one.

    It is 0 for events that speak for no item: of the unknown item, or of a negative type such as a
    return.

    Args:
        items: the vectors of all items.
    """
    negative = model.config.data.negative_event_types
    is_positive = np.array([name not in negative for name in log.event_type_names])
    speaks = (log.items > 0) & is_positive[log.event_types]
    leads = np.asarray(items[log.items]) - model.explainer.average_item
    return np.where(speaks[:, None], leads, 0)


def event_scores(
    events: Float[np.ndarray, "M F"],
    leads: Float[np.ndarray, "K F"],
    added: Float[np.ndarray, "M K"],
    *,
    decay: float = DECAY,
    weight: float = ADDED,
) -> Float[np.ndarray, "M K"]:
    """How strongly each event speaks for each item, without a model that reads the history.

    A similarity is the cosine of what sets both items apart from the average one, at least 0.
    `benchmarks/quality/faithfulness.py` compares the decays and weights.

    Args:
        events: `event_leads` of a user, the newest last.
        leads: vectors of the items less the average one.
        added: what each event adds to the score of each item; see `HistoryBias.of_events`.
    """
    similar = unit_rows(events) @ unit_rows(leads).T
    ages = np.arange(len(events))[::-1, None]
    return np.maximum(similar, 0) * decay**ages + weight * added


def event_shares(*scores: Float[np.ndarray, "M K"]) -> Float[np.ndarray, "M K"]:
    """The share of each event in what speaks for or against an item: the mean over several scores,
    each divided by the sum of its absolute values over the events."""
    shares = [part / np.maximum(np.abs(part).sum(0), 1e-12) for part in scores]
    return np.mean(shares, 0)
