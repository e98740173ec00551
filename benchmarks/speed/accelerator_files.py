"""Nested dataclasses of arrays in one `.npz` file, which is read without pickle."""

import json
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

STRUCTURE = "structure"  # the array with the JSON of what is no array
MODULES = ("jaxrec.", "accelerator_rows")  # whose dataclasses a file may name


def write(path: Path, value: Any) -> None:
    """Write dataclasses, tuples and dictionaries of arrays and JSON values; raises a TypeError for
    others."""
    arrays: dict[str, np.ndarray] = {}
    structure = json.dumps(_described(value, arrays))
    np.savez_compressed(path, **{STRUCTURE: np.asarray(structure)}, **arrays)


def read(path: Path) -> Any:
    """What `write` has written; raises a ValueError for a file that names another class."""
    with np.load(path, allow_pickle=False) as arrays:
        return _restored(json.loads(str(arrays[STRUCTURE])), dict(arrays))


def _described(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray | np.generic):
        name = f"array{len(arrays)}"
        arrays[name] = np.asarray(value)
        return {"array": name}
    if isinstance(value, tuple):
        return {"tuple": [_described(entry, arrays) for entry in value]}
    if isinstance(value, dict):
        return {"dict": [[name, _described(entry, arrays)] for name, entry in value.items()]}
    if is_dataclass(value):
        kind = type(value)
        parts = {f.name: _described(getattr(value, f.name), arrays) for f in fields(value)}
        return {"class": [kind.__module__, kind.__qualname__], "fields": parts}
    raise TypeError(f"{type(value)} is neither an array, a dataclass nor a value of JSON")


def _restored(described: Any, arrays: dict[str, np.ndarray]) -> Any:
    match described:
        case {"array": name}:
            return arrays[name]
        case {"tuple": entries}:
            return tuple(_restored(entry, arrays) for entry in entries)
        case {"dict": pairs}:
            return {name: _restored(entry, arrays) for name, entry in pairs}
        case {"class": [module, name], "fields": parts}:
            kind = getattr(import_module(module), name) if module.startswith(MODULES) else None
            if not is_dataclass(kind):
                raise ValueError(f"{module}.{name} is no dataclass of {', '.join(MODULES)}")
            return kind(**{name: _restored(part, arrays) for name, part in parts.items()})
    return described
