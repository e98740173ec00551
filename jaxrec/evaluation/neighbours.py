"""Item neighbours with a strength and a half-life that validation chooses."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxrec.ranking.history_bias import ItemNeighbours

MOST_NEIGHBOURS = 20  # of an item; on Amazon Beauty, 50 that came after it rank no better


@dataclass(frozen=True)
class NeighbourFit:
    """How item neighbours raise scores.

    Attributes:
        half_life: of what an event adds, in events of the user.
        popularity_exponent: as in `cooccurrence.GRID`; texts have none.
        strength: what the newest event adds to the score of its strongest neighbour, as a mean over
            the items.
    """

    half_life: float = 1.0
    popularity_exponent: float = 0.0
    strength: float = 0.0


@dataclass(frozen=True)
class NeighbourTable:
    """The most related items of every item, the strongest first; 0 fills rows that are too short.

    Attributes:
        amounts: how strongly they are related, in any unit.
    """

    items: Int[np.ndarray, "I M"]
    amounts: Float[np.ndarray, "I M"]

    def fitted(self, fit: NeighbourFit, event_types: Bool[np.ndarray, " types"]) -> ItemNeighbours:
        """What a model adds to its scores.

        Args:
            event_types: True for the event types whose events count.
        """
        largest = self.amounts[:, 0]
        scale = fit.strength / largest[largest > 0].mean() if largest.any() else 0
        amounts = (scale * self.amounts).astype(np.float32)
        return ItemNeighbours(self.items, amounts, fit.half_life, event_types)
