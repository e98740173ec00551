"""What a data set holds, before anybody trains on it."""

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import polars as pl

from jaxrec.config import Config
from jaxrec.data.codes import coded, codes, numbered
from jaxrec.data.dataset import long_history_notes, prepare
from jaxrec.data.events import refuse_many_event_types
from jaxrec.data.features import feature_columns, unused_notes, vector_columns, width_of
from jaxrec.data.graph import COLUMN_RELATIONS
from jaxrec.data.slices import counts, user_blocks
from jaxrec.data.tables import EVENT_COLUMNS, Tables
from jaxrec.errors import DataError

QUANTILES = (0.0, 0.5, 0.9, 0.99, 1.0)
MANY_REPEATS = MANY_COPIES = 0.2  # share of events
FEW_EVENTS = 100_000  # fewer may leave nothing for a part of the split


@dataclass(frozen=True)
class Counts:
    """Numbers of events per user or item, sorted."""

    values: pl.Series

    def at(self, quantile: float) -> int:
        """The number at a quantile."""
        return int(self.values.quantile(quantile, "nearest") or 0)


@dataclass(frozen=True)
class Summary:
    """What a data set holds.

    Attributes:
        rows: number of rows of every table.
        columns: table -> what its columns are used for -> their names; "" for no use.
        vector_widths: how many numbers the vectors of each column that the model reads have.
        matches: of what -> (number that matched, number in all).
        period: first and last time of an event, or None if timestamps are positions.
        event_types: number of events of every type, the most frequent first.
        repeats: share of events whose item the user had before.
        user_events: events per user.
        item_events: events per item, of all items.
        warnings: likely mistakes, each with the fix.
        notes: what was repaired.
    """

    rows: dict[str, int]
    columns: dict[str, dict[str, tuple[str, ...]]]
    vector_widths: dict[str, int]
    matches: dict[str, tuple[int, int]]
    period: tuple[datetime, datetime] | None
    event_types: dict[str, int]
    repeats: float
    user_events: Counts
    item_events: Counts
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


def summarize(tables: Tables, config: Config) -> Summary:
    """Describe tables as training with a configuration sees them.

    Raises a DataError if there are too many event types for any training.
    """
    events, items, triples = tables.events, tables.items, tables.triples
    rows = {"events": len(events), "items": len(items)}
    if triples is not None:
        rows["triples"] = len(triples)
    per_user, per_item = (_counts(events[name]) for name in ("user_id", "item_id"))
    num_idle = len(items) - len(per_item)
    item_events = pl.concat([pl.zeros(num_idle, pl.Int64, eager=True), per_item["count"].sort()])
    num_pairs, copies = _num_pairs(events)
    repeats = 1 - num_pairs / len(events)
    event_types = events["event"].value_counts(sort=True).rows()
    refuse_many_event_types([name for name, _ in event_types])
    features = feature_columns(items, config)
    unused = unused_notes(items, features, config.data.numeric_columns)
    return Summary(
        rows=rows,
        columns={"events": _event_columns(tables), "items": _item_columns(items, config)},
        vector_widths={name: width_of(items[name]) for name in features.vectors},
        matches=_matches(tables, len(per_item)),
        period=_period(events["timestamp"]) if config.data.time == "timestamp" else None,
        event_types=dict(event_types),
        repeats=repeats,
        user_events=Counts(per_user["count"].sort()),
        item_events=Counts(item_events),
        warnings=(
            *tables.warnings,
            *_warnings(per_user, repeats, copies, config),
            *_refusals(tables, config),
        ),
        notes=(*(note for note in tables.notes if note not in tables.warnings), *unused),
    )


def _event_columns(tables: Tables) -> dict[str, tuple[str, ...]]:
    names = tables.events.columns
    described = set(tables.items.columns) - {"item_id"}
    used = tuple(name for name in names if name in EVENT_COLUMNS)
    of_items = tuple(name for name in names if name not in used and name in described)
    unused = tuple(name for name in names if name not in (*used, *of_items))
    return {"events": used, "items": of_items, "": unused}


