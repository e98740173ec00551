"""The page of a recipe's options, from the dataclasses of `jaxrec.config`."""

import ast
import dataclasses
import inspect
import textwrap
import typing
from typing import Any

from jaxrec.config import Config

INTRODUCTION = """# Options of a recipe

A recipe is a YAML file with six sections. Every option has a default, and every option can be set
in three ways:

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

The command line wins over `overrides`, and these win over the recipe. An unknown option or a value
out of range is an error that names the nearest option or the allowed range.

This page is generated from the dataclasses in `jaxrec.config`.
"""


def page() -> str:
    """The page as Markdown."""
    sections = typing.get_type_hints(Config)
    return "\n".join([INTRODUCTION, *(_section(name, sections[name]) for name in sections)])


def _section(name: str, config: type) -> str:
    lines = [f"## `{name}`", "", _one_line(inspect.getdoc(config) or ""), ""]
    documentation = field_docstrings(config)
    for option in dataclasses.fields(config):
        kind = _code(_type_name(option.type))
        lines += [
            f"### `{name}.{option.name}`",
            "",
            f"{kind}, default {_code(_default(option))}",
            "",
            _one_line(documentation[option.name]),
            "",
        ]
    return "\n".join(lines)


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
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    if isinstance(value, float):
        return f"{value:g}"
    return (
        f'"{value}"'
        if value == ""
        else str(value).lower()
        if value in (True, False) and isinstance(value, bool)
        else str(value)
    )


def _type_name(kind: Any) -> str:
    if isinstance(kind, str):
        return kind
    if typing.get_origin(kind) is typing.Literal:
        return " | ".join(typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return f"list of {_type_name(typing.get_args(kind)[0])}"
    return str(kind) if typing.get_origin(kind) else kind.__name__


def _code(text: str) -> str:
    return f"`{text}`"


def _one_line(text: str) -> str:
    return " ".join(text.split())
