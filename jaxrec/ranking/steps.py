"""The steps of a strategy: each changes scores, user vectors or the order of ranked lists.

A YAML file lists the steps in the order in which they act; see `jaxrec.ranking.strategy`:

    - feedback: {neighbours: 2}
    - where: stock > 0
    - boost: {where: "brand = 'Acme'", by: 0.5}
    - caps: {brand: 2}

Steps that change vectors or scores come first and act on all items. The steps after them reorder
the best items. Letters: Q queries, P places of a list before a step, K places after it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int

from jaxrec.data.events import last_sessions, user_of_event
from jaxrec.errors import ConfigError, DataError
from jaxrec.ranking.conditions import where
from jaxrec.ranking.context import ItemContext, RankedLists, ReorderedLists, RerankContext, Step
from jaxrec.ranking.filters import is_listed, listed_ids, popularity_bias, shown
from jaxrec.ranking.option_types import Typed
from jaxrec.ranking.reorder import (
    compact,
    diversify,
    epsilon_greedy,
    explore,
    is_in_row,
    take,
    within_caps,
)
from jaxrec.types import Catalog, EventLog

MINUTE, DAY = 60, 86_400  # seconds


@dataclass(frozen=True)
class Where(Typed):
    """Recommend only items whose columns satisfy an SQL condition; see `conditions.where`."""

    name: ClassVar[str] = "where"
    condition: str

    def bias(self, items: ItemContext) -> Float[np.ndarray, " I"]:
        """See `Scoring`."""
        return _bias_of_filter(items, where(items.catalog.items, self.condition))


@dataclass(frozen=True)
class ListedItems:
    """Base of the steps that name items: a file with a column item_id, or ids."""

    name: ClassVar[str]
    may_be_empty: ClassVar[bool] = False
    items: Path | str | Sequence[str | int]

    def __post_init__(self) -> None:
        """Raise a DataError for what is neither a file nor a list of ids."""
        if not isinstance(self.items, str | Path):
            self.ids()

    def ids(self) -> pl.Series:
        """The listed ids; a file is read."""
        return listed_ids(self.items, place=self.name, may_be_empty=self.may_be_empty)

    def is_listed(self, catalog: Catalog) -> Bool[np.ndarray, " n"]:
        """Which items of a catalogue are listed."""
        return is_listed(catalog.item_ids, self.ids())

    def check(self, catalog: Catalog) -> None:
        """Raise a DataError if no item is listed, although there are ids or there must be some."""
        ids = self.ids()
        listed = is_listed(catalog.item_ids, ids)
        if not listed.any() and not (self.may_be_empty and ids.is_empty()):
            own = shown(catalog.item_ids.drop_nulls())
            raise DataError(
                f"{self.name}: none of the {len(ids):,} listed items ({shown(ids)}) is in the "
                f"catalogue, whose ids are like {own}. Give ids, or a file with a column item_id"
            )

    def matches(self, catalog: Catalog) -> str:
        """How many of the listed ids are items, as a sentence."""
        ids = self.ids().unique(maintain_order=True)
        unknown = ids.filter(~is_listed(ids, catalog.item_ids))
        lacked = f"; it lacks {shown(unknown)}" if len(unknown) else ""
        matched = len(ids) - len(unknown)
        return f"{self.name}: {matched:,} of {len(ids):,} listed items are in the catalogue{lacked}"


@dataclass(frozen=True)
class Only(ListedItems):
    """Recommend only these items: a file with a column item_id, or ids."""

    name: ClassVar[str] = "only"

    def bias(self, items: ItemContext) -> Float[np.ndarray, " I"]:
        """See `Scoring`."""
        return _bias_of_filter(items, self.is_listed(items.catalog))


@dataclass(frozen=True)
class Without(ListedItems):
    """Never recommend these items: a file with a column item_id, or ids. There may be none."""

    name: ClassVar[str] = "without"
    may_be_empty: ClassVar[bool] = True

    def bias(self, items: ItemContext) -> Float[np.ndarray, " I"]:
        """See `Scoring`; raises a DataError if the catalogue has none of the listed items."""
        return _bias_of_filter(items, ~self.is_listed(items.catalog))


@dataclass(frozen=True)
class Boost(Typed):
    """Raise (or lower) the score of items that satisfy an SQL condition."""

    name: ClassVar[str] = "boost"
    where: str
    by: float = 0.5  # added to the score, in log odds

    def bias(self, items: ItemContext) -> Float[np.ndarray, " I"]:
        """See `Scoring`."""
        kept = where(items.catalog.items, self.where)
        return self.by * items.padded(kept).astype(np.float32)


@dataclass(frozen=True)
class Popularity(Typed):
    """Correct for popularity (0: not; 1: the logQ correction); see `filters.popularity_bias`."""

    name: ClassVar[str] = "popularity"
    strength: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.strength < 0:
            raise ConfigError(f"popularity: {self.strength} is not a number of 0 or more")

    def bias(self, items: ItemContext) -> Float[np.ndarray, " I"]:
        """See `Scoring`."""
        counts = items.counts[: items.catalog.num_items]
        return items.padded(popularity_bias(counts, self.strength, items.mean_count))


@dataclass(frozen=True)
class Session(Typed):
    """Mix the interest of the current session into the user's vector.

    A session ends when there is no event for `gap_minutes`. At weight 1 only the session counts.
    """

    name: ClassVar[str] = "session"
    weight: float = 0.3
    gap_minutes: float = 30.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range("weight", self.weight, 0, 1)
        _check_range("gap_minutes", self.gap_minutes, 0, np.inf)

    def events(self, log: EventLog) -> EventLog:
        """Events of every user's current session."""
        return last_sessions(log, MINUTE * self.gap_minutes)

    def is_over(
        self, last: Int[np.ndarray, " U"], now: Int[np.ndarray, " U"]
    ) -> Bool[np.ndarray, " U"]:
        """Whether sessions are over at a time, from the times of their last events (s)."""
        return now - last > MINUTE * self.gap_minutes

    def mixed(
        self, vectors: Float[np.ndarray, "Q D"], alone: Float[np.ndarray, "Q D"]
    ) -> Float[np.ndarray, "Q D"]:
        """User vectors moved towards the vectors of the current session alone."""
        return vectors + self.weight * (alone - vectors)


