"""A strategy: what a shop does to the model's ranking, as a list of steps in the order they act.

A YAML file names one step an entry, as in `configs/strategies/`:

    - feedback: {neighbours: 2}
    - where: stock > 0
    - boost: {where: "brand = 'Acme'", by: 0.5}
    - caps: {brand: 2}

Steps that change vectors or scores come first and act on all items; those behind them reorder the
best of these. Letters besides the dimension key: P places of a ranking on its way through them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy.sparse import csr_array

from jaxrec.config import read_yaml
from jaxrec.config.renamed import refuse_renamed
from jaxrec.data.events import last_sessions, user_of_event
from jaxrec.data.graph import neighbourhoods
from jaxrec.ranking import filters as rule
from jaxrec.ranking.filters import Rules
from jaxrec.types import Catalog, EventLog

Best = Callable[
    [Int[np.ndarray, " R"], int, Float[np.ndarray, " I"]],
    tuple[Int[np.ndarray, "R P"], Float[np.ndarray, "R P"]],
]
"""The best items of some of the queries, so many, under a bias."""
MINUTE, DAY = 60, 86_400  # seconds


@dataclass(frozen=True)
class ItemContext:
    """What steps may know of the items."""

    catalog: Catalog
    counts: Float[np.ndarray, " I"]  # how often they were chosen in training
    valid: Bool[np.ndarray, " I"]  # rows that are items
    groups: Mapping[str, Int[np.ndarray, " n"]]  # node type -> the items' nodes of it, 0: none

    @cached_property
    def neighbourhoods(self) -> csr_array:
        """See `jaxrec.data.graph.neighbourhoods`."""
        return neighbourhoods(self.catalog.graph)

    def padded(self, values: np.ndarray) -> Float[np.ndarray, " I"]:
        """Values of the catalogue's items, with zeros for the unused rows."""
        return np.pad(values, (0, len(self.valid) - self.catalog.num_items))


class RankedLists(NamedTuple):
    """Rankings of R users on their way through the steps, best first."""

    items: Int[np.ndarray, "R P"]  # 0 where no item is left
    scores: Float[np.ndarray, "R P"]  # -inf where no item is left
    touched: Int[np.ndarray, "R P"]  # bit n: step n changed the item's score or its place
    propensity: Float[np.ndarray, "R P"]  # chance of the item at its place, given those before


class ReorderedLists(NamedTuple):
    """What a step makes of rankings, and how many entries of each it passes over."""

    items: Int[np.ndarray, "R K"]
    scores: Float[np.ndarray, "R K"]
    passed: Int[np.ndarray, " R"]
    propensity: Float[np.ndarray, "R K"] | None = None  # where the step throws dice


@dataclass(frozen=True)
class RerankContext:
    """What a step may know of the users whose rankings it changes."""

    best: Best
    items: Float[Array, "I 1+D"]  # vectors behind a prior
    bias: Float[np.ndarray, " I"]  # of all scoring steps; -inf keeps an item out
    random: np.random.Generator
    rows: Int[np.ndarray, " R"] = field(default_factory=lambda: np.zeros(0, np.int64))


@dataclass(frozen=True)
class Where:
    """Recommend only items whose columns satisfy an SQL condition; see `rules.where`."""

    name: ClassVar[str] = "where"
    condition: str

    def bias(self, shop: ItemContext) -> Float[np.ndarray, " I"]:
        """See `Scoring`."""
        return _keep(shop, rule.where(shop.catalog.items, self.condition))


@dataclass(frozen=True)
class Only:
    """Recommend only these items: a file with a column item_id, or ids."""

    name: ClassVar[str] = "only"
    items: Path | str | Sequence[str]

    def bias(self, shop: ItemContext) -> Float[np.ndarray, " I"]:
        """See `Scoring`."""
        return _keep(shop, rule.only(shop.catalog.item_ids, rule.listed_ids(self.items)))


@dataclass(frozen=True)
class Without:
    """Never recommend these items; given as in `Only`."""

    name: ClassVar[str] = "without"
    items: Path | str | Sequence[str]

    def bias(self, shop: ItemContext) -> Float[np.ndarray, " I"]:
        """See `Scoring`."""
        return _keep(shop, rule.without(shop.catalog.item_ids, rule.listed_ids(self.items)))


