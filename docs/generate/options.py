"""The page of a recipe's options, from the dataclasses of `jaxrec.config`."""

import ast
import dataclasses
import inspect
import textwrap
import typing
from typing import Any

from jaxrec.config import Config
from jaxrec.config.ranges import LARGEST

INTRODUCTION = """# Options of a recipe

A recipe is a YAML file with ten sections. Every option has a default. You can set an option in
three ways:

```yaml
# my-recipe.yaml
base: shopping           # start from a shipped recipe
model: {hidden_size: 128}
```

```bash
jaxrec train --config my-recipe.yaml --model.hidden_size 128
```

```python
jaxrec.fit("my-recipe.yaml", overrides={"model.hidden_size": 128})
```

On the command line, write a text that begins with a hyphen as `\\-text`.

Options of the command line replace `overrides`, and `overrides` replace the recipe. An unknown
option or a value out of range is an error. Its message names the nearest option or the allowed
range.

This page is generated from the dataclasses in `jaxrec.config`.
"""


def page() -> str:
    """The page as Markdown."""
    sections = typing.get_type_hints(Config)
    return "\n".join([INTRODUCTION, *(_section(name, sections[name]) for name in sections)])


def _section(name: str, config: type) -> str:
    lines = [f"## `{name}`", "", _one_line(inspect.getdoc(config) or ""), ""]
    return "\n".join([*lines, *_option_lines(name, config)])


def _option_lines(name: str, config: type) -> list[str]:
    lines = []
    documentation = field_docstrings(config)
    types = typing.get_type_hints(config, include_extras=True)
    for option in dataclasses.fields(config):
        if dataclasses.is_dataclass(types[option.name]):
            lines += _option_lines(f"{name}.{option.name}", types[option.name])
            continue
        default = f"default `{_default(option)}`" if _default(option) else "empty by default"
        lines += [
            f"### `{name}.{option.name}`",
            "",
            f"{_type_name(types[option.name])}, {default}",
            "",
            _one_line(documentation[option.name]),
            "",
        ]
    return lines


def field_docstrings(config: type) -> dict[str, str]:
    """The string below every field of a dataclass."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    assert isinstance(definition, ast.ClassDef)
    docstrings = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        match field, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                docstrings[name] = text
    return docstrings


def _default(option: dataclasses.Field) -> str:
    factory = option.default_factory
    value: Any = option.default if factory is dataclasses.MISSING else factory()
    match value:
        case tuple():
            return ", ".join(map(str, value))
        case dict():
            return ", ".join(f"{key} {entry}" for key, entry in value.items())
        case float():
            return f"{value:g}"
        case _:
            return str(value)


def _type_name(kind: Any) -> str:
    """A type in words, with its bounds where it is annotated with some."""
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Annotated:
        bounds = [words for bound in arguments[1:] for words in _bounds(bound)]
        return " ".join([_type_name(arguments[0]), " and ".join(bounds)]).strip()
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if typing.get_origin(kind) is tuple:
        return f"list of {_type_name(arguments[0])}"
    if typing.get_origin(kind) is dict:
        return f"map from {_type_name(arguments[0])} to {_type_name(arguments[1])}"
    return {str: "text", int: "integer", float: "number", bool: "`true` or `false`"}[kind]


def _bounds(bound: Any) -> list[str]:
    """The limits of an `annotated_types` bound in words."""
    words = {
        "ge": "of {:g} or more",
        "gt": "above {:g}",
        "le": "of {:g} or less",
        "lt": "below {:g}",
    }
    limits = {name: getattr(bound, name, None) for name in words}
    return [
        words[name].format(limit)
        for name, limit in limits.items()
        if limit is not None and limit < LARGEST
    ]


def _one_line(text: str) -> str:
    return " ".join(text.split())
