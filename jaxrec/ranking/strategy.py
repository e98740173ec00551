"""A strategy: the steps of re-ranking, read from a YAML file or given as options."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from jaxrec.config import read_yaml
from jaxrec.config.renamed import refuse_renamed
from jaxrec.errors import ConfigError
from jaxrec.ranking.steps import (
    STEPS,
    Caps,
    Diversity,
    Explore,
    Only,
    Popularity,
    Step,
    Where,
    Without,
)


@dataclass(frozen=True)
class Rules:
    """Re-ranking given as options: a short way to write the most common steps."""

    mask: tuple[str, ...] = ()
    """Items of a user's own history to leave out: `none`, `seen`, or event types such as `buy`
    (empty: as in the run's evaluation)."""
    where: str = ""
    """Recommend only items whose columns satisfy this SQL condition, such as
    `price < 50 AND category = 'Nails'`."""
    only: Path | tuple[str, ...] | None = None
    """Recommend only these items: a file with a column item_id, or ids. One word without the
    ending of a table is an id, unless it is the name of a file."""
    without: Path | tuple[str, ...] | None = None
    """Never recommend these items: a file or ids, as in `only`."""
    caps: dict[str, int] = field(default_factory=dict)
    """Node types and the most items of one entity in a list: `brand 2 category 3`. If an item
    has several entities of a type, the first counts."""
    diversity: float = 0.0
    """0: rank by score alone; 1: by difference from the items before alone (maximal marginal
    relevance)."""
    pool: int = 100
    """Number of best items that diversity chooses from."""
    popularity: float = 0.0
    """Strength of the correction for popularity, in addition to the correction that validation
    has chosen (0: none; 1: the logQ correction)."""
    explore: float = 0.0
    """Share of a list that is reserved for new items, from 0 to 1."""
    explore_events: int = 0
    """An item is new if it was chosen at most this many times in training."""

    def __post_init__(self) -> None:
        if isinstance(self.mask, str):
            raise ConfigError(f"mask: {self.mask!r} is one text; give a tuple such as ('seen',)")
        steps_of(self)


def steps_of(rules: Rules) -> tuple[Step, ...]:
    """The steps of rules, in the order in which they act."""
    given: list[tuple[Any, Step]] = [
        (rules.where, Where(rules.where)),
        (rules.only is not None, Only(rules.only or ())),
        (rules.without is not None, Without(rules.without or ())),
        (rules.popularity, Popularity(rules.popularity)),
        (rules.caps, Caps(rules.caps)),
        (rules.diversity, Diversity(rules.diversity, rules.pool)),
        (rules.explore, Explore(rules.explore, rules.explore_events)),
    ]
    return tuple(step for is_given, step in given if is_given)


def read_strategy(path: Path) -> tuple[Step, ...]:
    """Steps of a YAML file.

    Raises:
        ConfigError: the file is not a list of known steps with their options.
    """
    entries = read_yaml(path)
    if not isinstance(entries, list):
        raise ConfigError(f"{path}: write a list of steps, such as `- caps: {{brand: 2}}`")
    return tuple(_step(entry, f"{path}, step {n}") for n, entry in enumerate(entries, 1))


def _step(entry: Any, place: str) -> Step:
    """A step from `name: options` or, for a step with one option, from `name: value`."""
    if isinstance(entry, str):
        entry = {entry: {}}
    if not isinstance(entry, dict) or len(entry) != 1:
        raise ConfigError(f"{place}: write one `name: options`")
    ((name, options),) = entry.items()
    if name not in STEPS:
        raise ConfigError(f"{place}: there is no step {name!r}; give one of {', '.join(STEPS)}")
    known = {option.name: option.type for option in fields(STEPS[name])}
    if len(known) == 1:
        options = dict.fromkeys(known, options)
    if isinstance(options, dict):
        refuse_renamed((f"{name}.{option}" for option in options), place)
    try:
        step = STEPS[name](**options)
        for option, option_type in known.items():
            _check_type(option, getattr(step, option), option_type)
        return step
    except (TypeError, ValueError) as error:
        names = ", ".join(known)
        raise ConfigError(f"{place} ({name}, with the options {names}): {error}") from error


def _check_type(name: str, value: Any, option_type: Any) -> None:
    """Raise a TypeError for a value of YAML that an option of this type does not take."""
    taken = {float: (int, float), int: (int,), str: (str,)}.get(option_type)
    if taken and (isinstance(value, bool) or not isinstance(value, taken)):
        raise TypeError(f"{name}: {value!r} is not of type {option_type.__name__}")
