"""A directory of part files that a killed job can continue: manifest, parts, _SUCCESS marker.

Spark, Athena, DuckDB, Polars and PyArrow read a complete directory as one table. Most of them skip
names that begin with `_` or `.`. Polars skips empty files alone and refuses files of different
endings, so the manifest of Parquet parts ends as a Parquet file without rows, which keeps it in its
metadata.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from jaxrec.artifacts.directories import Directory
from jaxrec.artifacts.files import fill_table
from jaxrec.errors import RunError

MANIFEST, SUCCESS = "_manifest.json", "_SUCCESS"
MANIFEST_TABLE = "_manifest.parquet"
METADATA = "manifest"  # the key of the manifest in the metadata of MANIFEST_TABLE
OLD_MANIFEST = "manifest.json"  # of earlier versions, whose directories no other tool could read


class PartFile(NamedTuple):
    """A file of a part; the suffix of its name gives the format."""

    directory: Directory
    name: str
    table: pl.DataFrame
    metadata: dict[str, str] | None = None  # of a Parquet file


@dataclass(frozen=True)
class Partitions:
    """A directory of parts that a job writes."""

    directory: Directory
    job: dict[str, Any]  # the settings that decide the content of the parts, as JSON values
    started: datetime  # when the job began, also if it is continued
    done: tuple[dict[str, Any], ...] = ()  # the facts of every finished part

    def write(self, files: Sequence[PartFile], facts: dict[str, Any]) -> "Partitions":
        """Write the files of one part, then record the part in the manifest.

        Args:
            facts: the entry of the part in the manifest, such as counts.
        """
        write_files(files)
        return self.record(facts)

    def record(self, facts: dict[str, Any]) -> "Partitions":
        """Put a part whose files are written into the manifest, in the order of the numbers."""
        done = sorted((*self.done, facts), key=lambda part: part_number(part["name"]))
        after = replace(self, done=tuple(done))
        after.write_manifest()
        return after

    @property
    def numbers(self) -> set[int]:
        """The numbers of the finished parts."""
        return {part_number(part["name"]) for part in self.done}

    def finish(self, totals: dict[str, Any]) -> None:
        """Add totals to the manifest and mark the directory as complete."""
        names = self.directory.names()
        parts = [name for name in names if name.startswith("part-") and name.endswith(".parquet")]
        if parts:
            columns = pl.read_parquet(BytesIO(self.directory.read(parts[0]))).clear()
            _write_manifest_table(self.directory, columns, self.manifest(totals))
            self.directory.remove(MANIFEST)
        else:
            self.write_manifest(totals)
        mark_complete(self.directory)

    def write_manifest(self, totals: dict[str, Any] | None = None) -> None:
        """Replace the manifest."""
        _write_manifest_file(self.directory, self.manifest(totals))

    def manifest(self, totals: dict[str, Any] | None = None) -> dict[str, Any]:
        """The job, the facts of its parts and, at the end, totals."""
        started, parts = self.started.isoformat(), list(self.done)
        content = {"job": self.job, "started": started, "parts": parts}
        return content | ({"totals": totals} if totals else {})


def part_name(number: int) -> str:
    """The name of a part, without a suffix."""
    return f"part-{number:05}"


def part_number(name: str) -> int:
    """The number of a part, by its name."""
    return int(name.removeprefix("part-"))


def write_files(files: Sequence[PartFile]) -> None:
    """Write the files of a part; each appears whole or not at all."""
    for directory, name, table, metadata in files:
        directory.write(name, partial(fill_table, table, metadata=metadata))


def open_partitions(directory: Directory, job: dict[str, Any]) -> Partitions:
    """A new directory of parts, or an unfinished one to continue.

    Raises:
        RunError: the directory is complete, holds other files, or belongs to a different job.
    """
    job, names = json.loads(json.dumps(job)), directory.names()
    partitions = Partitions(directory, job, datetime.now(UTC).replace(microsecond=0))
    if not has_manifest(names):
        refuse_files(directory)
    elif SUCCESS in names:
        raise RunError(f"{directory} is complete and is not overwritten; name another directory")
    else:
        manifest = read_manifest(directory)
        changes = "; ".join(_differences(manifest["job"], job))
        if changes and manifest["parts"]:  # without a finished part there is nothing to mix
            raise RunError(
                f"{directory} holds parts of another job ({changes}). Name another directory, or "
                "use the old settings"
            )
        if manifest["parts"]:
            started = datetime.fromisoformat(manifest["started"])
            partitions = replace(partitions, done=tuple(manifest["parts"]), started=started)
        remove_drafts(directory)
    partitions.write_manifest()
    return partitions


def mark_complete(directory: Directory) -> None:
    """Write the marker that all parts are there."""
    directory.write(SUCCESS, Path.touch)


def begun_job(directory: Directory) -> dict[str, Any]:
    """The settings of the job that a directory belongs to; empty if there is no manifest.

    Raises a RunError if the manifest has another form.
    """
    return read_manifest(directory)["job"] if has_manifest(directory.names()) else {}


def has_manifest(names: Sequence[str]) -> bool:
    """Whether one of the files of a directory is a manifest."""
    return not {MANIFEST, MANIFEST_TABLE}.isdisjoint(names)


def refuse_files(directory: Directory) -> None:
    """Raise a RunError if a directory holds any file."""
    names = directory.names()
    if OLD_MANIFEST in names:
        raise RunError(
            f"{directory} is of a job of an earlier version ({OLD_MANIFEST}); name another "
            "directory and start the job again"
        )
    if names:
        raise RunError(f"{directory} is not empty, and its files are kept; name another directory")


def remove_drafts(directory: Directory) -> None:
    """Remove the unfinished files of a killed job."""
    directory.remove_drafts(("part-", "_manifest", SUCCESS))


def read_manifest(directory: Directory) -> dict[str, Any]:
    """The manifest: `job`, `started`, `parts` and, of a complete directory, `totals`.

    Raises:
        RunError: the file has another form.
    """
    name = MANIFEST if MANIFEST in directory.names() else MANIFEST_TABLE
    try:
        content = directory.read(name)
        if name == MANIFEST_TABLE:
            content = pl.read_parquet_metadata(BytesIO(content))[METADATA].encode()
        manifest = json.loads(content)
        return manifest | {key: manifest[key] for key in ("job", "started", "parts")}
    except (ValueError, KeyError, TypeError, pl.exceptions.PolarsError) as error:
        raise RunError(
            f"{directory}: {name} is of something else; name another directory"
        ) from error


def replace_manifest(directory: Directory, manifest: dict[str, Any]) -> None:
    """Write a manifest in place of the one that `read_manifest` returned."""
    if MANIFEST in directory.names():
        _write_manifest_file(directory, manifest)
    else:
        columns = pl.read_parquet(BytesIO(directory.read(MANIFEST_TABLE)))
        _write_manifest_table(directory, columns, manifest)


def _write_manifest_file(directory: Directory, manifest: dict[str, Any]) -> None:
    content = json.dumps(manifest, indent=2)
    directory.write(MANIFEST, lambda draft: draft.write_text(content))


def _write_manifest_table(
    directory: Directory, columns: pl.DataFrame, manifest: dict[str, Any]
) -> None:
    metadata = {METADATA: json.dumps(manifest)}
    directory.write(MANIFEST_TABLE, partial(fill_table, columns, metadata=metadata))


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    """The entries that differ between two nested dictionaries: dotted name and both values."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [f"{name}: {old!r}, now {new!r}"]
    return [
        difference
        for key in {**old, **new}
        for difference in _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    ]
