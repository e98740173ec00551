"""An events file that need not fit in memory, as blocks of whole users."""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Int, UInt64

from jaxrec.data.columns import MILLISECONDS_FROM, as_ids, reject_same_names, require
from jaxrec.data.files import read_table, unreadable
from jaxrec.data.sources import is_invoice_table, read_invoice_events
from jaxrec.data.tables import TimeKind, validate_tables
from jaxrec.errors import DataError

REQUIRED_COLUMNS = ("user_id", "item_id", "timestamp")
COLUMNS = (*REQUIRED_COLUMNS, "event", "event_id", "session_id")
WORD = 8  # bytes


@dataclass(frozen=True)
class EventStream:
    """The events of a file, user by user.

    Attributes:
        path: what messages call the file.
        source: its rows in file order, not yet read.
        users: the number of users of every block but the last, which may have fewer.
        time: as in `validate_tables`.
        event_types: the event types a model knows; if it is one, a file without `event` has it.
        keep: ids (unique strings) of the users to read; None: all.
        rows: the number of rows to read at a time.
        scratch: where a file that is not grouped is sorted; None: the system's directory.
        grouped: whether every user's rows are contiguous, once those of users that are not in
            `keep` are left out.
        num_rows: rows of the users in `keep`.
        notes: sentences that tell of the sorting and of users in `keep` without events.
    """

    path: Path
    source: pl.LazyFrame
    users: int
    time: TimeKind
    event_types: tuple[str, ...]
    keep: pl.Series | None
    rows: int
    scratch: Path | None
    grouped: bool
    num_rows: int
    notes: tuple[str, ...]

    def blocks(self) -> Iterator[pl.DataFrame]:
        """Validated events (columns as in `Tables.events`) of `users` whole users at a time.

        A user's events keep their file order. Users come in file order from a grouped file,
        otherwise in the order of a hash of their ids; neither depends on `rows`. In memory are
        one batch of `rows` rows (but whole row groups of a Parquet file) or one bucket of about
        as many (more, where a single user has more), and one block.

        Timestamps are milliseconds or positions, and so not to be validated again. Repeats of
        an event_id are dropped as in `validate_tables`, but looked for within a batch or block only.

        Raises:
            DataError: as `validate_tables`, naming the first row of the batch; the file is unreadable.
        """
        if self.grouped:
            yield from _distinct_blocks(self, _validated(self))
            return
        if self.scratch is not None:
            self.scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="jaxrec-", dir=self.scratch) as directory:
            num_buckets = _num_buckets(self.num_rows, self.rows)
            buckets = _sorted_buckets(_validated(self), num_buckets, Path(directory))
            yield from _distinct_blocks(self, buckets)


def open_events(
    path: Path,
    users: int,
    *,
    time: TimeKind = "timestamp",
    event_types: tuple[str, ...] = (),
    keep: pl.Series | None = None,
    rows: int = 1_000_000,
    scratch: Path | None = None,
) -> EventStream:
    """Read the user ids of an events file, to know how to stream it.

    Parquet, CSV and JSON lines are read in batches; an atomic file (`.inter`) and an invoice file
    (see `load_source`) are read whole.
    This pass holds 8 bytes for every run of rows of one user, next to a batch.

    Args:
        path, time, event_types, rows, scratch: see `EventStream`.
        users: the most users in a block.
        keep: ids (text or integers) of the users to read; events of others are validated, then
            dropped.

    Raises:
        DataError: the file is unreadable or has no rows; a column is missing or doubled; a user
            id is null, empty or of the wrong type.
        ValueError: `users` or `rows` is not positive.
    """
    if users < 1 or rows < 1:
        raise ValueError(f"users ({users}) and rows ({rows}) must be at least 1")
    if keep is not None:
        keep = as_ids(keep, "the users to keep").unique(maintain_order=True)
    with unreadable(path):
        source = _scan(path)
        schema = source.collect_schema()
    reject_same_names(schema.names(), str(path))
    if is_invoice_table(schema.names()):
        source = read_invoice_events(path).lazy()
        schema = source.collect_schema()
    missing = [name for name in REQUIRED_COLUMNS if name not in schema]
    if missing:
        require(schema.to_frame(), missing[0], str(path))
    survey = _survey(_batches(source, path, ("user_id",), rows), keep)
    return EventStream(
        *(path, source, users, time, event_types, keep, rows, scratch),
        grouped=survey.grouped,
        num_rows=survey.num_rows,
        notes=_notes(survey, path, keep, rows),
    )


@dataclass(frozen=True)
class _Survey:
    """What one pass over the user ids tells; all of it of users in `keep`."""

    grouped: bool
    num_rows: int
    num_absent: int


