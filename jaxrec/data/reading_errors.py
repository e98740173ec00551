"""Errors of DuckDB and of the file system, in words that name file, row and fix."""

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

import duckdb
import polars as pl
import pyarrow

from jaxrec.data.columns import SHOWN_WIDTH
from jaxrec.data.content import compression_of_all, is_utf_16
from jaxrec.data.listing import neighbours
from jaxrec.data.spec import TableSpec
from jaxrec.errors import DataError
from jaxrec.runtime import DEBUG, HIDDEN, personal

SAMPLE = 2**20  # bytes that are searched for line ends
# how messages of DuckDB begin
OF_DUCKDB = re.compile(r"(got external error: )?(?=[A-Z][\w ]+ Error: )")
OUT_OF_MEMORY = "Out of Memory Error"
# such messages quote values of the table
VALUE_ERRORS = ("Conversion Error", "Invalid Input Error", "Out of Range Error")
DAMAGED = (OSError, EOFError, zlib.error)
QUOTE_FIX = "Write quotes inside quotes twice, or read the file by a query with read_csv"


@contextmanager
def readable(spec: TableSpec) -> Iterator[None]:
    """Turn the errors of DuckDB and of the file system into a DataError that names the file."""
    try:
        yield
    except duckdb.Error as error:
        raise _as_data_error(str(error), spec) from error
    except (
        *(pyarrow.ArrowException, pl.exceptions.ComputeError),
        *(OSError, UnicodeError, zlib.error),
    ) as error:
        text = str(error).strip()
        if begin := OF_DUCKDB.match(text):  # of a batch that is not the first
            raise _as_data_error(text[begin.end() :], spec) from error
        raise _unreadable(spec.path, text.splitlines()[0]) from error


def _as_data_error(text: str, spec: TableSpec) -> DataError:
    """What a message of DuckDB tells."""
    if text.startswith(OUT_OF_MEMORY):
        return DataError(
            f"{spec.origin}: DuckDB needs more memory than its limit ({text.splitlines()[0]}); "
            "raise memory_limit in dataset.yaml or --data.memory_limit"
        )
    if missing := re.search(r'No files found that match the pattern "(.+?)"', text):
        path = spec.base / missing[1]
        return DataError(f"{spec.origin}: {path}: no such file{neighbours(path)}")
    message = text
    if spec.name == "events" and text.startswith(VALUE_ERRORS) and not os.environ.get(DEBUG):
        message = _without_values(text)
    if spec.sql:
        return DataError(f"{spec.origin}: {' '.join(message.split())}")
    named = re.search(r"[Ff]ile = (.+)|[Ff]ile \"(.+?)\"|File '(.+?)'|stream: (.+)", text)
    file = Path(next(filter(None, named.groups()))) if named else spec.base / spec.files[0]
    csv_error = re.search(r"CSV Error on Line: (\d+)\n(?:Original Line: (.*))?", text)
    line = (csv_error[2] or "") if csv_error else ""
    line = f"{line[:SHOWN_WIDTH]} ..." if len(line) > SHOWN_WIDTH else line
    line = personal(line) if spec.name == "events" else line
    if "JSON" in text and is_utf_16(file):
        reason = "it is UTF-16 text"
    elif "Malformed JSON" in text:
        reason = _broken_row(file)
    elif "CSV" in text and not csv_error and _has_mixed_ends(file):
        reason = "its lines end in \\r\\n and in \\n; write all ends alike"
    elif csv_error and "unicode" in text:
        return DataError(
            f"{file}: line {csv_error[1]} is not {spec.encoding} text; write the file again in "
            "UTF-8, or name its `encoding` (latin-1, utf-16) in dataset.yaml"
        )
    elif csv_error and "Maximum line size" in text:
        reason = f"line {csv_error[1]} is longer than 2 MB: {line}. {QUOTE_FIX}"
    elif csv_error and "unterminated quote" in text:
        reason = f"a quote in line {csv_error[1]} is not closed: {line}. {QUOTE_FIX}"
    elif csv_error:
        reason = f"line {csv_error[1]} does not fit the header: {line}"
    else:
        reason = message.splitlines()[0]
    return _unreadable(file, reason)


def _without_values(text: str) -> str:
    """What a message of DuckDB says first, without the row and the values that it quotes."""
    text = re.sub(r"Original Line: .*|^.*\n\s*\^$", HIDDEN, text, flags=re.MULTILINE)
    quoted = r"(column )?(\"[^\"\n]*\"|'[^'\n]*')"
    return re.sub(quoted, lambda part: part[0] if part[1] else HIDDEN, text.split("\n\n")[0])


def _unreadable(file: Path, reason: str) -> DataError:
    coding = "" if file.suffix == ".parquet" else " in UTF-8"
    return DataError(
        f"{file}: cannot be read ({reason}); write it again as valid {file.suffix}{coding}"
    )


def _broken_row(path: Path) -> str:
    """The first row of a JSON file that is no JSON."""
    with suppress(*DAMAGED), _as_text(path) as lines:
        for row, line in enumerate(lines, 1):
            line = line.lstrip("\ufeff")
            if row == 1 and line.lstrip().startswith("["):
                return _broken_array(line + lines.read())
            try:
                json.loads(line.strip() or "null")
            except ValueError as error:
                is_cut = not line.endswith("\n") and not line.rstrip().endswith("}")
                return f"row {row} is cut off" if is_cut else f"row {row}: {error}"
    return "it is no JSON"


def _broken_array(text: str) -> str:
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return f"line {error.lineno}, column {error.colno}: {error.msg}"
    return "it is no JSON array of rows"


def _has_mixed_ends(path: Path) -> bool:
    try:
        with _as_text(path) as lines:
            text = lines.read(SAMPLE)
    except DAMAGED:
        return False
    return 0 < text.count("\r\n") < text.count("\n")


def _as_text(path: Path) -> TextIO:
    is_gzip = compression_of_all([path]) == "gzip" or path.suffix == ".gz"
    opened = gzip.open if is_gzip else open
    return opened(path, "rt", encoding="utf-8", errors="replace", newline="")
