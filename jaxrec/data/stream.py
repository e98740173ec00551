"""Events files of any size, read as blocks of whole users in bounded memory."""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from glob import escape
from itertools import pairwise
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
from jaxtyping import UInt32

from jaxrec.data.columns import MILLISECONDS_FROM, as_ids, reject_same_names, require
from jaxrec.data.files import csv_header, read_table, unreadable
from jaxrec.data.sources import is_invoice_table, read_invoice_events
from jaxrec.data.tables import TimeKind, validate_tables
from jaxrec.errors import DataError, InputError

REQUIRED_COLUMNS = ("user_id", "item_id", "timestamp")
COLUMNS = (*REQUIRED_COLUMNS, "event", "event_id", "session_id")
ROW = "row"  # column with the file order, while events are sorted
# Memory of DuckDB. Merging on disk needs more of it the longer a file is.
MIN_MEMORY = 512 * 1024**2  # bytes
BYTES_PER_ROW = 16
THREADS = 2  # each one needs its part of the memory


@dataclass(frozen=True)
class EventStream:
    """The events of a file, as blocks of whole users."""

    path: Path  # the name of the file in messages
    source: pl.LazyFrame  # rows in file order, not yet read
    users_per_block: int  # the last block may have fewer users
    time: TimeKind
    event_types: tuple[str, ...]  # a single one fills in for a missing column `event`
    keep: pl.Series | None  # ids (unique strings) of the users to read; None: all users
    rows_per_batch: int  # number of rows to read at a time
    grouped: bool  # whether the rows of every user to read are contiguous
    num_rows: int  # number of rows of the users to read
    notes: tuple[str, ...]  # sentences about sorting and about users in `keep` without events

    def blocks(self) -> Iterator[pl.DataFrame]:
        """Validated events (columns as in `Tables.events`), `users_per_block` users at a time.

        The events of a user keep their file order. So do the users of a grouped file; otherwise
        they are sorted by the bytes of their ids. Blocks do not depend on `rows_per_batch`. Memory
        holds one batch (of a Parquet file: at least one row group), one block and, while an
        ungrouped file is sorted, the larger of `MIN_MEMORY` and `BYTES_PER_ROW` times its rows. The
        rest lies in a temporary directory (see TMPDIR).

        Timestamps are milliseconds or positions: do not validate them again. Repeats of an event_id
        are dropped within a batch or block only.

        Raises:
            DataError: as `validate_tables`, with the first row of the batch; the file is
                unreadable.
        """
        events = _validated(self)
        if not self.grouped:
            events = _sorted_by_user(events, self.rows_per_batch)
        for block in _whole_users(events, self.users_per_block):
            if "event_id" in block.columns:  # its repeats may have been in different batches
                name = f"{self.path}, block from user {block['user_id'][0]!r}"
                # the timestamps are milliseconds already, so they pass as positions
                block = _validate(block, name, "order")
            yield block


def open_events(
    path: Path,
    users_per_block: int,
    *,
    time: TimeKind = "timestamp",
    event_types: tuple[str, ...] = (),
    keep: pl.Series | None = None,
    rows_per_batch: int = 1_000_000,
) -> EventStream:
    """Read the user ids of an events file and decide how to stream its events.

    Parquet, CSV and JSON lines are read in batches. RecBole's atomic files and invoice files (see
    `load_source`) are read as a whole.

    Args:
        path: see `EventStream`.
        users_per_block: see `EventStream`.
        time: see `EventStream`.
        event_types: see `EventStream`.
        keep: ids (text or integers) of the users to read; the events of others are validated too.
        rows_per_batch: see `EventStream`.

    Raises:
        DataError: the file is unreadable or has no rows; a column is missing or occurs twice; a
            user id is null, empty or of the wrong type.
        InputError: `users_per_block` or `rows_per_batch` is not positive.
    """
    if users_per_block < 1 or rows_per_batch < 1:
        raise InputError("users_per_block and rows_per_batch must be at least 1")
    if keep is not None:
        keep = as_ids(keep, "the users to keep").unique(maintain_order=True)
    with unreadable(path):
        source = _scan(path)
        schema = source.collect_schema()
    reject_same_names(schema.names(), str(path))
    if is_invoice_table(schema.names()):
        source = read_invoice_events(path).lazy()
        schema = source.collect_schema()
    for name in REQUIRED_COLUMNS:
        if name not in schema:
            require(schema.to_frame(), name, str(path))
    ids = _batches(source, path, ("user_id",), rows_per_batch)
    grouped, num_rows, num_absent = _survey(ids, keep)
    notes: tuple[str, ...] = ()
    if not grouped:
        notes += (f"{path}: not grouped by user, so sorted on disk first ({num_rows:,} rows).",)
    if keep is not None and num_absent:
        notes += (f"{path}: users without events: {num_absent:,} of {len(keep):,}.",)
    options = (users_per_block, time, event_types, keep, rows_per_batch)
    return EventStream(path, source, *options, grouped, num_rows, notes)