@dataclass(frozen=True)
class Feedback(Typed):
    """Lower or raise items that a user gave feedback on, and items like them in the graph.

    Each feedback event of an item adds the weight of its type, halved every `half_life_days`. A
    later event of another type resets the sum to 0. The sum, clipped to [-1, 1], is the weight of
    the item. A score moves by `item` times the weight of its own item, and by `neighbours` times
    the weight of every other item with feedback times its similarity (cosine of the
    neighbourhoods; Adamic & Adar, 2003).
    """

    name: ClassVar[str] = "feedback"
    item: float = 1.0
    neighbours: float = 0.1
    half_life_days: float = 30.0
    event_weights: Mapping[str, float] = field(
        default_factory=lambda: {
            "like": 0.5,
            "dislike": -1.0,
            "hide": -1.0,
            "return": -1.0,
            "cancel": -1.0,
            "impression": -0.05,
        }
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("item", "neighbours"):
            _check_range(option, getattr(self, option), 0, np.inf)
        if not self.half_life_days > 0:
            raise ConfigError(f"half_life_days: {self.half_life_days} is not above 0")

    def moves(
        self, histories: EventLog | None, items: ItemContext
    ) -> dict[int, Float[np.ndarray, " I"]]:
        """User -> change of every item's score, as a share of the span of the user's scores."""
        if histories is None:
            return {}
        is_feedback = np.array(
            [name in self.event_weights for name in histories.event_type_names], bool
        )
        users = np.unique(user_of_event(histories)[is_feedback[histories.event_types]])
        neighbourhoods, moves = items.neighbourhoods, {}
        for user in users.tolist():
            rated, weights = self.item_weights(histories, user)
            if not len(rated):
                continue
            rated_rows = neighbourhoods[rated]
            change = self.neighbours * (neighbourhoods @ (rated_rows.T @ weights))
            self_similarity = rated_rows.multiply(rated_rows).sum(axis=1)
            change[rated] += (self.item - self.neighbours * self_similarity) * weights
            moves[user] = items.padded(change).astype(np.float32)
        return moves

    def item_weights(
        self, histories: EventLog, user: int
    ) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Items that a user gave feedback on, and their weights."""
        events = slice(histories.offsets[user], histories.offsets[user + 1])
        event_types = [histories.event_type_names[n] for n in histories.event_types[events]]
        times = histories.times[events]
        ages = (times[-1:] - times) / DAY if histories.has_time else np.zeros(len(times))
        weights: dict[int, float] = {}
        for item, event_type, age in zip(
            histories.items[events].tolist(), event_types, ages, strict=True
        ):
            if event_type in self.event_weights:
                decayed = self.event_weights[event_type] * 0.5 ** (age / self.half_life_days)
                weights[item] = weights.get(item, 0.0) + decayed
            else:
                weights.pop(item, None)
        weights.pop(0, None)  # items that are not in the catalogue
        return np.array(list(weights), np.int64), np.clip(list(weights.values()), -1, 1)


@dataclass(frozen=True)
class Caps(Typed):
    """Limit the items of one brand, category and so on in a list; see `reorder.within_caps`."""

    name: ClassVar[str] = "caps"
    limits: Mapping[str, int]

    def __post_init__(self) -> None:
        super().__post_init__()
        for entity, limit in self.limits.items():
            if limit < 1:
                raise ConfigError(f"caps: {entity} {limit} lets no item pass; give 1 or more")

    def reorder(self, ranked: RankedLists, context: RerankContext, length: int) -> ReorderedLists:
        """See `Reordering`."""
        groups = [(context.items.groups[entity], limit) for entity, limit in self.limits.items()]
        kept = within_caps(ranked.items, groups)
        passed = ~kept & (ranked.items > 0) & (kept.cumsum(1) < length)
        listed, scores = compact(kept, ranked.items, ranked.scores, length)
        return ReorderedLists(listed, scores, passed.sum(1))


@dataclass(frozen=True)
class Diversity(Typed):
    """Choose different items from the best of the list; see `reorder.diversify`."""

    name: ClassVar[str] = "diversity"
    strength: float
    pool: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range("diversity", self.strength, 0, 1)
        _check_pool(self.pool)

    def reorder(self, ranked: RankedLists, context: RerankContext, length: int) -> ReorderedLists:
        """See `Reordering`."""
        vectors = np.asarray(context.vectors)[ranked.items]
        places = diversify(ranked.items, ranked.scores, vectors, length, self.strength)
        return _reordered(ranked, places)


@dataclass(frozen=True)
class Explore(Typed):
    """Reserve a share of every list for items chosen at most `events` times in training."""

    name: ClassVar[str] = "explore"
    share: float
    events: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range("explore", self.share, 0, 1)
        if self.events < 0:
            raise ConfigError(f"explore_events: {self.events} is below 0")

    def reorder(self, ranked: RankedLists, context: RerankContext, length: int) -> ReorderedLists:
        """See `Reordering`."""
        is_new = context.items.valid & (context.items.counts <= self.events)
        bias = np.where(is_new, context.bias, -np.inf).astype(np.float32)
        best_new = context.best(context.rows, length, bias)
        listed, scores = explore(ranked.items, ranked.scores, *best_new, self.share)
        passed = (ranked.items > 0) & ~is_in_row(ranked.items, listed)
        return ReorderedLists(listed, scores, passed.sum(1))


@dataclass(frozen=True)
class Epsilon(Typed):
    """Show a random item of the pool at a share of the places; see `reorder.epsilon_greedy`."""

    name: ClassVar[str] = "epsilon"
    rate: float
    pool: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range("rate", self.rate, 0, 1)
        _check_pool(self.pool)

    def reorder(self, ranked: RankedLists, context: RerankContext, length: int) -> ReorderedLists:
        """See `Reordering`."""
        places, chances = epsilon_greedy(ranked.items, length, self.rate, context.random)
        return _reordered(ranked, places, chances)


Filter = Where | Only | Without
STEPS: dict[str, type] = {
    step.name: step
    for step in (
        *(Where, Only, Without, Boost, Popularity),
        *(Session, Feedback),
        *(Caps, Diversity, Explore, Epsilon),
    )
}


def feedback_types(steps: Sequence[Step]) -> tuple[str, ...]:
    """Event types that steps read as feedback, whether or not a model knows them."""
    types = (name for step in steps if isinstance(step, Feedback) for name in step.event_weights)
    return tuple(dict.fromkeys(types))


def _reordered(
    ranked: RankedLists,
    places: Int[np.ndarray, "Q K"],
    propensity: Float[np.ndarray, "Q K"] | None = None,
) -> ReorderedLists:
    """Lists of the entries at the given places.

    An entry from beyond the length of the list passes over another one.
    """
    items, scores = take(ranked.items, places), take(ranked.scores, places)
    passed = (places >= places.shape[1]) & (items > 0)
    return ReorderedLists(items, scores, passed.sum(1), propensity)


def _bias_of_filter(items: ItemContext, kept: Bool[np.ndarray, " n"]) -> Float[np.ndarray, " I"]:
    return np.where(items.padded(kept), 0, -np.inf).astype(np.float32)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name}: {value} is not between {low:g} and {high:g}")


def _check_pool(pool: int) -> None:
    if pool < 1:
        raise ConfigError(f"pool: {pool} leaves nothing to choose from; give 1 or more")
