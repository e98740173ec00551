"""A strategy: the steps of re-ranking, read from a YAML file or given as options."""

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from jaxrec.config import read_yaml
from jaxrec.config.renamed import refuse_renamed
from jaxrec.errors import ConfigError, InputError
from jaxrec.ranking.filters import listed_ids
from jaxrec.ranking.option_types import Typed, check_type
from jaxrec.ranking.steps import (
    STEPS,
    Caps,
    Diversity,
    Explore,
    ListedItems,
    Only,
    Popularity,
    Step,
    Where,
    Without,
)


@dataclass(frozen=True)
class Rules(Typed):
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
        """Raise an InputError for a value that does not fit."""
        if isinstance(self.mask, str):
            raise ConfigError(f"mask: {self.mask!r} is one text; give a tuple such as ('seen',)")
        if isinstance(self.mask, list):
            object.__setattr__(self, "mask", tuple(self.mask))
        for name in ("only", "without"):
            ids = getattr(self, name)
            if ids is not None and not isinstance(ids, str | Path):
                object.__setattr__(self, name, tuple(listed_ids(ids, place=name)))
        super().__post_init__()
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


def as_steps(strategy: str | Path | Sequence[Step]) -> tuple[Step, ...]:
    """The steps of a strategy: of a YAML file, or given as they are.

    Raises:
        ConfigError: the file cannot be used, or an entry is not a step.
    """
    if isinstance(strategy, str | Path):
        return read_strategy(Path(strategy))
    if not isinstance(strategy, list | tuple):
        raise ConfigError(f"strategy: {strategy!r} is neither a YAML file nor a list of steps")
    for step in strategy:
        if isinstance(step, type) or not is_dataclass(step) or not isinstance(step, Step):
            raise ConfigError(f"strategy: {step!r} is not a step such as Caps({{'brand': 2}})")
    return tuple(strategy)


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
    if not isinstance(entry, str | dict) or (isinstance(entry, dict) and len(entry) != 1):
        raise ConfigError(f"{place}: write one `name: options`")
    ((name, options),) = [(entry, {})] if isinstance(entry, str) else entry.items()
    if name not in STEPS:
        raise ConfigError(f"{place}: there is no step {name!r}; give one of {', '.join(STEPS)}")
    known = [option.name for option in fields(STEPS[name])]
    if len(known) == 1 and not isinstance(entry, str):
        options = dict.fromkeys(known, options)
    try:
        if not isinstance(options, dict):
            raise ConfigError(f"{options!r} is no mapping; write {{option: value}}")
        refuse_renamed((f"{name}.{option}" for option in options), place)
        _check_options(options, STEPS[name])
        return STEPS[name](**options)
    except InputError as error:
        names = ", ".join(known)
        raise ConfigError(f"{place} ({name}, with the options {names}): {error}") from error


def _check_options(options: dict[Any, Any], step: type) -> None:
    """Raise a ConfigError for an option that is unknown, missing, or of another type."""
    hints = get_type_hints(step)
    known = {option.name: option for option in fields(step)}
    for option, value in options.items():
        if option not in known:
            raise ConfigError(f"there is no option {option!r}")
        if not issubclass(step, ListedItems):  # which checks lists of ids itself
            check_type(option, value, hints[option])
    for option, own in known.items():
        if option not in options and own.default is own.default_factory is MISSING:
            raise ConfigError(f"{option} is missing")
