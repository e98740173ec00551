"""Events files of any size, read as blocks of whole users in bounded memory."""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from glob import escape
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import duckdb
import numpy as np
import polars as pl
from jaxtyping import UInt32

from jaxrec.data.columns import EventsName, as_ids, null_words, require
from jaxrec.data.forgotten import LeftOut
from jaxrec.data.id_types import IdType, id_type
from jaxrec.data.invoices import invoice_events, is_invoice_table
from jaxrec.data.opener import OpenTable, open_source, open_table
from jaxrec.data.spec import TableSpec, only_file
from jaxrec.data.sql import connect
from jaxrec.data.tables import EVENT_COLUMNS, REQUIRED_COLUMNS, TimeKind, validate_tables
from jaxrec.data.times import as_milliseconds, clear_times, same_unit, time_notes, unit_of
from jaxrec.data.user_filter import UserFilter

ROW = "row"  # column with the file order, while events are sorted
# Memory of DuckDB. Merging on disk needs more of it the longer a file is.
MIN_MEMORY = 512 * 1024**2  # bytes
BYTES_PER_ROW = 16
THREADS = 2  # each one needs its part of the memory


Reader = Callable[[Sequence[str], int], Iterator[pl.DataFrame]]


@dataclass(frozen=True)
class EventStream:
    """The events of a file, as blocks of whole users."""

    name: str  # of the file in messages
    columns: tuple[str, ...]  # names of the columns
    read: Reader  # columns in batches, in order
    users_per_block: int  # the last block may have fewer users
    time: TimeKind
    event_types: tuple[str, ...]  # a single one fills in for a missing column `event`
    users: UserFilter  # those to read
    rows_per_batch: int  # number of rows to read at a time
    grouped: bool  # whether the rows of every user to read are contiguous
    num_rows: int  # number of rows of the users to read
    notes: tuple[str, ...]  # about sorting, listed users without events and forgotten users
    table: OpenTable | None  # what is read; None: rows in memory
    unit: str | None = None  # of the timestamps; None: that of the first batch

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
        events = self.validated()
        if not self.grouped:
            events = _sorted_by_user(events, self.rows_per_batch)
        for number, block in enumerate(_whole_users(events, self.users_per_block)):
            yield checked_block(block, number, self.name)

    def validated(self) -> Iterator[pl.DataFrame]:
        """Validated events of the users to read, in file order; no frame is empty."""
        columns, unit = tuple(name for name in EVENT_COLUMNS if name in self.columns), self.unit
        for origin, batch in _batches(self.read, self.name, columns, self.rows_per_batch):
            if "event" not in columns and len(self.event_types) == 1:
                batch = batch.with_columns(pl.lit(self.event_types[0]).alias("event"))
            stamps, clear = batch["timestamp"], None
            if self.time == "timestamp" and (clear := clear_times(stamps)) is not None:
                batch = batch.with_columns(clear[1])  # so that they are parsed once
            events = _validate(batch, origin, self.time)
            if self.time == "timestamp":
                unit = same_unit(unit, clear[0] if clear else unit_of(stamps), origin)
            events = self.users.read(events, has_time=self.time == "timestamp")
            if len(events):
                yield events

    def first_unit(self) -> str | None:
        """The unit of the timestamps in the first batch, which is that of all others."""
        if self.time != "timestamp":
            return None
        stamps = self._first_values("timestamp", self.rows_per_batch)
        clear = clear_times(stamps)
        return clear[0] if clear else unit_of(stamps)

    def user_id_type(self) -> IdType:
        """The type in which the user ids leave."""
        return id_type(self._first_values("user_id", 1).dtype)

    def _first_values(self, column: str, count: int) -> pl.Series:
        with closing(self.read((column,), count)) as batches:  # type: ignore[type-var]
            return next(batches)[column]


