"""The one atomic writer: a file or a directory appears whole or not at all."""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import polars as pl

Format = Literal["parquet", "csv", "jsonl"]
WRITERS: dict[Format, Callable[[pl.DataFrame, Path], None]] = {
    "parquet": pl.DataFrame.write_parquet,
    "csv": pl.DataFrame.write_csv,
    "jsonl": pl.DataFrame.write_ndjson,
}


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A draft path to write to; the draft replaces `path` when the `with` block ends.

    The draft has the name of `path` and lies in a hidden directory beside it, because a rename is
    atomic within one file system only. If the block raises, the draft is removed and `path` stays
    as it was; a killed process leaves the hidden directory `.NAME.*` behind. Missing parent
    directories are created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as hidden:
        draft = Path(hidden, path.name)
        yield draft
        draft.replace(path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    with atomic_path(path) as draft:
        draft.write_text(json.dumps(content, indent=2))


def write_table(table: pl.DataFrame, path: Path) -> None:
    """Write a table atomically, in the format that the suffix of `path` names."""
    write = WRITERS[path.suffix.removeprefix(".")]  # type: ignore[index]
    with atomic_path(path) as draft:
        write(table, draft)