def _item_columns(items: pl.DataFrame, config: Config) -> dict[str, tuple[str, ...]]:
    graph = (*COLUMN_RELATIONS, "categories")
    others = [name for name in items.columns if name != "item_id"]
    texts, features = config.data.text_columns, feature_columns(items, config)
    unread = [name for name in vector_columns(items) if name not in features.vectors]
    used = (*texts, *graph, *features.vectors, *unread)
    return {
        "text": tuple(name for name in others if name in texts),
        "graph": tuple(name for name in others if name in graph),
        "vectors": tuple(_described(items[name]) for name in features.vectors),
        "numbers": features.numbers,
        "conditions": tuple(name for name in others if name not in used),
        "": tuple(_described(items[name]) for name in unread),
    }


def _described(vectors: pl.Series) -> str:
    """A column of vectors with the length of these and the share of items without one."""
    missing = 1 - (vectors.list.len().fill_null(0) > 0).sum() / len(vectors)
    return f"{vectors.name} ({width_of(vectors):,} numbers, {missing:.1%} missing)"


def _matches(tables: Tables, num_active: int) -> dict[str, tuple[int, int]]:
    num_events = len(tables.events)
    matches = {
        "events whose item is in the items table": (num_events - tables.num_unknown, num_events),
        "items with an event": (num_active, len(tables.items)),
    }
    if tables.triples is not None:
        of_items = tables.triples.filter(head_type="item")["head"].n_unique()
        matches["items with a triple"] = (of_items, len(tables.items))
    return matches


def _counts(ids: pl.Series) -> pl.DataFrame:
    """How often every id occurs: columns `id` and `count`."""
    _, names, sizes = numbered(ids)
    return pl.DataFrame({"id": names, "count": sizes})


def _num_pairs(events: pl.DataFrame) -> tuple[int, float]:
    """The number of different pairs of a user and an item, and the share of copies of events.

    The share is that of the first users, because it takes longer.
    """
    users, items = (codes(coded(events[name])) for name in ("user_id", "item_id"))
    kinds = events["event"]
    kinds = coded(kinds) if kinds.dtype == pl.String else kinds
    others = {"time": events["timestamp"], "kind": kinds.to_physical()}
    total, copies = 0, None
    for rows in user_blocks(users, counts(users, int(users.max(initial=0)) + 1)):
        pairs = (users[rows].astype(np.int64) << 32) | items[rows]
        total += pl.Series(pairs).n_unique()
        if copies is None:
            first = {name: column.to_numpy()[rows] for name, column in others.items()}
            hashes = pl.DataFrame({"pair": pairs, **first}).hash_rows()
            copies = 1 - hashes.n_unique() / len(rows)
    return total, copies or 0.0


def _period(timestamps: pl.Series) -> tuple[datetime, datetime]:
    first, last = (
        pl.Series([timestamps.min(), timestamps.max()])
        .cast(pl.Datetime("ms", "UTC"))
        .clip(datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC))
    )
    return first, last


def _warnings(per_user: pl.DataFrame, repeats: float, copies: float, config: Config) -> list[str]:
    warnings: list[str] = []
    user, count = per_user.sort("count", descending=True).row(0)
    warnings += long_history_notes(user, count, int(per_user["count"].sum()))
    if repeats >= MANY_REPEATS and config.evaluation.mask == ("seen",):
        warnings.append(
            f"{repeats:.0%} of the events repeat an item of the user, but lists leave out items "
            "that the user has seen. To recommend them again, use --evaluation.mask none."
        )
    if copies >= MANY_COPIES:
        warnings.append(
            f"{copies:.0%} of the events equal another one in user, item, time and type, as if a "
            "file was read twice. If they are copies, leave them out by a query: SELECT DISTINCT *."
        )
    if len(per_user) < 100:
        warnings.append(f"there are {len(per_user):,} users; results of a test vary a lot.")
    return warnings


def _refusals(tables: Tables, config: Config) -> list[str]:
    """Why a training from scratch would refuse few events: most often, nothing is left to test."""
    if len(tables.events) > FEW_EVENTS:
        return []
    try:
        prepare(config, tables)
    except DataError as error:
        return [f"`jaxrec train` refuses these data: {error}."]
    return []
