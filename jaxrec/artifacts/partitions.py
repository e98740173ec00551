"""A directory of part files that a killed job can continue: manifest, parts, _SUCCESS marker."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from jaxrec.artifacts.files import LOCK, refuse_file_on_the_way, write_json, write_table
from jaxrec.errors import RunError
from jaxrec.runtime import sync

MANIFEST, SUCCESS = "manifest.json", "_SUCCESS"


@dataclass(frozen=True)
class Partitions:
    """A directory of parts that a job writes."""

    directory: Path
    job: dict[str, Any]  # the settings that decide the content of the parts, as JSON values
    done: tuple[dict[str, Any], ...]  # the facts of every finished part

    def write(self, tables: dict[Path, pl.DataFrame], facts: dict[str, Any]) -> "Partitions":
        """Write the files of one part, then record the part in the manifest.

        Args:
            tables: by path; the suffix of a path names the format.
            facts: the entry of the part in the manifest, such as counts.
        """
        for path, table in tables.items():
            write_table(table, path)
        after = replace(self, done=(*self.done, facts))
        after.write_manifest()
        return after

    def finish(self, totals: dict[str, Any]) -> None:
        """Add totals to the manifest and mark the directory as complete."""
        self.write_manifest(totals)
        mark_complete(self.directory)

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
    refuse_file_on_the_way(directory)
    directory.mkdir(parents=True, exist_ok=True)
    done: list[dict[str, Any]] = []
    if not (directory / MANIFEST).is_file():
        refuse_files(directory)
    elif (directory / SUCCESS).exists():
        raise RunError(f"{directory} is complete and is not overwritten; name another directory")
    else:
        old_job, done = _read_manifest(directory)
        changes = "; ".join(_differences(old_job, job))
        if changes and done:  # without a finished part there is nothing to mix
            raise RunError(
                f"{directory} holds parts of another job ({changes}). Name another directory, or "
                "use the old settings"
            )
        remove_drafts(directory)
    partitions = Partitions(directory, job, tuple(done))
    partitions.write_manifest()
    return partitions


def mark_complete(directory: Path) -> None:
    """Write the marker that all parts are there."""
    (directory / SUCCESS).touch()
    sync(directory)


def begun_job(directory: Path) -> dict[str, Any]:
    """The settings of the job that a directory belongs to; empty if there is no manifest.

    Raises a RunError if the manifest has another form.
    """
    return _read_manifest(directory)[0] if (directory / MANIFEST).is_file() else {}


def refuse_files(directory: Path) -> None:
    """Raise a RunError if a directory holds any file."""
    if any(path.name != LOCK for path in directory.iterdir()):
        raise RunError(f"{directory} is not empty, and its files are kept; name another directory")


def remove_drafts(directory: Path) -> None:
    """Remove the unfinished files of a killed job."""
    for pattern in (".part-*", f".{MANIFEST}*"):
        for draft in directory.glob(pattern):
            shutil.rmtree(draft) if draft.is_dir() else draft.unlink()


def _read_manifest(directory: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The job and the facts of the finished parts."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
        return manifest["job"], manifest["parts"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{directory}: {MANIFEST} is of something else; name another directory"
        ) from error


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    """The entries that differ between two nested dictionaries: dotted name and both values."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [f"{name}: {old!r}, now {new!r}"]
    return [
        difference
        for key in {**old, **new}
        for difference in _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    ]
