"""How text files are written: separator, names of columns and more, from their first lines."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb

from jaxrec.data.columns import reject_same_names
from jaxrec.data.content import compression_of_all, is_utf_16
from jaxrec.data.spec import TableSpec
from jaxrec.data.sql import file_names, literal
from jaxrec.errors import DataError

SEPARATORS = ("\t", ";", "|", "::", "\x01", ",")
# These stand in names too, so they separate only if a known name results.
RARE_SEPARATORS = (" ", "~", "^", ":", "/")
KNOWN_NAMES = ("user_id", "item_id")
UNIT_SEPARATOR = "\x1f"  # is in no text file, so a line is read as one value
NUM_FIRST_LINES = 20


@dataclass(frozen=True)
class CsvForm:
    """How the text files of a table are written.

    Attributes:
        separator: between the values of a row.
        names: of the columns.
        quote: mark around values that hold a separator.
        num_skipped: number of lines before the header.
        encoding: as DuckDB names it.
        compression: as DuckDB names it.
    """

    separator: str
    names: tuple[str, ...]
    quote: str
    num_skipped: int
    encoding: str
    compression: str


def csv_form(
    connection: duckdb.DuckDBPyConnection, files: Sequence[Path], spec: TableSpec
) -> CsvForm:
    """How text files are written, as their first lines show.

    Before the header may stand a line `sep=;`, as spreadsheets write it, and comments: lines that
    begin with `#` and have other columns.

    Raises a DataError if a file has other columns than the first, the first row looks like data,
    or a name occurs twice.
    """
    first_file = next((path for path in files if path.stat().st_size), files[0])
    encoding = "utf-16" if is_utf_16(first_file) else spec.encoding
    compression = compression_of_all(files)
    heads = [_head(connection, path, encoding, compression) for path in files]
    head = next((head for head in heads if head is not None), None)
    if head is None:
        raise DataError(f"{files[0]}: the file is empty; it needs a header and rows")
    separator = spec.separator or head.separator or _separator(head.line)
    quote = "'" if _is_quoted_by(head.line, "'", separator) else '"'
    cells = _cells(head.line, separator, quote)
    form = CsvForm(separator, tuple(cells), quote, head.num_skipped, encoding, compression)
    if spec.header:
        if len(spec.header) != len(cells):
            raise DataError(
                f"{files[0]}: `header` names {len(spec.header)} columns, but the first row has "
                f"{len(cells)} values: {head.line}"
            )
        reject_same_names(list(spec.header), f"{spec.origin}, `header`")
        return replace(form, names=spec.header)
    for path, other in zip(files, heads, strict=True):
        if other is not None and (
            _cells(other.line, separator, quote) != cells or other.num_skipped != head.num_skipped
        ):
            raise DataError(
                f"{path}: its header ({other.line}) is not that of {files[0]} ({head.line}). Write "
                "both with the same columns in the same order"
            )
    if any(_is_value(cell) for cell in cells):
        raise DataError(
            f"{files[0]}: the first row looks like data, not like a header ({head.line[:80]}). "
            "Name the columns: write a header, or in dataset.yaml `header: [user_id, item_id, ...]`"
        )
    reject_same_names(cells, str(files[0]))
    return form


@dataclass(frozen=True)
class _Head:
    """The header of a file, the number of lines before it, and the separator that these name."""

    line: str
    num_skipped: int
    separator: str


def _head(
    connection: duckdb.DuckDBPyConnection, path: Path, encoding: str, compression: str
) -> _Head | None:
    """The header of a text file, which may be compressed; None if it has no lines."""
    rows = connection.execute(
        f"SELECT line FROM read_csv({file_names([path])}, auto_detect = false, header = false, "
        f"delim = {literal(UNIT_SEPARATOR)}, quote = '', escape = '', "
        f"encoding = {literal(encoding)}, compression = {literal(compression)}, "
        # as values in quotes may hold other line ends than the file
        f"strict_mode = false, columns = {{'line': 'VARCHAR'}}) LIMIT {NUM_FIRST_LINES}"
    ).fetchall()
    lines = [line or "" for (line,) in rows]
    if not lines:
        return None
    if not lines[0]:
        raise DataError(f"{path}: the first line is blank; remove it")
    named = re.fullmatch(r"sep=(.)", lines[0])
    if named and len(lines) > 1:
        return _Head(lines[1], 1, named[1])
    num_comments = next(
        (number for number, line in enumerate(lines) if not line.startswith("#")), 0
    )
    header = lines[num_comments]
    separator = _separator(header)
    is_comment = header.count(separator) != lines[0].count(separator) or header in KNOWN_NAMES
    return _Head(header, num_comments, "") if is_comment else _Head(lines[0], 0, "")


def _separator(line: str) -> str:
    best = max(SEPARATORS, key=lambda mark: _outside_quotes(line, mark))
    if _outside_quotes(line, best):
        return best
    for mark in RARE_SEPARATORS:
        if any(cell.strip("\"' ").lower() in KNOWN_NAMES for cell in line.split(mark)[1:]):
            return mark
    return ","


def _outside_quotes(line: str, mark: str) -> int:
    return sum(part.count(mark) for part in line.split('"')[::2])


def _is_quoted_by(line: str, quote: str, separator: str) -> bool:
    cells = [cell.strip() for cell in line.split(separator)]
    return all(len(cell) > 1 and cell[0] == cell[-1] == quote for cell in cells)


def _cells(line: str, separator: str, quote: str) -> list[str]:
    if len(separator) > 1:
        return line.split(separator)
    cells = next(csv.reader([line], delimiter=separator, quotechar=quote))
    # pandas writes its index without a name
    return [cell if cell.strip() else f"unnamed_{number}" for number, cell in enumerate(cells, 1)]


def _is_value(cell: str) -> bool:
    """Whether a cell is a number or a time, as no name is."""
    if re.match(r"\d{4}-\d\d-\d\d", cell):
        return True
    try:
        float(cell)
    except ValueError:
        return False
    return True
