"""What a data set consists of: the files or queries of its tables, and what their columns mean."""

import codecs
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from jaxrec.config.parsing import read_yaml, recipes
from jaxrec.data.columns import EventsName
from jaxrec.data.listing import find_table, format_of, is_table_directory
from jaxrec.errors import ConfigError, DataError

SPEC_FILE = "dataset.yaml"
SPEC_SUFFIXES = (".yaml", ".yml")
TABLES = ("events", "items", "triples")
TRIPLE_COLUMNS = ("head_type", "head", "relation", "tail_type", "tail")
ID_COLUMNS = ("user_id", "item_id")
# These columns stay text even if all values look like numbers ("007").
TEXT_COLUMNS = (
    *(*ID_COLUMNS, "event", "event_id", "session_id", *TRIPLE_COLUMNS),
    *("title", "description", "brand", "category", "categories", "merchant"),
)
ENCODINGS = {"utf-8": "utf-8", "utf-16": "utf-16", "iso8859-1": "latin-1"}  # as DuckDB names them
MEMORY_SIZE = r"\d+(\.\d+)? *([KMGT]i?)?B"
SQL_WORDS = ("select ", "select\n", "with ", "with\n", "from ", "from\n")


@dataclass(frozen=True)
class TableSpec:
    """Where a table comes from and what its columns mean.

    Attributes:
        name: events, items or triples.
        base: directory that relative names and the file names of `sql` start from.
        files: files, directories or patterns (`events*.csv.gz`); the rows of several follow each
            other in the order of their names.
        sql: a query in place of `files`: of `database`, or a DuckDB query over files.
        database: URL of a database (see `answer` in `database.py`).
        header: names of the columns of text files whose first row is data.
        separator: separator of text files ("": as the first row shows).
        encoding: encoding of text files.
        columns: jaxrec's name of a column -> its name in the source.
        event_types: event type in the source -> its name; rows of the name "" are left out.
        ratings: event type -> the lowest value of the column `rating` that has it.
        min_rating: rows with a lower `rating` are left out.
        separators: column of items -> what separates the labels of a cell.
        memory_limit: memory of DuckDB while it reads, such as `2GB`; beyond it, a query sorts and
            joins in the directory for temporary files ("": 80 % of the machine's).
    """

    name: str
    base: Path = Path()
    files: tuple[str, ...] = ()
    sql: str = ""
    database: str = ""
    header: tuple[str, ...] = ()
    separator: str = ""
    encoding: str = "utf-8"
    columns: Mapping[str, str] = field(default_factory=dict)
    event_types: Mapping[str, str] = field(default_factory=dict)
    ratings: Mapping[str, float] = field(default_factory=dict)
    min_rating: float | None = None
    separators: Mapping[str, str] = field(default_factory=dict)
    memory_limit: str = ""

    @property
    def path(self) -> Path:
        """The first of the files."""
        return self.base / (self.files[0] if self.files else "")

    @property
    def origin(self) -> str:
        """The name of the table in messages."""
        name = str(self.path) + (" ..." if len(self.files) > 1 else "")
        name = f"{self.name} (query)" if self.sql else name
        return EventsName(name) if self.name == "events" else name


@dataclass(frozen=True)
class DatasetSpec:
    """The tables of a data set."""

    events: TableSpec
    items: TableSpec | None = None
    triples: TableSpec | None = None

    @property
    def origin(self) -> tuple[str, str, str]:
        """The names of the three tables in messages."""
        others = ("" if table is None else table.origin for table in (self.items, self.triples))
        return (self.events.origin, *others)  # type: ignore[return-value]


def dataset_spec(source: Path, layout: str = "", memory_limit: str = "") -> DatasetSpec:
    """What a source consists of.

    Args:
        source: a file or pattern of events, a directory with tables, or a YAML file that describes
            them (see `TableSpec`). A directory may hold that file as `dataset.yaml`.
        layout: name of a layout that jaxrec ships (such as `rees46`), or a YAML file; its file
            names start from the directory `source`.
        memory_limit: of every table (see `TableSpec`); "": as described.

    Raises:
        DataError: the source does not exist, has no events, or its description is not valid.
    """
    spec = _dataset_spec(source, layout)
    if not memory_limit:
        return spec
    limit = _memory_limit(memory_limit, "data.memory_limit")
    given = {name: table for name in TABLES if (table := getattr(spec, name)) is not None}
    return DatasetSpec(**{n: replace(table, memory_limit=limit) for n, table in given.items()})


def _dataset_spec(source: Path, layout: str) -> DatasetSpec:
    if layout:
        path = Path(layout) if Path(layout).suffix in SPEC_SUFFIXES else _shipped(layout)
        return read_spec(path, source)
    if source.suffix in SPEC_SUFFIXES:
        return read_spec(source, source.parent)
    if (source / SPEC_FILE).is_file():
        return read_spec(source / SPEC_FILE, source)
    if not source.is_dir() or is_table_directory(source):
        return DatasetSpec(TableSpec("events", files=(str(source),)))
    paths = {name: find_table(source, name) for name in TABLES}
    if paths["events"] is None:
        names = ", ".join(sorted(path.name for path in source.iterdir())) or "nothing"
        raise DataError(
            f"{source}: no events table (it holds {names}); name it events.parquet, events.csv, "
            f"events.jsonl or NAME.inter, or describe the files in {source / SPEC_FILE}"
        )
    specs = {name: TableSpec(name, source, (path.name,)) for name, path in paths.items() if path}
    return DatasetSpec(**specs)


