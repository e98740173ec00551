"""Checks of options against their annotated types, before anything computes with them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from jaxrec.errors import ConfigError, InputError

MAX_NUMBER = 1e6  # scores have 32 bits, in which a larger number leaves nothing of the ranking
MAX_WHOLE = 2**31
NAMES = {int: "a whole number of 32 bits", str: "text", Path: "a file", NoneType: "nothing"}


@dataclass(frozen=True)
class Typed:
    """Base of dataclasses of options: every value has the annotated type of its field."""

    def __post_init__(self) -> None:
        """Raise a ConfigError for the first value of another type; see `check_type`."""
        hints = get_type_hints(type(self))
        for option in fields(self):
            check_type(option.name, getattr(self, option.name), hints[option.name])


def check_type(name: str, value: Any, hint: Any) -> None:
    """Raise a ConfigError for a value that is not of a type.

    A float is a finite number of size `MAX_NUMBER` at most, an integer has 32 bits, a path may be
    text, and a tuple may be a list.
    """
    parts = get_args(hint)
    match get_origin(hint):
        case None:
            if not _fits(value, hint):
                raise ConfigError(f"{name}: {value!r} is not {_words(hint)}{_advice(value, hint)}")
        case origin if issubclass(origin, Mapping) and isinstance(value, Mapping):
            for key, entry in value.items():
                check_type(f"{name}, key", key, parts[0])
                check_type(f"{name}: {key}", entry, parts[1])
        case origin if issubclass(origin, Sequence) and isinstance(value, list | tuple):
            for entry in value:
                check_type(name, entry, parts[0])
        case origin if issubclass(origin, Mapping | Sequence):
            raise ConfigError(f"{name}: {value!r} is not {_words(hint)}")
        case _:  # a union
            if not any(_is_of_type(value, part) for part in parts):
                raise ConfigError(f"{name}: {value!r} is not {_words(hint)}")


def check_counts(**counts: Any) -> None:
    """Raise an InputError for a number that is not whole or below 1."""
    for name, count in counts.items():
        if not is_whole(count) or count < 1:
            raise InputError(f"{name}={count!r}: give a whole number of 1 or more")


def is_whole(value: Any) -> bool:
    """Whether a value is an integer, of Python or NumPy."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Whether a value is a finite number, of Python or NumPy."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_of_type(value: Any, hint: Any) -> bool:
    try:
        check_type("", value, hint)
    except ConfigError:
        return False
    return True


def _fits(value: Any, kind: type) -> bool:
    if kind is float:
        return is_finite(value) and abs(value) <= MAX_NUMBER
    if kind is int:
        return is_whole(value) and abs(value) < MAX_WHOLE
    return isinstance(value, (str, Path) if kind is Path else kind)


def _words(hint: Any) -> str:
    parts, origin = [_words(part) for part in get_args(hint) if part is not ...], get_origin(hint)
    if hint is float:
        return f"a number from {-MAX_NUMBER:,.0f} to {MAX_NUMBER:,.0f}"
    if origin is None:
        return NAMES.get(hint, getattr(hint, "__name__", str(hint)))
    if issubclass(origin, Mapping):
        return f"a mapping such as {{{parts[0]}: {parts[1]}}}"
    return f"a list of {parts[0]}" if issubclass(origin, Sequence) else " or ".join(parts)


def _advice(value: Any, hint: Any) -> str:
    """For 1e-3 and '1', which YAML reads as text."""
    try:
        is_quoted = hint in (int, float) and isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        return ""
    return "; it is read as text, so write it plainly, such as 0.001" if is_quoted else ""
