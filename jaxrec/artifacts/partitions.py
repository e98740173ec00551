"""A directory of part files that a killed job can continue: manifest, parts, _SUCCESS marker."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from jaxrec.artifacts.files import write_json, write_table
from jaxrec.errors import RunError

MANIFEST, SUCCESS = "manifest.json", "_SUCCESS"


@dataclass(frozen=True)
class Partitions:
    """A directory of parts that is being written."""

    directory: Path
    job: dict[str, Any]  # the settings that decide the content of the parts, as JSON values
    done: tuple[dict[str, Any], ...] = ()  # the facts of every finished part

    def write(self, tables: dict[Path, pl.DataFrame], facts: dict[str, Any]) -> "Partitions":
        """Write the files of one part, then record the part in the manifest.

        Args:
            tables: path -> table; the suffix of the path is the format.
            facts: what the manifest records of the part, such as counts.
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
        content = {"job": self.job, "parts": list(self.done)}
        write_json(self.directory / MANIFEST, content | ({"totals": totals} if totals else {}))


def open_partitions(directory: Path, job: dict[str, Any]) -> Partitions:
    """A new directory of parts, or an unfinished one to continue.

    Raises:
        RunError: the directory is complete, holds other files, or belongs to a different job.
    """
    job = json.loads(json.dumps(job))
    directory.mkdir(parents=True, exist_ok=True)
    if not (directory / MANIFEST).is_file():
        refuse_files(directory)
        return _start(directory, job)
    if (directory / SUCCESS).exists():
        raise RunError(f"{directory} is complete and is not overwritten; name another directory")
    old_job, done = _read_manifest(directory)
    if not done:  # the old job failed before its first part, so there is nothing to mix
        return _start(directory, job)
    changes = "; ".join(
        f"{name}: {old!r}, now {new!r}" for name, (old, new) in _differences(old_job, job).items()
    )
    if changes:
        raise RunError(
            f"{directory} holds parts of another job ({changes}). Name another directory, or run "
            "the job with its old settings"
        )
    remove_drafts(directory)
    return Partitions(directory, job, tuple(done))


def begun_job(directory: Path) -> dict[str, Any]:
    """The settings of the job that a directory belongs to; empty if there is no manifest.

    Raises:
        RunError: the manifest is not one of ours.
    """
    return _read_manifest(directory)[0] if (directory / MANIFEST).is_file() else {}


def refuse_files(directory: Path) -> None:
    """Raise a RunError if a directory holds any file."""
    if any(directory.iterdir()):
        raise RunError(f"{directory} is not empty, and its files are kept; name another directory")


def remove_drafts(directory: Path) -> None:
    """Remove the unfinished files of a killed job."""
    for pattern in (".part-*", f".{MANIFEST}*"):
        for draft in directory.glob(pattern):
            shutil.rmtree(draft) if draft.is_dir() else draft.unlink()


def _start(directory: Path, job: dict[str, Any]) -> Partitions:
    partitions = Partitions(directory, job)
    partitions.write_manifest()
    return partitions


def _read_manifest(directory: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The job and the facts of the finished parts."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
        return manifest["job"], manifest["parts"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{directory} holds a {MANIFEST} of something else; name another directory"
        ) from error


def _differences(old: Any, new: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted names of the entries that differ between two nested dictionaries, with both values."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return {} if old == new else {prefix: (old, new)}
    differences: dict[str, tuple[Any, Any]] = {}
    for name in {**old, **new}:
        dotted = f"{prefix}.{name}" if prefix else name
        differences |= _differences(old.get(name), new.get(name), dotted)
    return differences