def read_spec(path: Path, base: Path) -> DatasetSpec:
    """The data set that a YAML file describes; raises a DataError if it is not valid."""
    try:
        content = read_yaml(path)
    except ConfigError as error:
        raise DataError(str(error)) from None
    tables = _mapping(content, str(path))
    _refuse_unknown(tables, TABLES, str(path))
    if "events" not in tables:
        raise DataError(f"{path}: no `events`; name their files, or give a query")
    return DatasetSpec(
        **{name: _table(name, value, base, f"{path}, {name}") for name, value in tables.items()}
    )


def only_file(path: Path) -> Path | None:
    """A file that is not a description, or the only file of a directory without events."""
    if path.is_file():
        return None if path.suffix in SPEC_SUFFIXES else path
    if not path.is_dir():
        return None
    files = [file for file in path.glob("*") if format_of(file) in ("parquet", "csv")]
    described = (path / SPEC_FILE).is_file() or find_table(path, "events") is not None
    if described or len(files) != 1:
        return None
    return files[0] if files[0].is_file() else None


def layouts() -> list[str]:
    """The names of the layouts that jaxrec ships."""
    return sorted(path.stem for path in (recipes() / "layouts").iterdir() if path.suffix == ".yaml")


def _shipped(layout: str) -> Path:
    if layout not in layouts():
        raise DataError(
            f"data.layout: no layout {layout!r}; there are {', '.join(layouts())}. Name one of "
            "them or a YAML file"
        )
    return recipes() / "layouts" / f"{layout}.yaml"


def _table(name: str, value: Any, base: Path, place: str) -> TableSpec:
    if isinstance(value, str) and "://" in value.split()[0]:
        raise DataError(
            f"{place}: for a database, give `database` and a query `sql`; copy other files here"
        )
    if isinstance(value, str):
        value = {"sql" if value.lower().startswith(SQL_WORDS) else "files": value}
    value = dict(_mapping(value, place))
    _refuse_unknown(value, {f.name for f in fields(TableSpec)} - {"name", "base"}, place)
    if ("files" in value) == ("sql" in value):
        raise DataError(f"{place}: give either `files` or `sql`")
    if "database" in value and "sql" not in value:
        raise DataError(f"{place}: `database` needs a query: `sql`")
    for option in ("files", "header"):
        if option in value:
            names = value[option]
            value[option] = tuple(map(str, names if isinstance(names, list) else [names]))
    for option in ("sql", "database", "separator", "encoding", "memory_limit"):
        if not isinstance(value.get(option, ""), str):
            raise DataError(f"{place}: {option} must be text")
    for option in ("columns", "event_types", "separators"):
        pairs = _mapping(value.get(option, {}), f"{place}, {option}").items()
        if any(isinstance(key, bool) for key, _ in pairs):
            raise DataError(f"{place}, {option}: put yes, no, on and off in quotes")
        value[option] = {str(key): "" if name is None else str(name) for key, name in pairs}
    value["memory_limit"] = _memory_limit(value.get("memory_limit", ""), place)
    value["encoding"] = _encoding(value.get("encoding", "utf-8"), place)
    try:
        ratings = _mapping(value.get("ratings", {}), f"{place}, ratings")
        value["ratings"] = {str(key): float(lowest) for key, lowest in ratings.items()}
        if value.get("min_rating") is not None:
            value["min_rating"] = float(value["min_rating"])
    except (TypeError, ValueError):
        raise DataError(f"{place}: ratings and min_rating must be numbers") from None
    return TableSpec(name, base, **value)


def _memory_limit(value: str, place: str) -> str:
    if value and not re.fullmatch(MEMORY_SIZE, value):
        raise DataError(f"{place}: memory_limit {value!r} is no size; write it as 2GB or 500MB")
    return value


def _encoding(value: str, place: str) -> str:
    """DuckDB's name of an encoding."""
    try:
        return ENCODINGS[codecs.lookup(value).name]
    except LookupError:
        raise DataError(
            f"{place}: encoding {value!r} is none of {', '.join(ENCODINGS.values())}; write the "
            f"files in UTF-8: iconv -f {value} -t utf-8 OLD > NEW"
        ) from None


def _mapping(value: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{place}: expected names and values, got {value!r}")
    return value


def _refuse_unknown(value: Mapping[str, Any], known: Any, place: str) -> None:
    if unknown := [str(key) for key in value if key not in known]:
        raise DataError(
            f"{place}: unknown {', '.join(unknown)}; there are {', '.join(sorted(known))}"
        )
