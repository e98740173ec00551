"""The blocks of an `EventStream`, made by several workers that each read a share of its files.

The workers number the rows of their shares. The users and their first rows say with which key each
block begins, so every worker knows the block of an event. The worker that gets all events of a
block puts them in order; the result is what `EventStream.blocks` gives.
"""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from glob import escape

import duckdb
import polars as pl

from jaxrec.data.opener import OpenTable
from jaxrec.data.sql import connect, file_names, literal
from jaxrec.data.stream import ROW, EventStream, checked_block, sorting, table_reader

BLOCK = "block"  # column with the number of a block
ROW_BITS = 40  # of a row in its share; the bits above are the number of the share
MOST_SHARES = 256


def shares(stream: EventStream, most: int = MOST_SHARES) -> list[EventStream]:
    """Streams of neighbouring files; their rows together, in order, are those of `stream`.

    One file, a database, a query, and files that differ in columns or types are one share.

    Args:
        most: shares at most.
    """
    tables = [] if stream.table is None else _tables(stream.table, most)
    if len(tables) < 2:
        return [stream]
    unit = stream.first_unit()
    return [
        replace(
            stream,
            name=f"{stream.name}, {table.files[0].name}",
            read=table_reader(table, stream.users),
            table=table,
            unit=unit,
        )
        for table in tables
    ]


def _tables(table: OpenTable, most: int) -> list[OpenTable]:
    size = max(1, -(-len(table.files) // most))
    starts = range(0, len(table.files), size)
    groups = [table.files[start : start + size] for start in starts]
    names = file_names(table.files)
    parts = [
        replace(table, files=files, query=table.query.replace(names, file_names(files)))
        for files in groups
    ]
    schema = _schema(table)
    return parts if all(_schema(part) == schema for part in parts) else [table]


def _schema(table: OpenTable) -> dict[str, str] | None:
    """The columns of a table and their types; None if it lacks a column that it asks for."""
    with connect(table.spec.base) as connection:
        try:
            relation = connection.sql(table.query)
        except duckdb.BinderException:
            return None
        return dict(zip(relation.columns, map(str, relation.types), strict=True))


def numbered(share: EventStream, number: int) -> Iterator[pl.DataFrame]:
    """The validated events of a share, with the column `ROW` that orders the rows of all shares."""
    first = number << ROW_BITS
    for events in share.validated():
        rows = pl.int_range(first, first + len(events), dtype=pl.Int64, eager=True)
        yield events.with_columns(rows.alias(ROW))
        first += len(events)


def first_rows(events: pl.DataFrame) -> pl.DataFrame:
    """The users of numbered events, and the first row of each."""
    return events.group_by("user_id").agg(pl.col(ROW).min())


@dataclass(frozen=True)
class BlockStarts:
    """Where blocks begin.

    Attributes:
        key: `user_id`, by whose bytes the users are sorted, or `ROW` for a grouped stream.
        firsts: the first key of each block, ascending.
    """

    key: str
    firsts: pl.Series

    def numbers(self, events: pl.DataFrame) -> pl.Series:
        """The block of each of some numbered events."""
        keys = events[self.key]
        return (self.firsts.search_sorted(keys, side="right") - 1).cast(pl.Int64).alias(BLOCK)


def block_starts(users: Iterable[pl.DataFrame], stream: EventStream) -> BlockStarts:
    """Where the blocks of a stream begin; memory is bounded as in `EventStream.blocks`.

    Args:
        users: the `first_rows` of all events, in any number of frames.
    """
    key = ROW if stream.grouped else "user_id"
    with tempfile.TemporaryDirectory(prefix="jaxrec-") as directory:
        for number, frame in enumerate(users):
            frame.write_parquet(f"{directory}/{number}.parquet")
        with sorting(directory, stream.num_rows) as database:
            firsts = database.sql(f"""
                SELECT {key} FROM (
                    SELECT {key}, row_number() OVER (ORDER BY {key}) - 1 AS number FROM (
                        SELECT user_id, min({ROW}) AS {ROW}
                        FROM read_parquet({literal(escape(directory))} || '/*.parquet')
                        GROUP BY user_id
                    )
                ) WHERE number % {stream.users_per_block} = 0 ORDER BY {key}
            """)
            return BlockStarts(key, pl.DataFrame(firsts)[key])


def ordered_block(events: pl.DataFrame, number: int, stream: EventStream) -> pl.DataFrame:
    """All events of a block, in any order, as `EventStream.blocks` gives them; raises as it does.

    Args:
        number: of the block, from 0.
    """
    order = [ROW] if stream.grouped else ["user_id", ROW]
    block = events.sort(order).drop(ROW, BLOCK)
    return checked_block(block, number, stream.name)