def open_events(
    source: Path,
    users_per_block: int,
    *,
    layout: str = "",
    time: TimeKind = "timestamp",
    event_types: tuple[str, ...] = (),
    users: UserFilter | None = None,
    rows_per_batch: int = 1_000_000,
) -> EventStream:
    """Read the user ids of an events table and decide how to stream its events.

    Invoice files (see `load_source`) are read as a whole; everything else is read in batches.

    Args:
        source: a file, directory or pattern of events, or a data set (see `dataset_spec`).
        layout: what the files of a directory mean (see `dataset_spec`).
        users_per_block, time, event_types, rows_per_batch: see `EventStream`.
        users: those to read; the events of others are validated too.

    Raises:
        DataError: the table is unreadable or has no rows; a column is missing or occurs twice; a
            user id is null, empty or of the wrong type.
    """
    users = users or UserFilter()
    if users.keep is not None:
        listed = as_ids(users.keep, "the users to keep")
        ids = users.stored(listed, "the users to keep").unique(maintain_order=True)
        users = replace(users, keep=ids)
    opened = _opened(source, layout)
    table: OpenTable | None = opened
    name, columns, read = opened.spec.origin, opened.columns, table_reader(opened, users)
    if is_invoice_table(columns):
        events = invoice_events(opened.read(), name)
        table, columns = None, tuple(events.columns)
        read = _reader(partial(_slices, events), users, name)
    for column in REQUIRED_COLUMNS:
        if column not in columns:
            require(pl.DataFrame(schema=columns), column, name)
    survey = _survey(read, name, users, time, rows_per_batch)
    notes = survey.notes
    if not survey.grouped:
        num_rows = f"{survey.num_rows:,} rows"
        notes += (f"{name}: not grouped by user, so sorted on disk first ({num_rows}).",)
    if users.keep is not None and survey.num_absent:
        notes += (f"{name}: users without events: {survey.num_absent:,} of {len(users.keep):,}.",)
    return EventStream(
        name=name,
        columns=columns,
        read=read,
        users_per_block=users_per_block,
        time=time,
        event_types=event_types,
        users=users,
        rows_per_batch=rows_per_batch,
        grouped=survey.grouped,
        num_rows=survey.num_rows,
        notes=notes,
        table=table,
    )


def _opened(source: Path, layout: str) -> OpenTable:
    """The events of a data set, which may be a directory with an invoice file alone."""
    if source.is_dir() and not layout and (file := only_file(source)):
        invoices = open_table(TableSpec("events", files=(str(file),)))
        if is_invoice_table(invoices.columns):
            return invoices
    return open_source(source, "events", layout)


def table_reader(table: OpenTable, users: UserFilter) -> Reader:
    """Reads a table in batches, with user ids as they are kept."""
    return _reader(table.batches, users, table.spec.origin)


def _reader(read: Reader, users: UserFilter, name: str) -> Reader:
    return partial(_with_stored_ids, read, users, name) if users.id_key else read


def _with_stored_ids(
    read: Reader, users: UserFilter, name: str, columns: Sequence[str], size: int
) -> Iterator[pl.DataFrame]:
    """What a reader reads, with user ids as they are kept."""
    for batch in read(columns, size):
        if "user_id" in columns:
            batch = batch.with_columns(users.stored(batch["user_id"], name))
        yield batch


def _slices(frame: pl.DataFrame, columns: Sequence[str], size: int) -> Iterator[pl.DataFrame]:
    return frame.select(columns).iter_slices(size)


