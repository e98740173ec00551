"""What tasks of Ray do with the shares of an `EventStream`, on Arrow tables.

Their processes import this module, so it needs neither JAX nor a model.
"""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa

from jaxrec.data.shares import BLOCK, BlockStarts, first_rows, numbered
from jaxrec.data.stream import EventStream
from jaxrec.errors import RunError


def read(shares: list[EventStream], directory: Path, numbers: pa.Table) -> Iterator[pa.Table]:
    """The `numbered` rows of the shares whose numbers are in the column `id`.

    Args:
        directory: see `enter`.

    Raises:
        DataError: as `EventStream.blocks`.
        RunError: as `enter`.
    """
    enter(directory)
    for number in numbers["id"].to_pylist():
        yield from map(table_of, numbered(shares[number], number))


def users(rows: pa.Table) -> pa.Table:
    """The `first_rows` of numbered rows."""
    return table_of(first_rows(frame_of(rows)))


def with_blocks(starts: BlockStarts, finished: frozenset[int], rows: pa.Table) -> pa.Table:
    """Numbered rows with their blocks, without those of finished blocks."""
    events = frame_of(rows)
    events = events.with_columns(starts.numbers(events))
    return table_of(events.filter(~pl.col(BLOCK).is_in(finished)))


def enter(directory: Path) -> None:
    """Let relative names mean what they mean to the process of the job, which runs in a directory.

    Raises a RunError if this machine has no such directory.
    """
    try:
        os.chdir(directory)
    except OSError as error:
        raise RunError(
            f"{socket.gethostname()}: {directory}: {error.strerror}; start the job in a directory "
            "that all machines of the cluster share"
        ) from error


def frame_of(rows: pa.Table) -> pl.DataFrame:
    """An Arrow table as a frame."""
    frame = pl.from_arrow(rows)
    assert isinstance(frame, pl.DataFrame)
    return frame


def table_of(frame: pl.DataFrame) -> pa.Table:
    """A frame as an Arrow table of types that Ray can sort and hash."""
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())
