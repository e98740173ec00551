"""Bounds of options, as annotations of their types."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, get_args, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from jaxrec.errors import ConfigError

Count = Annotated[int, Ge(1)]
NonNegative = Annotated[int, Ge(0)]
Amount = Annotated[float, Ge(0), Lt(math.inf)]
Positive = Annotated[float, Gt(0)]
Share = Annotated[float, Ge(0), Lt(1)]
Portion = Annotated[float, Gt(0), Le(1)]
Quantile = Annotated[float, Gt(0), Lt(1)]


@dataclass(frozen=True)
class Bounded:
    """Base of dataclasses of options. It checks the bounds of their types, such as `Count`."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self), include_extras=True)
        for option in fields(self):
            value, hint = getattr(self, option.name), hints[option.name]
            if isinstance(value, Mapping):
                for key, entry in value.items():
                    _check(f"{option.name}: {key}", entry, get_args(hint)[-1])
            else:
                _check(option.name, value, hint)


def _check(name: str, value: Any, hint: Any) -> None:
    if value is None:  # an option that may be left out
        return
    bounds = [bound for part in (hint, *get_args(hint)) for bound in _bounds(part)]
    limits = [_limit(bound, value) for bound in bounds]
    if not all(holds for holds, _ in limits):
        words = " and ".join(words for _, words in limits)
        raise ConfigError(f"{name} must be {words}, not {value}")


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
    return True, ""