@dataclass(frozen=True)
class Boost:
    """Raise (or lower) the score of items that satisfy an SQL condition."""

    name: ClassVar[str] = "boost"
    where: str
    by: float = 0.5  # of the logarithm of the odds

    def bias(self, shop: ItemContext) -> Float[np.ndarray, " I"]:
        """See `Scoring`."""
        return self.by * shop.padded(rule.where(shop.catalog.items, self.where)).astype(np.float32)


@dataclass(frozen=True)
class Popularity:
    """Correct for popularity (0: not; 1: the logQ correction); see `rules.popularity_bias`."""

    name: ClassVar[str] = "popularity"
    strength: float

    def __post_init__(self) -> None:
        """Raise a ValueError for a strength that is none."""
        Rules(popularity=self.strength)

    def bias(self, shop: ItemContext) -> Float[np.ndarray, " I"]:
        """See `Scoring`."""
        counts = shop.counts[: shop.catalog.num_items]
        return shop.padded(rule.popularity_bias(counts, self.strength))


@dataclass(frozen=True)
class Session:
    """Mix the interest of the present session alone into the user's vector.

    A session ends where no event comes for `gap_minutes`. At weight 1 nothing before it counts.
    """

    name: ClassVar[str] = "session"
    weight: float = 0.3
    gap_minutes: float = 30.0

    def __post_init__(self) -> None:
        """Raise a ValueError for a weight or a gap that is none."""
        _within("weight", self.weight, 0, 1)
        _within("gap_minutes", self.gap_minutes, 0, np.inf)

    def events(self, log: EventLog) -> EventLog:
        """The events of everybody's present session."""
        return last_sessions(log, MINUTE * self.gap_minutes)

    def is_over(
        self, last: Int[np.ndarray, " n"], now: Int[np.ndarray, " n"]
    ) -> Bool[np.ndarray, " n"]:
        """Whether a session with its last event then (s) is over now."""
        return now - last > MINUTE * self.gap_minutes

    def mixed(
        self, vectors: Float[np.ndarray, "Q D"], alone: Float[np.ndarray, "Q D"]
    ) -> Float[np.ndarray, "Q D"]:
        """User vectors moved towards those of the present session alone."""
        return vectors + self.weight * (alone - vectors)


