"""An events file that need not fit in memory, as blocks of whole users."""

import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Int

from jaxrec.data.columns import DataError, as_ids, require
from jaxrec.data.files import read_table, unreadable
from jaxrec.data.tables import TimeKind, validate

COLUMNS = ("user_id", "item_id", "timestamp", "event", "event_id", "session_id")


@dataclass(frozen=True)
class EventStream:
    """Blocks of `users` users each, the same ones however often they are read.

    A file that is grouped by user is streamed in its own order, in the memory of one batch and
    one block. Any other is first sorted out of core: its rows are spread over files by a hash
    of the user, each of which fits in memory.

    Attributes:
        path: .parquet, .csv or .jsonl, or RecBole's .inter, which is read at once.
        time: as in `validate`.
        kinds: the kinds of event that are known; the only one is that of events without a kind.
        keep: ids of the users to read (None: all).
        rows: rows read at a time.
        scratch: where to sort (None: the system's directory of temporary files).
    """

    path: Path
    users: int
    time: TimeKind = "timestamp"
    kinds: tuple[str, ...] = ()
    keep: pl.Series | None = None
    rows: int = 1_000_000
    scratch: Path | None = None

    @cached_property
    def summary(self) -> "Summary":
        """What one pass over the users tells; raises a DataError if they cannot be read."""
        heads, before = [np.zeros(0, np.uint64)], None
        rows = 0
        found = pl.Series(dtype=pl.String)
        for raw in _batches(self.path, self.rows, ("user_id",)):
            users = as_ids(require(raw, "user_id", str(self.path)), str(self.path))
            starts = users.ne_missing(users.shift(fill_value=before))
            heads.append(users.filter(starts).hash().to_numpy())
            before = users[-1]
            rows += len(users)
            if self.keep is not None:
                kept = users.filter(users.is_in(self.keep.implode()))
                found = pl.concat([found, kept.unique()]).unique()
        runs = np.concatenate(heads)
        return Summary(
            rows=rows,
            grouped=len(np.unique(runs)) == len(runs),
            absent=0 if self.keep is None else self.keep.n_unique() - len(found),
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What there is to say of the file, for people."""
        notes = []
        if not self.summary.grouped:
            notes.append(
                f"{self.path} is not grouped by user: its {self.summary.rows:,} rows are sorted "
                f"on disk first"
            )
        if self.summary.absent:
            notes.append(f"{self.path} holds no event of {self.summary.absent:,} listed users")
        return tuple(notes)

    def blocks(self) -> Iterator[pl.DataFrame]:
        """Validated events of `users` users at a time (fewer in the last), each user whole.

        Raises:
            DataError: the file cannot be read, or its events cannot be used.
        """
        if self.summary.grouped:
            yield from _whole_users(self._validated(), self.users)
            return
        with tempfile.TemporaryDirectory(dir=self.scratch, prefix="jaxrec-") as directory:
            buckets = _spread(self._validated(), self._num_buckets, Path(directory))
            yield from _whole_users(map(_sorted_bucket, buckets), self.users)

    @property
    def _num_buckets(self) -> int:
        return max(1, -(-self.summary.rows // self.rows))

    def _validated(self) -> Iterator[pl.DataFrame]:
        first = 1
        for raw in _batches(self.path, self.rows, COLUMNS):
            origin = str(self.path) if first == 1 else f"{self.path} from row {first:,} on"
            first += len(raw)
            if "event" not in raw.columns and len(self.kinds) == 1:
                raw = raw.with_columns(pl.lit(self.kinds[0]).alias("event"))
            events = validate(
                raw, None, None, origin=(origin, "items", "triples"), time=self.time
            ).events
            if self.keep is not None:
                events = events.filter(pl.col("user_id").is_in(self.keep.implode()))
            yield events


@dataclass(frozen=True)
class Summary:
    """What a pass over the users of a file tells."""

    rows: int
    grouped: bool  # every user's rows stand together
    absent: int  # users to keep that have no row


def _batches(path: Path, rows: int, columns: tuple[str, ...]) -> Iterator[pl.DataFrame]:
    """Some columns of a file, `rows` rows at a time in its order; those it lacks are left out."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    scans = {
        ".parquet": pl.scan_parquet,
        # text throughout: "007" is an id, and validation reads numbers from text
        ".csv": lambda path: pl.scan_csv(path, infer_schema=False),
        ".jsonl": lambda path: pl.scan_ndjson(path, infer_schema_length=None),
    }
    if path.suffix not in scans:
        whole = read_table(path)
        yield whole.select(name for name in columns if name in whole.columns)
        return
    with unreadable(path):
        scan = scans[path.suffix](path)
        present = scan.collect_schema().names()
        chosen = scan.select([name for name in columns if name in present] or present[:1])
        batches = chosen.collect_batches(chunk_size=rows, maintain_order=True, lazy=True)
        empty = True
        for batch in batches:
            for start in range(0, len(batch), rows):
                empty = False
                yield batch[start : start + rows]
    if empty:
        raise DataError(f"{path}: the table has no rows")


def _whole_users(batches: Iterator[pl.DataFrame], users: int) -> Iterator[pl.DataFrame]:
    """Cut grouped rows into blocks of `users` users, wherever the batches were cut."""
    held: pl.DataFrame | None = None
    for batch in batches:
        held = batch if held is None else pl.concat([held, batch])
        starts = _run_starts(held)
        # the last user may go on in the next batch
        whole = (len(starts) - 1) // users * users
        for first in range(0, whole, users):
            yield held[int(starts[first]) : int(starts[first + users])]
        if whole > 0:
            held = held[int(starts[whole]) :]
    if held is not None and len(held):
        starts = np.append(_run_starts(held), len(held))
        for first in range(0, len(starts) - 1, users):
            yield held[int(starts[first]) : int(starts[min(first + users, len(starts) - 1)])]


def _run_starts(frame: pl.DataFrame) -> Int[np.ndarray, " R"]:
    lengths = frame["user_id"].rle().struct.field("len").to_numpy()
    return np.cumsum(lengths) - lengths


def _spread(
    batches: Iterator[pl.DataFrame], num_buckets: int, directory: Path
) -> Iterator[list[Path]]:
    """Write rows into files by a hash of their user; yields the files of each bucket in order."""
    files: list[list[Path]] = [[] for _ in range(num_buckets)]
    for number, batch in enumerate(batches):
        users = batch["user_id"].unique()
        # the same in every process and version, so that blocks stay what they were
        numbers = [zlib.crc32(user.encode()) % num_buckets for user in users]
        buckets = pl.DataFrame({"user_id": users, "bucket": numbers})
        parts = batch.join(buckets, on="user_id", maintain_order="left").partition_by(
            "bucket", as_dict=True, include_key=False, maintain_order=True
        )
        for (bucket,), part in parts.items():
            path = directory / f"{bucket}-{number}.parquet"
            part.write_parquet(path)
            files[bucket].append(path)
    yield from filter(None, files)


def _sorted_bucket(files: list[Path]) -> pl.DataFrame:
    return pl.concat(map(pl.read_parquet, files)).sort("user_id", maintain_order=True)
