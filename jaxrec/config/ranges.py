"""Bounds of options, as annotations of their types."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, get_args, get_type_hints

from annotated_types import Ge, Gt, Le, Lt, MinLen

from jaxrec.errors import ConfigError

LARGEST = 2**31  # numbers of items, events and so on are 32-bit integers
Count = Annotated[int, Ge(1), Lt(LARGEST)]
NonNegative = Annotated[int, Ge(0), Lt(LARGEST)]
Seed = Annotated[int, Ge(0), Lt(2**32)]
Amount = Annotated[float, Ge(0), Lt(math.inf)]
Positive = Annotated[float, Gt(0), Lt(math.inf)]
Fraction = Annotated[float, Ge(0), Le(1)]
Share = Annotated[float, Ge(0), Lt(1)]
Portion = Annotated[float, Gt(0), Le(1)]
Quantile = Annotated[float, Gt(0), Lt(1)]
Text = Annotated[str, MinLen(1)]


@dataclass(frozen=True)
class Bounded:
    """Base of dataclasses of options. It checks the bounds of their types, such as `Count`.

    Attributes:
        section: of a recipe that holds the options, for messages; empty: none.
    """

    section = ""

    def __init_subclass__(cls, section: str = "", **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        cls.section = section

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self), include_extras=True)
        for option in fields(self):
            value, hint = getattr(self, option.name), hints[option.name]
            name = f"{self.section}.{option.name}".removeprefix(".")
            if isinstance(value, Mapping):
                for key, entry in value.items():
                    check_bounds(f"{name}: {key}", entry, get_args(hint)[-1])
            else:
                check_bounds(name, value, hint)


def check_bounds(name: str, value: Any, hint: Any) -> None:
    """Raise a ConfigError unless a value is within the bounds of its annotated type."""
    if value is None:  # an option that may be left out
        return
    bounds = [bound for part in (hint, *get_args(hint)) for bound in _bounds(part)]
    limits = [_limit(bound, value) for bound in bounds]
    missed = " and ".join(words for holds, words in limits if not holds)
    if missed:
        raise ConfigError(f"{name} must be {missed}, not {value!r}")


def _bounds(hint: Any) -> tuple[Any, ...]:
    return getattr(hint, "__metadata__", ())


def _limit(bound: Any, value: Any) -> tuple[bool, str]:
    """Whether a value is within a bound, and the bound in words."""
    match bound:
        case Ge(low):
            return value >= low, f"{low} or more"
        case Gt(low):
            return value > low, f"above {low}"
        case Le(high):
            return value <= high, f"{high} or less"
        case Lt(high):
            return value < high, "finite" if high == math.inf else f"below {high}"
        case MinLen():
            return bool(value.strip()), "some text"
    return True, ""
