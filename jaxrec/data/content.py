"""The formats of files, by their first bytes: names may be wrong or missing."""

import gzip
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

from jaxrec.data.listing import COMPRESSED, format_of
from jaxrec.errors import DataError

# how compressed files begin
MARKS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
PARQUET = b"PAR1"
UTF_8_MARK, UTF_16 = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")
# how files that are not read begin -> what they are, and the fix
OTHERS = {
    rb"PK\x03\x04": ("a ZIP archive or a spreadsheet", "Unpack it, or export it as CSV"),
    rb"\xd0\xcf\x11\xe0": ("a spreadsheet", "Export it as CSV"),
    rb"BZh[1-9]1AY": ("compressed by bzip2", "Compress it by gzip or zstd"),
    rb"\xfd7zXZ": ("compressed by xz", "Compress it by gzip or zstd"),
    rb"ARROW1\0": ("an Arrow (Feather) file", "Write it as Parquet"),
    rb"ORC[\0-\x1f]": ("an ORC file", "Write it as Parquet"),
    rb"Obj\x01": ("an Avro file", "Write it as Parquet"),
    rb"SQLite format 3\0": ("a database", "Give its `database: sqlite:///FILE` and a query"),
}
NUM_BYTES = 16


def format_of_all(files: Sequence[Path]) -> str:
    """The format of the files of a table: `parquet`, `csv`, `json` or `atomic`.

    Raises a DataError if the files have several formats, or one that is not read.
    """
    formats: dict[str, Path] = {}
    for path in files:
        if path.stat().st_size or format_of(path) is None:
            formats.setdefault(_format(path), path)
    if not formats:
        raise DataError(f"{files[0]}: the file is empty; it needs a header and rows")
    if len(formats) > 1:
        names = " and ".join(map(str, formats.values()))
        raise DataError(f"{files[0].parent}: files of several formats ({names}); use one")
    return next(iter(formats))


def compression_of_all(files: Sequence[Path]) -> str:
    """The compression of text files as DuckDB names it; raises a DataError if there are several."""
    actual = {path: _compression(path) for path in files if path.stat().st_size}
    by_name = {path: COMPRESSED.get(path.suffix.lower(), "none") for path in actual}
    if actual == by_name:
        return "auto_detect"
    if len(set(actual.values())) > 1:
        wrong = next(path for path in actual if actual[path] != by_name[path])
        kind = actual[wrong]
        what = "is not compressed" if kind == "none" else f"is compressed by {kind}"
        raise DataError(f"{wrong}: {what}, which its name does not say; rename it")
    return next(iter(actual.values()))


def is_utf_16(path: Path) -> bool:
    """Whether a file says that it is UTF-16 text."""
    return _first_bytes(path).startswith(UTF_16)


def is_marked_array(path: Path) -> bool:
    """Whether a JSON file is an array behind a byte order mark."""
    first = _first_text(path)
    return first.startswith(UTF_8_MARK) and first.removeprefix(UTF_8_MARK).lstrip()[:1] == b"["


def refuse_other_formats(path: Path) -> None:
    """Raise a DataError that names the format of a file, if it is a known one that is not read."""
    first = _first_bytes(path)
    for start, (kind, fix) in OTHERS.items():
        if re.match(start, first):
            raise DataError(f"{path}: this is {kind}, which is not read. {fix}")


def _format(path: Path) -> str:
    if _first_bytes(path).startswith(PARQUET):
        return "parquet"
    refuse_other_formats(path)
    by_name = format_of(path)
    if by_name is None:
        raise DataError(
            f"{path}: unknown file format; use .parquet, .csv or .jsonl (also .tsv, .json, and "
            ".gz or .zst behind them)"
        )
    return "json" if by_name == "csv" and _starts_json(path) else by_name


def _starts_json(path: Path) -> bool:
    """Whether a text file holds JSON rows, whatever its name says."""
    return _first_text(path).removeprefix(UTF_8_MARK).lstrip().startswith((b'{"', b'[{"'))


def _first_text(path: Path) -> bytes:
    """The first bytes of a text file, which gzip may have compressed."""
    if _compression(path) != "gzip":
        return _first_bytes(path)
    try:
        with gzip.open(path) as file:
            return file.read(NUM_BYTES)
    except (OSError, EOFError, zlib.error):  # the reader raises an error with the reason
        return b""


def _compression(path: Path) -> str:
    first = _first_bytes(path)
    return next((kind for start, kind in MARKS.items() if first.startswith(start)), "none")


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(NUM_BYTES)
