"""The separator and the column names of text files, from their first row."""

import csv
from collections.abc import Sequence
from pathlib import Path

import duckdb

from jaxrec.data.columns import reject_same_names
from jaxrec.data.spec import TableSpec
from jaxrec.data.sql import file_names, literal
from jaxrec.errors import DataError

SEPARATORS = ("\t", ";", "|", "::", ",")
UNIT_SEPARATOR = "\x1f"  # is in no text file, so a line is read as one value


def csv_header(
    connection: duckdb.DuckDBPyConnection, files: Sequence[Path], spec: TableSpec
) -> tuple[str, list[str]]:
    """The separator and the column names of text files.

    Raises a DataError if a file has other columns than the first, the first row looks like data,
    or a name occurs twice.
    """
    lines = [_first_line(connection, path, spec.encoding) for path in files]
    first = next((line for line in lines if line is not None), None)
    if first is None:
        raise DataError(f"{files[0]}: the file is empty; it needs a header and rows")
    separator = spec.separator or max(SEPARATORS, key=lambda mark: _outside_quotes(first, mark))
    cells = _cells(first, separator)
    if spec.header:
        if len(spec.header) != len(cells):
            raise DataError(
                f"{files[0]}: `header` names {len(spec.header)} columns, but the first row has "
                f"{len(cells)} values: {first}"
            )
        return separator, list(spec.header)
    for path, line in zip(files, lines, strict=True):
        if line is not None and _cells(line, separator) != cells:
            raise DataError(
                f"{path}: its header ({line}) is not that of {files[0]} ({first}). Write both "
                "with the same columns in the same order"
            )
    if any(_is_number(cell) for cell in cells):
        raise DataError(
            f"{files[0]}: the first row looks like data, not like a header ({first[:80]}). Name "
            "the columns: write a header, or in dataset.yaml `header: [user_id, item_id, ...]`"
        )
    reject_same_names(cells, str(files[0]))
    return separator, cells


def _first_line(connection: duckdb.DuckDBPyConnection, path: Path, encoding: str) -> str | None:
    """The first line of a text file, which may be compressed; None if there is none."""
    row = connection.execute(
        f"SELECT line FROM read_csv({file_names([path])}, auto_detect = false, header = false, "
        f"delim = {literal(UNIT_SEPARATOR)}, quote = '', escape = '', "
        f"encoding = {literal(encoding)}, columns = {{'line': 'VARCHAR'}}) LIMIT 1"
    ).fetchone()
    if row and not row[0]:
        raise DataError(f"{path}: the first line is blank; remove it")
    return row[0] if row else None


def _outside_quotes(line: str, mark: str) -> int:
    return sum(part.count(mark) for part in line.split('"')[::2])


def _cells(line: str, separator: str) -> list[str]:
    if len(separator) > 1:
        return line.split(separator)
    cells = next(csv.reader([line], delimiter=separator))
    # pandas writes its index without a name
    return [cell if cell.strip() else f"unnamed_{number}" for number, cell in enumerate(cells, 1)]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
