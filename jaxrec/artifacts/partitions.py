"""A directory of part files that a killed job continues: a manifest, parts, a _SUCCESS marker."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import polars as pl

from jaxrec.errors import RunError

MANIFEST, SUCCESS = "manifest.json", "_SUCCESS"
Format = Literal["parquet", "csv", "jsonl"]
WRITERS: dict[Format, Callable[[pl.DataFrame, Path], None]] = {
    "parquet": pl.DataFrame.write_parquet,
    "csv": pl.DataFrame.write_csv,
    "jsonl": pl.DataFrame.write_ndjson,
}


@dataclass(frozen=True)
class Partitions:
    """A directory that is being written; `done` tells of every finished part."""

    directory: Path
    job: dict[str, Any]  # what decides the bytes of the parts, as JSON has it
    done: tuple[dict[str, Any], ...] = ()

    def write(self, tables: dict[Path, pl.DataFrame], facts: dict[str, Any]) -> "Partitions":
        """Write the files of one part, then tell of it in the manifest.

        Args:
            tables: path -> table; the suffix of the path is the format.
            facts: counts and whatever else there is to say of the part.
        """
        for path, table in tables.items():
            write_table(table, path)
        after = replace(self, done=(*self.done, facts))
        after.write_manifest()
        return after

    def finish(self, totals: dict[str, Any]) -> None:
        """Add totals to the manifest and mark the directory as complete."""
        self.write_manifest(totals)
        (self.directory / SUCCESS).touch()

    def write_manifest(self, totals: dict[str, Any] | None = None) -> None:
        """Replace the manifest."""
        content = {
            "job": self.job,
            "parts": list(self.done),
            **({"totals": totals} if totals else {}),
        }
        _atomically(
            self.directory / MANIFEST, lambda path: path.write_text(json.dumps(content, indent=2))
        )


def open_partitions(directory: Path, job: dict[str, Any]) -> Partitions:
    """A new directory of parts, or one to continue.

    Raises:
        RunError: it is complete, holds something else, or was begun by a different job.
    """
    job = json.loads(json.dumps(job))
    directory.mkdir(parents=True, exist_ok=True)
    if not (directory / MANIFEST).is_file():
        refuse_files(directory)
        return _begin(directory, job)
    if (directory / SUCCESS).exists():
        raise RunError(f"{directory} is complete and not overwritten; name another directory")
    begun_job, done = _begun(directory)
    if not done:  # a job that failed before its first part leaves nothing to mix
        return _begin(directory, job)
    changed = _differences(begun_job, job)
    if changed:
        told = "; ".join(f"{name}: {old!r}, now {new!r}" for name, (old, new) in changed.items())
        raise RunError(
            f"{directory} was begun by another job ({told}); its parts are not mixed. Name another "
            "directory, or repeat the job as it was"
        )
    remove_drafts(directory)
    return Partitions(directory, job, tuple(done))


def begun_job(directory: Path) -> dict[str, Any]:
    """What decides the output of the job that was begun in a directory; empty if none was.

    Raises:
        RunError: the directory holds something else.
    """
    return _begun(directory)[0] if (directory / MANIFEST).is_file() else {}


def _begun(directory: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The job and the finished parts of a manifest."""
    try:
        begun = json.loads((directory / MANIFEST).read_text())
        return begun["job"], begun["parts"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{directory} holds a {MANIFEST} of something else; name another") from error


def refuse_files(directory: Path) -> None:
    """Raise a RunError if a directory holds anything."""
    if any(directory.iterdir()):
        raise RunError(f"{directory} is not empty and nothing of it is overwritten; name another")


def _begin(directory: Path, job: dict[str, Any]) -> Partitions:
    parts = Partitions(directory, job)
    parts.write_manifest()
    return parts


def remove_drafts(directory: Path) -> None:
    """Remove what a killed job left half-written."""
    for pattern in (".part-*", f".{MANIFEST}*"):
        for draft in directory.glob(pattern):
            draft.unlink()


def _differences(old: Any, new: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted names of what differs between two nested dictionaries, with both values."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return {} if old == new else {prefix: (old, new)}
    found: dict[str, tuple[Any, Any]] = {}
    for name in {**old, **new}:
        dotted = f"{prefix}.{name}" if prefix else name
        found |= _differences(old.get(name), new.get(name), dotted)
    return found


def write_table(table: pl.DataFrame, path: Path) -> None:
    """Write a table in the format of the path's suffix; the file appears whole or not at all."""
    write = WRITERS[path.suffix.removeprefix(".")]  # type: ignore[index]
    _atomically(path, lambda draft: write(table, draft))


def _atomically(path: Path, write: Callable[[Path], object]) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    write(draft)
    draft.replace(path)