def _survey(batches: Iterable[tuple[str, pl.DataFrame]], keep: pl.Series | None) -> _Survey:
    absent = pl.Series([], dtype=pl.String) if keep is None else keep
    heads = [np.zeros(0, np.uint64)]
    grouped, num_rows, last = True, 0, None
    for origin, batch in batches:
        frame = _of_users(as_ids(batch["user_id"], origin).to_frame(), keep)
        if frame.is_empty():
            continue
        ids = frame["user_id"]
        num_rows += len(ids)
        absent = absent.filter(~absent.is_in(ids.implode()))
        if grouped:
            heads.append(_stable_hash(ids.gather(_run_starts(ids, last))))
            # Most files that are not grouped show it in their first batch.
            grouped = _all_distinct(heads[-1])
        last = ids[-1]
    return _Survey(grouped and _all_distinct(np.concatenate(heads)), num_rows, len(absent))


def _notes(survey: _Survey, path: Path, keep: pl.Series | None, rows: int) -> tuple[str, ...]:
    notes = []
    if not survey.grouped:
        buckets = _num_buckets(survey.num_rows, rows)
        notes.append(
            f"{path}: not grouped by user, so sorted on disk first ({survey.num_rows:,} rows, "
            f"{buckets:,} buckets)."
        )
    if keep is not None and survey.num_absent:
        notes.append(f"{path}: users without events: {survey.num_absent:,} of {len(keep):,}.")
    return tuple(notes)


