"""Nested dataclasses and named tuples of arrays in one `.npz` file, read without pickle."""

import json
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

STRUCTURE = "structure"  # the array with the JSON of what is no array
MODULES = ("jaxrec.", "jraph.", "accelerator_rows")  # whose classes a file may name


def write(path: Path, value: Any) -> None:
    """Write dataclasses, tuples, named or not, and dictionaries of arrays and JSON values.

    Raises a TypeError for other values.
    """
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
    if names := _field_names(type(value)):
        kind = type(value)
        parts = {name: _described(getattr(value, name), arrays) for name in names}
        return {"class": [kind.__module__, kind.__qualname__], "fields": parts}
    if isinstance(value, tuple):
        return {"tuple": [_described(entry, arrays) for entry in value]}
    if isinstance(value, dict):
        return {"dict": [[name, _described(entry, arrays)] for name, entry in value.items()]}
    raise TypeError(f"{type(value)} is neither an array, a dataclass nor a value of JSON")


def _field_names(kind: Any) -> tuple[str, ...]:
    """The fields of a dataclass or of a named tuple; empty for others."""
    if is_dataclass(kind):
        return tuple(field.name for field in fields(kind))
    return getattr(kind, "_fields", ()) if isinstance(kind, type) else ()


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
            if not _field_names(kind):
                raise ValueError(f"{module}.{name} is no dataclass of {', '.join(MODULES)}")
            return kind(**{name: _restored(part, arrays) for name, part in parts.items()})
    return described
