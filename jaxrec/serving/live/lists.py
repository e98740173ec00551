"""What live users ask for and what they get."""

from dataclasses import dataclass
from typing import NamedTuple

import polars as pl

from jaxrec.data.graph import ITEM

ITEM_SCHEMA = pl.Schema(
    {
        "rank": pl.Int32(),
        "id": pl.String(),
        "score": pl.Float32(),
        "title": pl.String(),
        "because": pl.String(),
        "rules": pl.List(pl.String()),
        "propensity": pl.Float64(),
    }
)


class RecommendedItem(NamedTuple):
    """One entry of a list."""

    rank: int
    id: str
    score: float
    title: str | None
    because: str | None  # the user's item that speaks most for it, by a cheap score
    rules: list[str]  # the steps that changed its score or place
    propensity: float  # probability of this item at this rank, given the items above


@dataclass(frozen=True)
class RecommendationList:
    """A list of recommendations, and the state behind it."""

    user_id: str
    target: str
    items: list[RecommendedItem]
    events: int  # events that the state has seen
    approximate: bool  # the state lacks events from before the model was replaced

    @property
    def table(self) -> pl.DataFrame:
        """The items as a table, in which `id` is named `item_id` or after the target."""
        name = "item_id" if self.target == ITEM else self.target
        return pl.DataFrame(self.items, ITEM_SCHEMA, orient="row").rename({"id": name})


class ListRequest(NamedTuple):
    """What to recommend.

    Attributes:
        target: any node type of the graph, such as `brand`, in place of items.
        where: a condition on the items, ahead of the strategy.
        mask: what of a user's own events to leave out; empty: as in the run's evaluation.
        event_type: the event type to predict; empty: the run's.
        words: what the users search for; empty: nothing.
        strength: the share of the words in the scores, from 0 to 1; see `WordSearch.steer`.
    """

    k: int = 10
    target: str = ITEM
    where: str = ""
    mask: tuple[str, ...] = ()
    event_type: str = ""
    words: str = ""
    strength: float = 0.5
