"""JSON files and tables that appear whole or not at all, in a directory of one writer."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import polars as pl
from filelock import FileLock, Timeout

from jaxrec.errors import RunError
from jaxrec.runtime import atomic_path

LOCK = ".lock"

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


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep other processes from writing to a directory, which is created if missing.

    Raises:
        RunError: another process is writing to it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(
            f"another process is writing to {directory}; let it end, or name another directory"
        ) from None
    try:
        yield
    finally:
        (directory / LOCK).unlink(missing_ok=True)
        lock.release()
