"""JSON files and tables that appear whole or not at all."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import polars as pl

from jaxrec.errors import RunError
from jaxrec.runtime import atomic_path

Format = Literal["parquet", "csv", "jsonl"]
WRITERS: dict[Format, Callable[[pl.DataFrame, Path], None]] = {
    "parquet": pl.DataFrame.write_parquet,
    "csv": pl.DataFrame.write_csv,
    "jsonl": pl.DataFrame.write_ndjson,
}


def refuse_file_on_the_way(path: Path) -> None:
    """Raise a RunError if `path` would lie in a file."""
    for parent in path.parents:
        if parent.is_file():
            raise RunError(f"{path}: {parent} is a file, not a directory; name another path")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    with atomic_path(path) as draft:
        draft.write_text(json.dumps(content, indent=2))


def write_table(table: pl.DataFrame, path: Path) -> None:
    """Write a table atomically, in the format that the suffix of `path` names."""
    write = WRITERS[path.suffix.removeprefix(".")]  # type: ignore[index]
    with atomic_path(path) as draft:
        write(table, draft)