def _connect(directory: str, num_rows: int) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection for tables of `num_rows` rows, with a directory for temporary files."""
    memory = max(MIN_MEMORY, BYTES_PER_ROW * num_rows)
    limits = {"memory_limit": f"{memory}B", "threads": str(THREADS)}
    return duckdb.connect(config={**limits, "temp_directory": f"{directory}/spill"})


def _survey(
    batches: Iterable[tuple[str, pl.DataFrame]], keep: pl.Series | None
) -> tuple[bool, int, int]:
    """Whether each of the users to read has one run of rows; their rows; users without rows."""
    absent = pl.Series([], dtype=pl.String) if keep is None else keep
    grouped, num_rows, num_runs, last = True, 0, 0, None
    with tempfile.TemporaryDirectory(prefix="jaxrec-") as directory:
        for number, (origin, batch) in enumerate(batches):
            frame = _of_users(as_ids(batch["user_id"], origin).to_frame(), keep)
            if frame.is_empty():
                continue
            ids = frame["user_id"]
            num_rows += len(ids)
            absent = absent.filter(~absent.is_in(ids.implode()))
            if grouped:
                runs = frame[_run_starts(ids, last)]
                grouped = not runs.is_duplicated().any()  # most ungrouped files show it at once
                runs.write_parquet(f"{directory}/{number}.parquet")
                num_runs += len(runs)
            last = ids[-1]
        if grouped and num_runs:
            with _connect(directory, num_runs) as database:
                all_runs = database.read_parquet(f"{escape(directory)}/*.parquet")
                [[num_users]] = all_runs.aggregate("count(DISTINCT user_id)").fetchall()
            grouped = num_users == num_runs
    return grouped, num_rows, len(absent)


def _scan(path: Path) -> pl.LazyFrame:
    match path.suffix:
        case ".parquet":
            return pl.scan_parquet(path, glob=False)
        case ".csv":
            csv_header(path)  # refuses names that occur twice
            return pl.scan_csv(path, infer_schema=False, glob=False)
        case ".jsonl":
            # all rows give the types, as a late row may have another type than the first ones
            lines = escape(str(path))
            schema = pl.scan_ndjson(lines, infer_schema_length=None).collect_schema()
            return pl.scan_ndjson(lines, schema=schema)
        case _:
            return read_table(path).lazy()


def _batches(
    source: pl.LazyFrame, path: Path, columns: tuple[str, ...], rows_per_batch: int
) -> Iterator[tuple[str, pl.DataFrame]]:
    """Some columns of the rows in file order; each batch has a name for messages."""
    num_read = 0
    with unreadable(path):
        for batch in _in_batches(source.select(columns), rows_per_batch):
            yield f"{path}, batch from row {num_read + 1:,}", batch
            num_read += len(batch)
    if not num_read:
        require(pl.DataFrame(schema=columns), columns[0], str(path))


def _in_batches(source: pl.LazyFrame, size: int) -> Iterator[pl.DataFrame]:
    return source.collect_batches(chunk_size=size, maintain_order=True, engine="streaming")


def _validated(stream: EventStream) -> Iterator[pl.DataFrame]:
    """Validated events of the users to read, in file order; no frame is empty."""
    schema = stream.source.collect_schema()
    columns = tuple(name for name in COLUMNS if name in schema)
    unit = None
    for origin, batch in _batches(stream.source, stream.path, columns, stream.rows_per_batch):
        batch = batch.with_columns(_as_inferred(batch["timestamp"]))
        if "event" not in columns and len(stream.event_types) == 1:
            batch = batch.with_columns(pl.lit(stream.event_types[0]).alias("event"))
        events = _validate(batch, origin, stream.time)
        if stream.time == "timestamp":
            unit = _same_unit(unit, batch["timestamp"], origin)
        events = _of_users(events, stream.keep)
        if len(events):
            yield events


def _validate(events: pl.DataFrame, name: str, time: TimeKind) -> pl.DataFrame:
    return validate_tables(events, None, None, origin=(name, "", ""), time=time).events


def _of_users(frame: pl.DataFrame, keep: pl.Series | None) -> pl.DataFrame:
    return frame if keep is None else frame.filter(pl.col("user_id").is_in(keep.implode()))


def _as_inferred(column: pl.Series) -> pl.Series:
    """Text that holds only numbers as numbers, as if a whole CSV file were read at once."""
    if column.dtype != pl.String:
        return column
    for dtype in (pl.Int64, pl.Float64):
        numbers = column.cast(dtype, strict=False)
        if numbers.null_count() == column.null_count():
            return numbers
    return column


def _same_unit(previous: str | None, timestamps: pl.Series, origin: str) -> str:
    """The unit of a batch's timestamps; `validate_tables` sees the units of one batch only."""
    unit = "dates"
    if timestamps.dtype.is_numeric():
        sizes = timestamps.cast(pl.Float64).abs()
        unit = "milliseconds" if (sizes >= MILLISECONDS_FROM).any() else "seconds"
    if previous not in (None, unit):
        raise DataError(
            f"{origin}, column 'timestamp': {unit} after rows of {previous}. "
            "Use one unit in the whole column"
        )
    return unit


