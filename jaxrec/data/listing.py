"""The files of a table: their formats, directories of parts, and patterns."""

import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from jaxrec.errors import DataError
from jaxrec.runtime import path_exists

FORMATS = {
    ".parquet": "parquet",
    **dict.fromkeys((".csv", ".tsv", ".tab", ".txt", ".dat", ".data"), "csv"),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "json"),
    **dict.fromkeys((".inter", ".item", ".kg", ".link"), "atomic"),  # RecBole
}
COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
ATOMIC_SUFFIXES = {"events": ".inter", "items": ".item", "triples": ".kg"}
OTHER_SUFFIXES = (".zip", ".bz2", ".xz", ".xlsx", ".xls", ".feather", ".arrow", ".avro", ".orc")
SHOWN_NAMES = 10
HIDDEN = ("_", ".")
MARKS = "*?["  # of patterns
# formats of tables whose log says which of the files in a directory hold -> where the log is
LOGGED = {"Delta": "_delta_log", "Hudi": ".hoodie", "Iceberg": "metadata/*.metadata.json"}


def format_of(path: Path) -> str | None:
    """`parquet`, `csv`, `json` or `atomic`, by the suffix; None for other files."""
    suffixes = path.suffixes
    if suffixes and suffixes[-1].lower() in COMPRESSED:
        suffixes = suffixes[:-1]
    return FORMATS.get(suffixes[-1].lower()) if suffixes else None


def find_table(directory: Path, name: str) -> Path | None:
    """The file or directory of the table `events`, `items` or `triples` in a directory, or None.

    Raises a DataError if there are several.
    """
    entries = sorted(p for p in directory.iterdir() if not p.name.startswith(HIDDEN))
    named = [path for path in entries if path.name.split(".")[0].lower() == name]
    tables = [path for path in named if _is_table(path) and format_of(path) != "atomic"]
    if not tables:  # the reader names the formats
        tables = [p for p in named if p.is_file() and p.suffix.lower() in OTHER_SUFFIXES]
    tables += [path for path in entries if path.suffix == ATOMIC_SUFFIXES[name]]
    if len(tables) > 1:
        names = " and ".join(path.name for path in tables)
        raise DataError(f"{directory}: more than one table of {name} ({names}); keep one of them")
    return tables[0] if tables else None


def is_table_directory(path: Path) -> bool:
    """Whether a directory holds the parts of one table: `part-...` or `day=...`, as Spark and Hive
    write them, or several files whose names differ only in numbers."""
    if not path.is_dir():
        return False
    names = [entry.name for entry in path.iterdir() if not entry.name.startswith(HIDDEN)]
    alike = {re.sub(r"[0-9a-f-]{8,}|\d+", "#", name) for name in names}
    is_numbered = len(names) > 1 and len(alike) == 1
    is_part = any(name.startswith("part-") or "=" in name for name in names)
    return format_of(path) is not None or is_part or is_numbered


def list_files(base: Path, names: Sequence[str]) -> list[Path]:
    """The files of a table, sorted by name for each entry.

    Names that begin with `_` or `.` are left out of directories and patterns, as other readers do.

    Args:
        base: directory that the names start from.
        names: files, directories (all files inside, also in subdirectories) and patterns.

    Raises:
        DataError: an entry matches no file, or a file and its compressed copy.
    """
    files: list[Path] = []
    for name in names:
        path = base / name
        if path.is_file():
            matches = [path]
        elif path.is_dir():
            _refuse_logged(path)
            matches = _matches(path, "**/*")
        else:
            root = _root(path)
            matches = _matches(root, str(path.relative_to(root)))
        if not matches and path.is_dir():
            raise DataError(f"{path}: the directory holds no file")
        if not matches and path_exists(path):
            raise DataError(f"{path}: a pipe or device, which is read once; write it to a file")
        if not matches:
            raise DataError(f"{path}: no such file{neighbours(path)}")
        files += matches
    _refuse_copies(files)
    return files


def has_partitions(base: Path, names: Sequence[str], files: Sequence[Path]) -> bool:
    """Whether files of a table lie in directories of its own such as `day=2024-01-31`.

    Directories above the table say nothing about its rows.

    Args:
        base: see `list_files`.
        names: see `list_files`.
        files: what `list_files` gives.
    """
    roots = {_root(base / name) for name in names}
    below = (
        file.relative_to(root) for root in roots for file in files if file.is_relative_to(root)
    )
    return any("=" in part for path in below for part in path.parts[:-1])


def is_pattern(name: str) -> bool:
    """Whether a name stands for several files."""
    return any(mark in name for mark in MARKS) and not path_exists(name)


def neighbours(path: Path) -> str:
    """What the directory of a missing file holds, in brackets."""
    if not path.parent.is_dir():
        return f" (there is no directory {path.parent})"
    names = sorted(entry.name for entry in path.parent.iterdir() if entry.suffix)
    more = ", ..." if len(names) > SHOWN_NAMES else ""
    return f" ({path.parent} holds {', '.join(names[:SHOWN_NAMES])}{more})" if names else ""


def _refuse_logged(directory: Path) -> None:
    """Raise a DataError if only a log tells which files of a directory are rows of today."""
    for name, log in LOGGED.items():
        if any(directory.glob(log)):
            raise DataError(
                f"{directory}: this is a {name} table, and its files also hold rows that were "
                "changed or deleted. Write its rows as plain Parquet, or list the `files` that hold"
            )


def _root(path: Path) -> Path:
    """The directory below which the files that a name stands for lie."""
    if path.is_dir():
        return path
    fixed = takewhile(lambda part: not any(mark in part for mark in MARKS), path.parts[:-1])
    return path.parent if path.is_file() else Path(*fixed)


def _matches(root: Path, pattern: str) -> list[Path]:
    """The files below a directory that match a pattern, sorted, without hidden ones."""
    found = (path for path in root.glob(pattern) if path.is_file())
    return sorted(path for path in found if not _is_hidden(path.relative_to(root)))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(HIDDEN) for part in path.parts)


def _refuse_copies(files: Sequence[Path]) -> None:
    """Raise a DataError if a file is there twice, once of them compressed."""
    present = set(files)
    for file in files:
        plain = file.with_suffix("")
        if file.suffix.lower() in COMPRESSED and plain in present:
            raise DataError(
                f"{file}: {plain.name} is there too, and the rows of both would count; leave one "
                "of them out"
            )


def _is_table(path: Path) -> bool:
    if path.is_dir():
        return any(entry.is_file() for entry in path.rglob("*"))
    return format_of(path) is not None
