"""YAML recipes and command-line arguments to a `Config`.

The entries of a recipe become arguments before those of the user, so tyro alone checks types.
"""

import contextlib
import io
import json
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

import tyro
import yaml

from jaxrec.config.help import RULES, escaped
from jaxrec.config.options import Config
from jaxrec.config.renamed import VALUES, refuse_renamed
from jaxrec.errors import ConfigError, Interrupted

Options = TypeVar("Options")


def _option_types(options: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, kind in get_type_hints(options).items():
        if is_dataclass(kind):
            yield from _option_types(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", kind


TYPES = dict(_option_types(Config))
"""The type of every option by its dotted name."""
GROUPS = {name.rpartition(".")[0] for name in TYPES}
"""What holds options: the sections, and groups of options in them."""
ONE_PARSER = threading.Lock()  # tyro and `redirect_stderr` change what all threads share
NO_VALUES = (Mapping, list, tuple, set, type(None))
FLAGS = (
    "config",
    "data",
    "run",
    "resume",
    "from",
    "since",
    "init",
    "init-parts",
    "id-key",
    "help",
)  # of `jaxrec train`, beside the options


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
        ConfigError: the recipe does not exist, is not a mapping, or is its own base; an option is
            unknown, has its old name, or has a value of another form.
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
    inherited = {}
    if "base" in entries:
        base = entries.pop("base")
        if not isinstance(base, str):
            raise ConfigError(f"{path}: base must be a YAML file or the name of a recipe")
        inherited = read_recipe(base, chain)
    return {**inherited, **_checked(entries, str(path))}


def read_yaml(path: Path) -> Any:
    """The content of a file; raises a ConfigError if it is missing or not YAML in UTF-8."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text") from None
    except OSError:
        raise
    except Exception as error:  # impossible dates, long numbers and deep lists raise their own
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error


def parse(arguments: Sequence[str] = (), layers: Sequence[Mapping[str, Any]] = ()) -> Config:
    """The configuration of layers of entries, with command-line arguments on top.

    Prints the help and exits if the arguments ask for it.

    Args:
        layers: entries with nested or dotted names; later layers win.

    Raises:
        ConfigError: an unknown or old option (the message names the right one), or a wrong type.
    """
    entries = {name: value for layer in layers for name, value in _checked(layer).items()}
    flags = [argument for argument in arguments if argument.startswith("--")]
    names = [flag[2:].partition("=")[0].replace("-", "_") for flag in flags]
    _refuse_unknown([name for name in names if name != "help"])
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
        with ONE_PARSER, contextlib.redirect_stderr(console):
            return tyro.cli(
                options_type,
                args=arguments,
                prog=program,
                config=(*markers, tyro.conf.DisallowNone),
                use_underscores=use_underscores,
                registry=RULES,
            )
    except Interrupted:  # a SystemExit too
        raise
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ConfigError(_plain_text(console.getvalue())) from None


def to_yaml(config: Config) -> str:
    """The configuration as YAML that `read_recipe` reads back."""
    entries = json.loads(json.dumps(asdict(config)))  # YAML has lists, but no tuples
    return yaml.safe_dump(entries, sort_keys=False)


def _checked(entries: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """Entries by their dotted names; raises a ConfigError unless they are options."""
    flat = dict(_flatten(entries))
    _refuse_unknown(flat, place)
    for name in VALUES.keys() & flat.keys():
        if isinstance(flat[name], bool):
            flat[name] = VALUES[name][flat[name]]
    for name, value in flat.items():
        kind = get_origin(TYPES[name])
        match value:
            case Mapping():
                fits, parts = kind is dict, list(value.values())
            case list() | tuple():
                fits, parts = kind is tuple, list(value)
            case _:
                fits, parts = kind is not dict, [value]
        if not fits or any(isinstance(part, NO_VALUES) for part in parts):
            form = {dict: "NAME: VALUE entries", tuple: "a list of values"}.get(kind, "one value")
            prefix = f"{place}: " if place else ""
            raise ConfigError(f"{prefix}{name} must be {form}, not {str(value)[:60]}")
    return flat


def _refuse_unknown(names: Iterable[str], place: str = "") -> None:
    """Raise a ConfigError with the nearest options if a name is not that of an option."""
    names = list(names)
    refuse_renamed(names, place)
    for name in names:
        if name not in TYPES:
            known = [option for option in (*FLAGS, *TYPES) if option != name]
            near = [option for option in TYPES if name in option.split(".")]
            near = (near or get_close_matches(name, known))[:3]
            hint = f"did you mean {' or '.join(f'--{option}' for option in near)}?"
            hint = hint if near else "jaxrec train --help shows all"
            prefix = f"{place}: " if place else ""
            raise ConfigError(f"{prefix}there is no option {name}; {hint}")


def _flatten(entries: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in entries.items():
        dotted = f"{prefix}{name}"
        if isinstance(value, Mapping) and ("." not in dotted or dotted in GROUPS):
            yield from _flatten(value, f"{dotted}.")
        else:
            yield dotted, value


def _flag(name: str, value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [f"--{name}", *(escaped(part) for pair in value.items() for part in pair)]
    values = value if isinstance(value, list | tuple) else [value]
    return [f"--{name}", *map(escaped, values)]


def _plain_text(message: str) -> str:
    """A message of tyro without its frame, its title and the help of options; an option a line."""
    text = "".join(f"\n{line[2:].rstrip('│ ')}" for line in message.splitlines()[1:])
    # rules are hyphens where the console has only ASCII
    blocks = re.split(r"\n *[─-]{9,}╯?(?=\n|$)", text)
    blocks = [re.sub(r"\n {5,}.*", "", block) for block in blocks]
    blocks = [re.sub(r"\n(?! {4})", " ", block).strip(" .") for block in blocks]
    hidden = ("Argument helptext", "For full")
    shown = ""
    for block in blocks:
        if block and not block.startswith(hidden):
            shown += block if not shown else f"\n{block}" if "\n" in shown else f". {block}"
    shown = re.sub(r"^Error parsing (?!-)\S+: ", "", shown.replace("\n    ", "\n  "))
    return shown.replace("Failed to parse key-value pairs!", "write NAME NUMBER, such as view 0.5")
