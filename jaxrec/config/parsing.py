"""YAML recipes and command-line arguments to a `Config`.

The entries of a recipe become arguments before those of the user, so tyro alone checks names and
types.
"""

import contextlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml

from jaxrec.config.options import Config
from jaxrec.config.renamed import refuse_renamed
from jaxrec.errors import ConfigError

Options = TypeVar("Options")


def recipes() -> Path:
    """The directory of recipes: in the wheel, or beside the package in a checkout."""
    packaged = Path(str(resources.files("jaxrec"))) / "configs"
    return packaged if packaged.is_dir() else packaged.parent.parent / "configs"


def read_recipe(recipe: str | Path, derived: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The entries of a YAML recipe by their dotted names.

    A recipe may name another one as its `base` and hold only what differs.

    Args:
        recipe: a YAML file, or the name of a shipped recipe.
        derived: the recipes that lead to this one by their `base`.

    Raises:
        ConfigError: the recipe does not exist, is not a mapping, is its own base, or holds an
            option by its old name.
    """
    path = Path(recipe)
    if not path.suffix:
        path = recipes() / f"{recipe}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in recipes().glob("*.yaml")))
        raise ConfigError(f"there is no recipe {str(recipe)!r}; give a YAML file or one of {known}")
    chain = (*derived, path)
    if path.resolve() in [earlier.resolve() for earlier in derived]:
        raise ConfigError(f"{path} is its own base: {' -> '.join(map(str, chain))}")
    entries = read_yaml(path)
    if not isinstance(entries, dict):
        raise ConfigError(f"{path} must hold `section: {{option: value}}` entries")
    base = entries.pop("base", None)
    inherited = read_recipe(base, chain) if base else {}
    own = dict(_flatten(entries))
    refuse_renamed(own, str(path))
    return {**inherited, **own}


def read_yaml(path: Path) -> Any:
    """The content of a file; raises a ConfigError if it is missing or not YAML in UTF-8."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error


def parse(arguments: Sequence[str] = (), layers: Sequence[Mapping[str, Any]] = ()) -> Config:
    """The configuration of layers of entries, with command-line arguments on top.

    Prints the help and exits if the arguments ask for it.

    Args:
        layers: entries with nested or dotted names; later layers win.

    Raises:
        ConfigError: an unknown or old option (the message names the right one), or a wrong type.
    """
    entries = dict(entry for layer in layers for entry in _flatten(layer))
    flags = [argument for argument in arguments if argument.startswith("--")]
    names = [flag[2:].partition("=")[0].replace("-", "_") for flag in flags]
    refuse_renamed([*entries, *names])
    tokens = [token for name, value in entries.items() for token in _flag(name, value)]
    markers = (tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands)
    return parse_options(
        Config, [*tokens, *arguments], "jaxrec train", markers, use_underscores=True
    )


def parse_options(
    options_type: type[Options],
    arguments: Sequence[str],
    program: str,
    markers: Sequence[Any] = (
        tyro.conf.FlagCreatePairsOff,
        tyro.conf.PositionalMetavarFromFieldName,
    ),
    *,
    use_underscores: bool = False,
) -> Options:
    """Command-line arguments as a dataclass; raises a ConfigError if they do not fit.

    Args:
        program: name of the command, for the help.
        markers: of tyro.
        use_underscores: show options as `--item_shards`, not `--item-shards`; both are read.
    """
    console = io.StringIO()
    try:
        with contextlib.redirect_stderr(console):
            return tyro.cli(
                options_type,
                args=arguments,
                prog=program,
                config=tuple(markers),
                use_underscores=use_underscores,
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ConfigError(_plain_text(console.getvalue())) from None


def to_yaml(config: Config) -> str:
    """The configuration as YAML that `read_recipe` reads back."""
    entries = json.loads(json.dumps(asdict(config)))  # YAML has lists, but no tuples
    return yaml.safe_dump(entries, sort_keys=False)


def _flatten(entries: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in entries.items():
        dotted = f"{prefix}{name}"
        if isinstance(value, Mapping) and "." not in dotted:
            yield from _flatten(value, f"{dotted}.")
        else:
            yield dotted, value


def _flag(name: str, value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [f"--{name}", *(str(part) for pair in value.items() for part in pair)]
    values = value if isinstance(value, list | tuple) else [value]
    return [f"--{name}", *map(str, values)]


def _plain_text(message: str) -> str:
    """A message of tyro in one line, without its frame, its title and the help of the option."""
    lines = [line.strip("│╰╯ ") for line in message.splitlines()[1:]]
    # rules are hyphens where the console has only ASCII
    parts = [part.strip(" .") for part in re.split("[─-]{9,}", " ".join(lines))]
    hidden = ("Argument helptext", "For full")
    shown = [part for part in parts if part and not part.startswith(hidden)]
    return re.sub(r"^Error parsing (?!-)\S+: ", "", ". ".join(shown))
