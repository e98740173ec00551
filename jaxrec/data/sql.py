"""Connections to DuckDB, and values as SQL."""

import tempfile
from collections.abc import Iterable
from glob import escape
from pathlib import Path

import duckdb


def connect(base: Path = Path(), **limits: str) -> duckdb.DuckDBPyConnection:
    """A connection without a database. File names of queries start from the directory `base`.

    Args:
        limits: options of DuckDB, such as `memory_limit`; those that are "" keep their default.
    """
    limits = {name: value for name, value in limits.items() if value}
    temporary = str(Path(tempfile.gettempdir(), "jaxrec-duckdb"))
    connection = duckdb.connect(config={"temp_directory": temporary, **limits})
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute(f"SET file_search_path = {literal(str(base.absolute()))}")
    return connection


def literal(text: str) -> str:
    """A text value."""
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """The name of a column."""
    return '"' + name.replace('"', '""') + '"'


def file_names(paths: Iterable[Path]) -> str:
    """A list of file names that are no patterns."""
    return "[" + ", ".join(literal(escape(str(path.absolute()))) for path in paths) + "]"
