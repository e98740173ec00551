"""How tyro reads and shows options: rules beside its own."""

import dataclasses
import re
from collections.abc import Callable
from typing import Annotated, Any

from tyro.conf import arg
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

RULES = ConstructorRegistry()
_in_progress: list[type] = []


def escaped(value: Any) -> str:
    r"""A value as an argument. `-x` becomes `\-x`, because tyro takes `-x` for an option."""
    return re.sub(r"^(\\*-)", r"\\\1", value) if isinstance(value, str) else str(value)


@RULES.primitive_rule
def _text(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Text is read without the escape."""
    if info.type is not str:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="STR",
        instance_from_str=lambda arguments: re.sub(r"^\\(\\*-)", r"\1", arguments[0]),
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda value: [value],
    )


@RULES.primitive_rule
def _truth(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """`true` and `false` are read as in YAML, in any case."""
    if info.type is not bool:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="{true,false}",
        instance_from_str=lambda arguments: _boolean(arguments[0]),
        is_instance=lambda value: isinstance(value, bool),
        str_from_instance=lambda value: [str(value).lower()],
    )


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"{text} is neither true nor false")
    return text.lower() == "true"


@RULES.struct_rule
def _options(info: StructTypeInfo) -> StructConstructorSpec | None:
    """The help of an option is one paragraph, and does not name an empty default."""
    if not dataclasses.is_dataclass(info.type) or info.type in _in_progress:
        return None
    _in_progress.append(info.type)  # this time, tyro's own rule answers
    try:
        spec = ConstructorRegistry.get_struct_spec(info)
    finally:
        _in_progress.pop()
    if not isinstance(spec, StructConstructorSpec):
        return None
    return dataclasses.replace(spec, fields=tuple(map(_described, spec.fields)))


def _described(field: StructFieldSpec) -> StructFieldSpec:
    described: Any = Annotated[field.type, arg(help_behavior_hint=_default)]
    return dataclasses.replace(field, type=described, helptext=_paragraph(field.helptext))


def _paragraph(text: str | Callable[[], str | None] | None) -> Callable[[], str | None]:
    """The text in one line, found when it is shown."""
    return lambda: " ".join(((text() if callable(text) else text) or "").split()) or None


def _default(label: str) -> str:
    return "" if label in ("", "''", "None") else f"(default: {label})"