def _run_starts(ids: pl.Series, previous: str | None) -> UInt32[np.ndarray, " runs"]:
    """Rows where a run of equal ids starts; row 0 continues a run if its id is the previous one."""
    return ids.ne_missing(ids.shift(fill_value=previous)).arg_true().to_numpy()


def _sorted_by_user(frames: Iterable[pl.DataFrame], rows_per_batch: int) -> Iterator[pl.DataFrame]:
    """All rows sorted by user id; the rows of a user keep their order."""
    num_rows = 0
    with tempfile.TemporaryDirectory(prefix="jaxrec-") as directory:
        for number, frame in enumerate(frames):
            rows = pl.int_range(num_rows, num_rows + len(frame), dtype=pl.Int64)
            path = f"{directory}/{number}.parquet"
            frame.with_columns(rows.alias(ROW)).write_parquet(path, compression="lz4")
            num_rows += len(frame)
        if num_rows:
            with _connect(directory, num_rows) as database:
                ordered = database.read_parquet(f"{escape(directory)}/*.parquet")
                ordered = ordered.order(f"user_id, {ROW}").project(f"* EXCLUDE {ROW}")
                ordered.write_parquet(f"{directory}/sorted", compression="lz4")
            ordered_file = pl.scan_parquet(f"{directory}/sorted", glob=False)
            yield from _in_batches(ordered_file, rows_per_batch)


def _whole_users(frames: Iterable[pl.DataFrame], users_per_block: int) -> Iterator[pl.DataFrame]:
    """Cut a sequence of frames, grouped by user, into blocks of whole users."""
    pending: list[pl.DataFrame] = []
    num_pending, last = 0, None
    for frame in frames:
        starts = _run_starts(frame["user_id"], last)
        cuts = [0, *starts[users_per_block - num_pending :: users_per_block].tolist()]
        for start, stop in pairwise(cuts):
            yield pl.concat([*pending, frame[start:stop]])
            pending = []
        pending.append(frame[cuts[-1] :])
        num_pending = (num_pending + len(starts) - 1) % users_per_block + 1
        last = frame["user_id"][-1]
    if pending:
        yield pl.concat(pending)