def sorting(directory: str, num_rows: int) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection for tables of `num_rows` rows, with a directory for temporary files."""
    memory = max(MIN_MEMORY, BYTES_PER_ROW * num_rows)
    return connect(
        memory_limit=f"{memory}B", threads=str(THREADS), temp_directory=f"{directory}/spill"
    )


class _Survey(NamedTuple):
    """What the user ids of a table show."""

    grouped: bool  # whether each user to read has one run of rows
    num_rows: int  # of the users to read
    num_absent: int  # listed users without rows
    notes: tuple[str, ...]


def _survey(
    read: Reader, name: str, users: UserFilter, time: TimeKind, rows_per_batch: int
) -> _Survey:
    """Read the user ids of a table; raises a DataError if it has no rows."""
    columns = ("user_id", "timestamp") if time == "timestamp" else ("user_id",)
    is_empty = True
    absent = pl.Series([], dtype=pl.String) if users.keep is None else users.keep
    grouped, num_rows, num_runs, last = True, 0, 0, None
    notes: tuple[str, ...] = ()
    left_out = LeftOut(users.forgotten)
    with tempfile.TemporaryDirectory(prefix="jaxrec-") as directory:
        batches = _batches(read, name, columns, rows_per_batch)
        for number, (origin, batch) in enumerate(batches):
            is_empty = False
            frame = users.listed(_surveyed(batch, origin, users, time))
            frame = left_out.without(frame, has_time=time == "timestamp").select("user_id")
            if frame.is_empty():
                continue
            ids = frame["user_id"]
            notes = notes or _warnings(batch, origin)
            num_rows += len(ids)
            absent = absent.filter(~absent.is_in(ids.implode()))
            if grouped:
                runs = frame[_run_starts(ids, last)]
                grouped = not runs.is_duplicated().any()  # most ungrouped files show it at once
                runs.write_parquet(f"{directory}/{number}.parquet")
                num_runs += len(runs)
            last = ids[-1]
        if grouped and num_runs:
            with sorting(directory, num_runs) as database:
                all_runs = database.read_parquet(f"{escape(directory)}/*.parquet")
                [[num_users]] = all_runs.aggregate("count(DISTINCT user_id)").fetchall()
            grouped = num_users == num_runs
    if is_empty:
        require(pl.DataFrame(schema=["user_id"]), "user_id", name)
    return _Survey(grouped, num_rows, len(absent), (*notes, *left_out.notes))


def _surveyed(batch: pl.DataFrame, origin: str, users: UserFilter, time: TimeKind) -> pl.DataFrame:
    """The columns of a batch that say whether its rows are read."""
    ids = as_ids(batch["user_id"], origin).to_frame()
    if time == "order" or not users.forgotten.until:
        return ids
    return ids.with_columns(as_milliseconds(batch["timestamp"], origin))


def _warnings(batch: pl.DataFrame, origin: str) -> tuple[str, ...]:
    notes = null_words(as_ids(batch["user_id"], origin), origin)
    if "timestamp" in batch.columns and clear_times(batch["timestamp"]) is None:
        column = batch["timestamp"]
        notes += time_notes(as_milliseconds(column, origin), column, origin, strict=False)
    return tuple(notes)


def _batches(
    read: Reader,
    name: str,
    columns: tuple[str, ...],
    rows_per_batch: int,
) -> Iterator[tuple[str, pl.DataFrame]]:
    """Some columns of the rows in file order; each batch has a name for messages."""
    num_read = 0
    for batch in read(columns, rows_per_batch):
        yield EventsName(f"{name}, batch from row {num_read + 1:,}"), batch
        num_read += len(batch)


def checked_block(block: pl.DataFrame, number: int, name: str) -> pl.DataFrame:
    """A block of users without repeats of an event_id, which may have been in different batches.

    Args:
        number: of the block, from 0.
        name: of the stream.
    """
    if "event_id" not in block.columns:
        return block
    # the timestamps are milliseconds already, so they pass as positions
    return _validate(block, f"{name}, block {number + 1:,} of users", "order")


def _validate(events: pl.DataFrame, name: str, time: TimeKind) -> pl.DataFrame:
    return validate_tables(events, None, None, origin=(name, "", ""), time=time).events


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
            with sorting(directory, num_rows) as database:
                ordered = database.read_parquet(f"{escape(directory)}/*.parquet")
                ordered = ordered.order(f"user_id, {ROW}").project(f"* EXCLUDE {ROW}")
                ordered.write_parquet(f"{directory}/sorted", compression="lz4")
            ordered_file = pl.scan_parquet(f"{directory}/sorted", glob=False)
            yield from ordered_file.collect_batches(
                chunk_size=rows_per_batch, maintain_order=True, engine="streaming"
            )


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
