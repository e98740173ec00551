"""JSON files and tables that appear whole or not at all, in a directory of one writer."""

import errno
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import polars as pl
from filelock import FileLock, Timeout

from jaxrec.errors import Busy, RunError
from jaxrec.runtime import atomic_path

LOCK = ".lock"
FULL, READ_ONLY = (
    ("no space left at", "make room"),
    ("the file system is read-only at", "make it writable"),
)
UNWRITABLE = {errno.ENOSPC: FULL, errno.EDQUOT: FULL, errno.EROFS: READ_ONLY}

Format = Literal["parquet", "csv", "jsonl"]
WRITERS: dict[Format, Callable[[pl.DataFrame, Path], None]] = {
    "parquet": pl.DataFrame.write_parquet,
    "csv": pl.DataFrame.write_csv,
    "jsonl": pl.DataFrame.write_ndjson,
}


def unwritable(error: BaseException | None) -> tuple[str, str] | None:
    """Why a disk cannot be written and what to do, if an error or one that led to it says so.

    Libraries say it in their own exceptions, whose text holds that of the system.
    """
    while error is not None:
        number = error.errno if isinstance(error, OSError) else None
        for code, reason in UNWRITABLE.items():
            if number == code or os.strerror(code) in str(error):
                return reason
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def explained_disk_full(place: Path | str, fix: Callable[[], str]) -> Iterator[None]:
    """Turn the errors of a full or read-only disk into a RunError with the place and the fix."""
    try:
        yield
    except Exception as error:
        reason = unwritable(error)
        if reason is None:
            raise
        raise RunError(f"{reason[0]} {place}; {reason[1]} and {fix()}") from error


def refuse_url(path: Path) -> None:
    """Raise a RunError if a path to write is that of a URL."""
    if re.match(r"\w+:/", str(path)):  # a Path of s3://bucket is s3:/bucket
        raise RunError(f"{path} is a URL; name a directory of this machine, and copy it afterwards")


def refuse_file_on_the_way(path: Path) -> None:
    """Raise a RunError if `path` would lie in a file."""
    for parent in path.parents:
        if parent.is_file():
            raise RunError(f"{path}: {parent} is a file, not a directory; name another path")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(content, indent=2))


def write_text(path: Path, content: str) -> None:
    """Write a text file atomically, in UTF-8."""
    with atomic_path(path) as draft:
        draft.write_text(content, encoding="utf-8")


def write_table(table: pl.DataFrame, path: Path) -> None:
    """Write a table atomically, in the format that the suffix of `path` names."""
    with atomic_path(path) as draft:
        fill_table(table, draft)


def fill_table(
    table: pl.DataFrame, path: Path, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a table in the format that the suffix of `path` names.

    Args:
        metadata: of a Parquet file; pandas and DuckDB show it.
    """
    if metadata is not None:
        table.write_parquet(path, metadata=dict(metadata))
    else:
        WRITERS[path.suffix.removeprefix(".")](table, path)  # type: ignore[index]


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep other processes from writing to a directory, which is created if missing.

    Raises:
        Busy: another process is writing to it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise Busy(
            f"another process is writing to {directory}; let it end, or name another directory"
        ) from None
    try:
        yield
    finally:
        (directory / LOCK).unlink(missing_ok=True)
        lock.release()