@dataclass(frozen=True)
class Feedback:
    """Lower or raise items that a user has judged, and those alike in the graph.

    What happened to an item weighs the sum over its events, each the weight of its event_type, halved
    every `half_life_days`, and within [-1, 1]; a later event of another event_type makes it void. A
    score moves by `item` times the weight of the item and by `neighbours` times that of every
    judged item and the likeness to it (cosine of the neighbourhoods; Adamic & Adar, 2003).
    """

    name: ClassVar[str] = "feedback"
    item: float = 1.0
    neighbours: float = 0.1
    half_life_days: float = 30.0
    event_types: Mapping[str, float] = field(
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
        """Raise a ValueError for a number that is out of range."""
        for number in ("item", "neighbours"):
            _within(number, getattr(self, number), 0, np.inf)
        if not self.half_life_days > 0:
            raise ValueError(f"half_life_days: {self.half_life_days} is not above 0")

    def moves(
        self, histories: EventLog | None, shop: ItemContext
    ) -> dict[int, Float[np.ndarray, " I"]]:
        """By what share of the span of scores every item's moves, for each user who has judged."""
        if histories is None:
            return {}
        event_types = [
            n for n, name in enumerate(histories.event_type_names) if name in self.event_types
        ]
        users = np.unique(user_of_event(histories)[np.isin(histories.event_types, event_types)])
        near, moves = shop.neighbourhoods, {}
        for user in users.tolist():
            items, weights = self.judged(histories, user)
            if not len(items):
                continue
            theirs = near[items]
            added = self.neighbours * (near @ (theirs.T @ weights))
            likeness_to_itself = theirs.multiply(theirs).sum(axis=1)
            added[items] += (self.item - self.neighbours * likeness_to_itself) * weights
            moves[user] = shop.padded(added).astype(np.float32)
        return moves

    def judged(
        self, histories: EventLog, user: int
    ) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """The items that a user has judged, and their weights."""
        part = slice(histories.offsets[user], histories.offsets[user + 1])
        event_types = [
            histories.event_type_names[event_type] for event_type in histories.event_types[part]
        ]
        times = histories.times[part]
        ages = (times[-1:] - times) / DAY if histories.has_time else np.zeros(len(times))
        weights: dict[int, float] = {}
        for item, event_type, age in zip(
            histories.items[part].tolist(), event_types, ages, strict=True
        ):
            if event_type in self.event_types:
                decayed = self.event_types[event_type] * 0.5 ** (age / self.half_life_days)
                weights[item] = weights.get(item, 0.0) + decayed
            else:
                weights.pop(item, None)
        weights.pop(0, None)  # items that the catalogue lacks
        return np.array(list(weights), np.int64), np.clip(list(weights.values()), -1, 1)


@dataclass(frozen=True)
class Caps:
    """The most items of one brand, category and so on in a list; see `rules.within_caps`."""

    name: ClassVar[str] = "caps"
    limits: Mapping[str, int]

    def __post_init__(self) -> None:
        """Raise a ValueError for a cap that lets no item pass."""
        Rules(caps=dict(self.limits))

    def reorder(
        self, ranked: RankedLists, asking: RerankContext, shop: ItemContext, length: int
    ) -> ReorderedLists:
        """See `Reordering`."""
        groups = [(shop.groups[entity], limit) for entity, limit in self.limits.items()]
        kept = rule.within_caps(ranked.items, groups)
        passed = ~kept & (ranked.items > 0) & (kept.cumsum(1) < length)
        items, scores = rule.compact(kept, ranked.items, ranked.scores, length)
        return ReorderedLists(items, scores, passed.sum(1))


@dataclass(frozen=True)
class Diversity:
    """Choose unlike items from the best of the ranking; see `rules.diversify`."""

    name: ClassVar[str] = "diversity"
    strength: float
    pool: int = 100

    def __post_init__(self) -> None:
        """Raise a ValueError for a strength or a pool that is none."""
        Rules(diversity=self.strength, pool=self.pool)

    def reorder(
        self, ranked: RankedLists, asking: RerankContext, shop: ItemContext, length: int
    ) -> ReorderedLists:
        """See `Reordering`."""
        vectors = np.asarray(asking.items)[ranked.items][..., 1:]  # without the priors
        places = rule.diversify(ranked.items, ranked.scores, vectors, length, self.strength)
        items, scores = take(ranked.items, places), take(ranked.scores, places)
        passed = (places >= length) & (items > 0)
        return ReorderedLists(items, scores, passed.sum(1))


@dataclass(frozen=True)
class Explore:
    """Reserve a share of every list for items that training has seen chosen at most so often."""

    name: ClassVar[str] = "explore"
    share: float
    events: int = 0

    def __post_init__(self) -> None:
        """Raise a ValueError for a share or a number of events that is none."""
        Rules(explore=self.share, explore_events=self.events)

    def reorder(
        self, ranked: RankedLists, asking: RerankContext, shop: ItemContext, length: int
    ) -> ReorderedLists:
        """See `Reordering`."""
        new = shop.valid & (shop.counts <= self.events)
        bias = np.where(new, asking.bias, -np.inf).astype(np.float32)
        new_items, new_scores = asking.best(asking.rows, length, bias)
        items, scores = rule.explore(ranked.items, ranked.scores, new_items, new_scores, self.share)
        stayed = (ranked.items[:, :, None] == items[:, None, :]).any(2)
        return ReorderedLists(items, scores, (~stayed & (ranked.items > 0)).sum(1))


@dataclass(frozen=True)
class Epsilon:
    """At a share of all places show any item of the pool; see `rules.epsilon_greedy`."""

    name: ClassVar[str] = "epsilon"
    rate: float
    pool: int = 100

    def __post_init__(self) -> None:
        """Raise a ValueError for a rate or a pool that is none."""
        _within("rate", self.rate, 0, 1)
        Rules(pool=self.pool)

    def reorder(
        self, ranked: RankedLists, asking: RerankContext, shop: ItemContext, length: int
    ) -> ReorderedLists:
        """See `Reordering`."""
        places, chances = rule.epsilon_greedy(ranked.items, length, self.rate, asking.random)
        items, scores = take(ranked.items, places), take(ranked.scores, places)
        passed = (places >= length) & (items > 0)
        return ReorderedLists(items, scores, passed.sum(1), chances)


Filter = Where | Only | Without
Scoring = Filter | Boost | Popularity
"""Steps with `bias(shop)`: what to add to every item's score, -inf to keep it out."""
Reordering = Caps | Diversity | Explore | Epsilon
"""Steps with `reorder(ranked, asking, shop, length)`: rankings of `length` places."""
Step = Scoring | Session | Feedback | Reordering
STEPS = {step.name: step for step in Step.__args__}


def feedback_types(steps: Sequence[Step]) -> tuple[str, ...]:
    """The event types that steps read as judgements, whether or not a model knows them."""
    event_types = (
        event_type
        for step in steps
        if isinstance(step, Feedback)
        for event_type in step.event_types
    )
    return tuple(dict.fromkeys(event_types))


def read_strategy(path: Path) -> tuple[Step, ...]:
    """The steps of a YAML file.

    Raises:
        ValueError: the file is not a list of known steps with their options.
    """
    entries = read_yaml(path)
    if not isinstance(entries, list):
        raise ValueError(f"{path}: write a list of steps, such as `- caps: {{brand: 2}}`")
    return tuple(_step(entry, f"{path}, step {n}") for n, entry in enumerate(entries, 1))


def _step(entry: Any, place: str) -> Step:
    """A step from `name: options` or, for a step with one option, `name: its value`."""
    if isinstance(entry, str):
        entry = {entry: {}}
    if not isinstance(entry, dict) or len(entry) != 1:
        raise ValueError(f"{place}: write one `name: options`")
    ((name, options),) = entry.items()
    if name not in STEPS:
        raise ValueError(f"{place}: there is no step {name!r}; give one of {', '.join(STEPS)}")
    step = STEPS[name]
    options_of_step = [option.name for option in fields(step)]
    if len(options_of_step) == 1:
        options = {options_of_step[0]: options}
    elif isinstance(options, dict):
        refuse_renamed((f"{name}.{option}" for option in options), place)
    try:
        made = step(**options)
        for option in fields(step):
            _of_type(option.name, getattr(made, option.name), option.type)
    except (TypeError, ValueError) as error:
        known = ", ".join(options_of_step)
        raise ValueError(f"{place} ({name}, with the options {known}): {error}") from error
    return made


def _of_type(name: str, value: Any, wanted: Any) -> None:
    """Raise a TypeError for a value of YAML that an option of this type does not take."""
    known = {float: (int, float), int: (int,), str: (str,)}
    if wanted in known and (isinstance(value, bool) or not isinstance(value, known[wanted])):
        raise TypeError(f"{name}: {value!r} is not of type {wanted.__name__}")


def steps_of(rules: Rules) -> tuple[Step, ...]:
    """The steps of rules that were given as options, in the order in which batch scoring acts."""
    given: list[tuple[Any, Step]] = [
        (rules.where, Where(rules.where)),
        (rules.only is not None, Only(rules.only or ())),
        (rules.without is not None, Without(rules.without or ())),
        (rules.popularity, Popularity(rules.popularity)),
        (rules.caps, Caps(rules.caps)),
        (rules.diversity, Diversity(rules.diversity, rules.pool)),
        (rules.explore, Explore(rules.explore, rules.explore_events)),
    ]
    return tuple(step for wanted, step in given if wanted)


def _keep(shop: ItemContext, kept: Bool[np.ndarray, " n"]) -> Float[np.ndarray, " I"]:
    return np.where(shop.padded(kept), 0, -np.inf).astype(np.float32)


def take(values: np.ndarray, places: Int[np.ndarray, "R K"]) -> np.ndarray:
    """The values at some places of every row."""
    return np.take_along_axis(values, places, axis=1)


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name}: {value} is not between {low:g} and {high:g}")