def _num_buckets(num_rows: int, rows: int) -> int:
    return -(-num_rows // rows)


def _scan(path: Path) -> pl.LazyFrame:
    match path.suffix:
        case ".parquet":
            return pl.scan_parquet(path)
        case ".csv":
            header = pl.scan_csv(path, has_header=False, infer_schema=False).head(1).collect()
            reject_same_names([name or "" for name in header.row(0)], str(path))
            return pl.scan_csv(path, infer_schema=False)
        case ".jsonl":
            # One pass for the types: a late row may be of another type than the first ones.
            schema = pl.scan_ndjson(path, infer_schema_length=None).collect_schema()
            return pl.scan_ndjson(path, schema=schema)
        case _:
            return read_table(path).lazy()


def _batches(
    source: pl.LazyFrame, path: Path, columns: tuple[str, ...], rows: int
) -> Iterator[tuple[str, pl.DataFrame]]:
    """Some columns of `rows` rows at a time, in file order, and what messages call each batch."""
    num_read = 0
    with unreadable(path):
        chosen = source.select(columns)
        for batch in chosen.collect_batches(
            chunk_size=rows, maintain_order=True, engine="streaming"
        ):
            yield f"{path}, batch from row {num_read + 1:,}", batch
            num_read += len(batch)
    if not num_read:
        require(pl.DataFrame(schema=columns), columns[0], str(path))


def _validated(stream: EventStream) -> Iterator[pl.DataFrame]:
    """Validated events of the users to keep, in file order, in frames that are not empty."""
    schema = stream.source.collect_schema()
    columns = tuple(name for name in COLUMNS if name in schema)
    unit = None
    for origin, batch in _batches(stream.source, stream.path, columns, stream.rows):
        batch = batch.with_columns(_as_inferred(batch["timestamp"]))
        if "event" not in columns and len(stream.event_types) == 1:
            batch = batch.with_columns(pl.lit(stream.event_types[0]).alias("event"))
        names = (origin, "items", "triples")
        events = validate_tables(batch, None, None, origin=names, time=stream.time).events
        if stream.time == "timestamp":
            unit = _same_unit(unit, batch["timestamp"], origin)
        events = _of_users(events, stream.keep)
        if len(events):
            yield events


def _of_users(frame: pl.DataFrame, keep: pl.Series | None) -> pl.DataFrame:
    return frame if keep is None else frame.filter(pl.col("user_id").is_in(keep.implode()))


def _as_inferred(column: pl.Series) -> pl.Series:
    """Text that is all numbers as numbers, which is how a CSV file is read at once."""
    if column.dtype != pl.String:
        return column
    for dtype in (pl.Int64, pl.Float64):
        numbers = column.cast(dtype, strict=False)
        if numbers.null_count() == column.null_count():
            return numbers
    return column


def _same_unit(unit: str | None, stamps: pl.Series, origin: str) -> str:
    """The unit of valid timestamps, which `validate_tables` can only compare within a batch."""
    found = _unit(stamps)
    if unit not in (None, found):
        raise DataError(
            f"{origin}, column 'timestamp': {found} after rows of {unit}. "
            "Use one unit in the whole column"
        )
    return found


def _unit(stamps: pl.Series) -> str:
    if not stamps.dtype.is_numeric():
        return "dates"
    sizes = stamps.cast(pl.Float64).abs()
    return "milliseconds" if (sizes >= MILLISECONDS_FROM).any() else "seconds"


def _run_starts(ids: pl.Series, before: str | None) -> Int[np.ndarray, " R"]:
    """Rows at which a run of one id begins; row 0 is none if its id is the one `before`."""
    return ids.ne_missing(ids.shift(fill_value=before)).arg_true().to_numpy()


def _all_distinct(hashes: UInt64[np.ndarray, " R"]) -> bool:
    ordered = np.sort(hashes)
    return not (ordered[1:] == ordered[:-1]).any()


def _stable_hash(ids: pl.Series) -> UInt64[np.ndarray, " N"]:
    """A hash of ids that is the same on every machine and in every version of a library.

    Polars promises as much of its own hash only within one version.
    """
    hashes = ids.str.len_bytes().to_numpy().astype(np.uint64)
    rows = np.arange(len(ids))
    rest = (ids + "\0" * WORD).cast(pl.Binary)
    while len(rows):
        words = rest.bin.slice(0, WORD).bin.reinterpret(dtype=pl.UInt64, endianness="little")
        hashes[rows] = _mixed(hashes[rows] ^ words.to_numpy())
        rest = rest.bin.slice(WORD)
        unfinished = rest.bin.size() >= WORD
        rows, rest = rows[unfinished.to_numpy()], rest.filter(unfinished)
    return hashes


def _mixed(bits: UInt64[np.ndarray, " N"]) -> UInt64[np.ndarray, " N"]:
    """The finaliser of MurmurHash3, a bijection."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        bits = (bits ^ (bits >> np.uint64(33))) * np.uint64(factor)
    return bits ^ (bits >> np.uint64(33))


def _sorted_buckets(
    frames: Iterable[pl.DataFrame], num_buckets: int, directory: Path
) -> Iterator[pl.DataFrame]:
    """All rows in the order of (hash of the user, user, row), one range of hashes at a time."""
    ends = [[0] for _ in range(num_buckets)]
    for frame in frames:
        hashes = _stable_hash(frame["user_id"])
        # Ranges, so that the order of users is that of the hash, whatever the number of buckets.
        buckets = ((hashes >> np.uint64(32)) * np.uint64(num_buckets)) >> np.uint64(32)
        keys = pl.DataFrame({"user_hash": hashes, "bucket": buckets})
        parts = frame.hstack(keys).partition_by("bucket", include_key=False, as_dict=True)
        for (bucket,), part in parts.items():
            ends[bucket].append(_append(part, directory / str(bucket)))
    for bucket, edges in enumerate(ends):
        if len(edges) > 1:
            rows = _read_appended(directory / str(bucket), edges)
            yield rows.sort("user_hash", "user_id", maintain_order=True).drop("user_hash")


def _append(frame: pl.DataFrame, path: Path) -> int:
    """Write a frame behind others; returns the end of the file."""
    with path.open("ab") as file:
        frame.write_ipc_stream(file, compression="lz4")
        return file.tell()


def _read_appended(path: Path, edges: list[int]) -> pl.DataFrame:
    with path.open("rb") as file:
        return pl.concat(
            pl.read_ipc_stream(file.read(stop - start)) for start, stop in pairwise(edges)
        )


def _distinct_blocks(stream: EventStream, frames: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Blocks without repeats of an event_id, which may lie in two batches."""
    for block in _whole_users(frames, stream.users):
        if "event_id" in block.columns:
            names = (f"{stream.path}, block from user {block['user_id'][0]!r}", "items", "triples")
            # As positions, since the timestamps are in milliseconds already.
            yield validate_tables(block, None, None, origin=names, time="order").events
        else:
            yield block


def _whole_users(frames: Iterable[pl.DataFrame], users: int) -> Iterator[pl.DataFrame]:
    """Cut frames, through which every user is one run, into blocks of `users` users."""
    held: list[pl.DataFrame] = []
    num_held, last = 0, None
    for frame in frames:
        starts = _run_starts(frame["user_id"], last)
        cuts = [0, *starts[users - num_held :: users].tolist()]
        for start, stop in pairwise(cuts):
            yield pl.concat([*held, frame[start:stop]])
            held = []
        held.append(frame[cuts[-1] :])
        num_held = (num_held + len(starts) - 1) % users + 1
        last = frame["user_id"][-1]
    if held:
        yield pl.concat(held)
