"""Reading, validation and filtering of a data set's tables: events, items and triples."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import polars as pl

from jaxrec.data.codes import coded, codes, is_coded, where
from jaxrec.data.columns import (
    EventsName,
    as_ids,
    as_text,
    blank_ends,
    null_words,
    reject,
    reject_same_names,
    require,
    same_but_for_case,
    with_simple_type,
)
from jaxrec.data.features import listed_vectors
from jaxrec.data.id_types import IdType
from jaxrec.data.item_columns import (
    CATEGORY_SEPARATOR,
    OF_EVENTS,
    OF_ITEMS,
    items_of_events,
    likely_columns,
    unused_item_columns,
    with_labels,
    with_prices,
)
from jaxrec.data.linked_triples import read_linked_triples
from jaxrec.data.opener import OpenTable, open_table
from jaxrec.data.slices import counts, look_up, time_order, user_blocks
from jaxrec.data.spec import TRIPLE_COLUMNS, DatasetSpec
from jaxrec.data.times import as_milliseconds, as_positions, time_notes
from jaxrec.errors import DataError

TimeKind = Literal["timestamp", "order"]
REQUIRED_COLUMNS = ("user_id", "item_id", "timestamp")
EVENT_COLUMNS = (*REQUIRED_COLUMNS, "event", "event_id", "session_id")
# ways in which the same id is spelled in two tables
SPELLINGS = {
    "blanks at their ends": lambda ids: ids.str.strip_chars(),
    "capitals": lambda ids: ids.str.to_lowercase(),
    "zeros at their beginning": lambda ids: ids.str.replace("^0+(.)", "$1"),
    "'.0' at their ends": lambda ids: ids.str.replace(r"\.0+$", ""),
    "the forms of Unicode": lambda ids: ids.str.normalize("NFKC"),
    "quotes": lambda ids: ids.str.replace_all(r"[\"']", ""),
    "what stands before the last '/' or ':'": lambda ids: ids.str.replace(r"^.*[/:]", ""),
}
NUM_COMPARED = 10_000
MANY_UNKNOWN = 0.05  # share of events


@dataclass(frozen=True)
class Tables:
    """A validated data set.

    Attributes:
        events: user_id, item_id (strings), timestamp (int64: milliseconds since the epoch, or
            positions), event (string), then any other columns, in the order of the file. These
            strings may be codes (see `data/codes.py`).
        items: item_id (unique strings; holds every item of `events`), then any other columns.
        triples: head_type, head, relation, tail_type, tail (strings), or None.
        notes: sentences about repaired and dropped rows.
        warnings: those of the notes that name a likely mistake.
        num_unknown: number of events whose item the items table lacked.
        item_id_type: the type in which item ids leave (see `id_types.py`).
        lists_items: whether there was an items table.
    """

    events: pl.DataFrame
    items: pl.DataFrame
    triples: pl.DataFrame | None
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    num_unknown: int = 0
    item_id_type: IdType = pl.String
    lists_items: bool = True


def tables_of(
    spec: DatasetSpec,
    opened: OpenTable,
    *,
    time: TimeKind,
    strict: bool,
    as_codes: bool = False,
) -> Tables:
    """Read and validate the tables of a specification.

    Args:
        opened: the events. They give the items where there is no items table.
        time: see `validate_tables`.
        strict: see `validate_tables`.
        as_codes: ids and types of events are codes, as large tables need.

    Raises:
        DataError: as `open_table` and `validate_tables`.
    """
    events = opened.read_coded(time == "timestamp") if as_codes else opened.read()
    items, described = None, opened
    if spec.items is not None:
        described = open_table(spec.items)
        items = described.read()
    triples = None
    if spec.triples is not None and spec.triples.path.suffix == ".kg":
        table, name = (events, spec.events.origin)
        if items is not None and spec.items is not None:
            table, name = items, spec.items.origin
        item_ids = as_ids(require(table, "item_id", name), name).unique().cast(pl.String)
        triples = read_linked_triples(spec.triples.path, item_ids)
    elif spec.triples is not None:
        triples = open_table(spec.triples).read()
    tables = validate_tables(events, items, triples, origin=spec.origin, time=time, strict=strict)
    return replace(tables, item_id_type=described.item_id_type())


def validate_tables(
    events: pl.DataFrame,
    items: pl.DataFrame | None,
    triples: pl.DataFrame | None,
    *,
    origin: tuple[str, str, str] = ("events", "items", "triples"),
    time: TimeKind = "timestamp",
    strict: bool = False,
) -> Tables:
    """Check three tables and bring them into normal form.

    Args:
        events: user_id, item_id, timestamp (see `as_milliseconds`); optional event, event_id,
            session_id; other columns are kept.
        items: item_id and any other columns; None: the items of the events.
        triples: head_type, head, relation, tail_type, tail.
        origin: names of the three tables in messages.
        time: `order` if timestamps are only positions; they stay unchanged.
        strict: refuse unknown items instead of adding or dropping them with a note.

    Raises:
        DataError: a table is empty; a column is missing, occurs twice or has the wrong type; an id,
            an event or part of a triple is null or empty; a timestamp is invalid; an item_id or
            event_id names two different rows; the head of a triple is an unknown item.
    """
    origin = (EventsName(origin[0]), origin[1], origin[2])
    likely, lists_items = likely_columns(events, OF_EVENTS, origin[0]), items is not None
    events, warnings, notes = _check_events(events, origin[0], time, strict)
    warnings += likely
    if items is None:
        items, item_notes = items_of_events(events, origin[0])
        items, item_warnings, label_notes = validate_items(items, origin[0])
        notes += item_notes + label_notes
        warnings += likely_columns(events, OF_ITEMS, origin[0])
    else:
        items, item_warnings, item_notes = validate_items(items, origin[1])
        notes += item_notes
        warnings += unused_item_columns(events, items, origin[0])
        warnings += likely_columns(items, OF_ITEMS, origin[1])
        for check in (null_words, blank_ends):
            warnings += check(items["item_id"], origin[1])
    warnings += item_warnings
    known = items["item_id"].implode()
    unknown = ~where(events["item_id"], lambda text: text.is_in(known))
    items, unknown_notes = _add_unknown_items(items, events["item_id"], unknown, origin, strict)
    warnings += unknown_notes
    if triples is not None:
        triples, triple_notes = validate_triples(triples, items["item_id"], origin[2], strict)
        warnings += triple_notes
    return Tables(
        events,
        items,
        triples,
        notes=(*warnings, *notes),
        warnings=tuple(warnings),
        num_unknown=int(unknown.sum()),
        lists_items=lists_items,
    )


def _check_events(
    events: pl.DataFrame, table: str, time: TimeKind, strict: bool
) -> tuple[pl.DataFrame, list[str], list[str]]:
    """Events in normal form, warnings and notes."""
    reject_same_names(events.columns, table)
    users, items = (as_ids(require(events, name, table), table) for name in ("user_id", "item_id"))
    stamps = require(events, "timestamp", table)
    times = as_positions(stamps, table) if time == "order" else as_milliseconds(stamps, table)
    if "event" in events.columns:
        event_types = as_ids(events["event"], table)
    else:
        kind = pl.Enum(["event"]) if is_coded(users) else pl.String()
        event_types = pl.repeat("event", len(events), dtype=kind, eager=True).alias("event")
    optional = ("event_id", "session_id")
    texts = [as_text(events[name], table) for name in optional if name in events.columns]
    named = [users, items, *([event_types] if "event" in events.columns else [])]
    warnings = [note for ids in named for note in null_words(ids, table)]
    warnings += [note for ids in named for note in blank_ends(ids, table)]
    warnings += same_but_for_case(event_types, table)
    if time == "timestamp":
        warnings += time_notes(times, stamps, table, strict)
    known = pl.DataFrame([users, items, times, event_types, *texts])
    events = known.hstack(events.drop(known.columns, strict=False))
    if "event_id" not in events.columns:
        return events, warnings, []
    events, notes = _drop_repeats(events, "event_id", table)
    return events, warnings, notes


def validate_items(items: pl.DataFrame, table: str) -> tuple[pl.DataFrame, list[str], list[str]]:
    """The items table in normal form, warnings, and notes. Raises as `validate_tables`."""
    reject_same_names(items.columns, table)
    ids = as_ids(require(items, "item_id", table), table)
    others = [with_simple_type(listed_vectors(column)) for column in items.drop("item_id")]
    items = ids.to_frame().hstack(others)
    items, notes = with_labels(items, table)
    items, warnings, price_notes = with_prices(items, table)
    if "categories" in items.columns and items.schema["categories"] != pl.Null:
        items = items.with_columns(_category_paths(items["categories"]))
    items, repeat_notes = _drop_repeats(items, "item_id", table)
    return items, warnings, notes + price_notes + repeat_notes


def _category_paths(column: pl.Series) -> pl.Series:
    """Category paths as lists of names from the root on, without blank names."""
    paths = column.str.split(CATEGORY_SEPARATOR) if column.dtype == pl.String else column
    name = pl.element().str.strip_chars()
    return paths.list.eval(name.filter(name != ""))


def _add_unknown_items(
    items: pl.DataFrame,
    event_items: pl.Series,
    unknown: pl.Series,
    origin: tuple[str, str, str],
    strict: bool,
) -> tuple[pl.DataFrame, list[str]]:
    if not unknown.any():
        return items, []
    if strict or unknown.all():
        fix = "Write the ids of both tables alike" if unknown.all() else "Add these items"
        fix += _difference(items["item_id"], event_items.filter(unknown))
        fix += ", or leave strict mode" if strict else ""
        reject(unknown, event_items, origin[0], f"are not in {origin[1]}", fix)
    added = event_items.filter(unknown).unique(maintain_order=True).cast(pl.String).to_frame()
    difference = ""
    if unknown.sum() >= MANY_UNKNOWN * len(unknown):  # the comparison takes time
        difference = _difference(items["item_id"], added["item_id"])
    note = (
        f"{origin[0]}: events of items that are not in {origin[1]}: {unknown.sum():,} of "
        f"{len(unknown):,}, of {len(added):,} items; added to the items without other "
        f"columns{difference}."
    )
    return pl.concat([items, added], how="diagonal"), [note]


def _difference(known: pl.Series, unknown: pl.Series) -> str:
    """In what the spelling of unknown ids differs from known ones, if most would match without."""
    ids = unknown.unique().cast(pl.String).head(NUM_COMPARED)
    for what, spelled in SPELLINGS.items():
        matched = spelled(ids).is_in(spelled(known).implode()).sum()
        if 2 * matched > len(ids):
            return f" ({matched:,} of {len(ids):,} match without {what})"
    return ""


def validate_triples(
    triples: pl.DataFrame, item_ids: pl.Series, table: str, strict: bool
) -> tuple[pl.DataFrame, list[str]]:
    """Triples in normal form without unknown tails, and notes. Errors: see `validate_tables`."""
    columns = [as_ids(require(triples, name, table), table) for name in TRIPLE_COLUMNS]
    triples = pl.DataFrame(columns)
    unknown = {
        end: (triples[f"{end}_type"] == "item") & ~triples[end].is_in(item_ids.implode())
        for end in ("head", "tail")
    }
    fix = "Add these items to the items table, or remove the triples"
    reject(unknown["head"], triples["head"], table, "are unknown items", fix)
    if strict:
        reject(unknown["tail"], triples["tail"], table, "are unknown items", fix)
    dropped = unknown["tail"].sum()
    notes = [f"{table}: triples dropped because their tail is an unknown item: {dropped:,}."]
    return triples.filter(~unknown["tail"]), notes if dropped else []


def _drop_repeats(frame: pl.DataFrame, key: str, table: str) -> tuple[pl.DataFrame, list[str]]:
    """Drop rows with a key that equal an earlier row, and refuse keys with two different rows."""
    keyed = frame[key].is_not_null()
    repeated = keyed & ~frame.select(pl.struct(pl.all()).is_first_distinct()).to_series()
    first_keys = frame.select(pl.when(keyed & ~repeated).then(pl.col(key))).to_series()
    clash = first_keys.is_duplicated() & first_keys.is_not_null()
    reject(clash, frame[key], table, "name several different rows", "Keep one row for each")
    count = repeated.sum()
    notes = [f"{table}: rows dropped because they repeat an {key} exactly: {count:,}."]
    return frame.filter(~repeated), notes if count else []


def filter_tables(
    tables: Tables,
    *,
    min_user_events: int = 0,
    min_item_events: int = 0,
    drop_repeats: bool = False,
) -> Tables:
    """Keep users and items with enough events (k-core), and the items and triples of these events.

    `drop_repeats` applies `without_consecutive_repeats` first. Raises a DataError if no user is
    left.
    """
    if not (min_user_events or min_item_events or drop_repeats):
        return tables
    events = without_consecutive_repeats(tables.events) if drop_repeats else tables.events
    events = _core(events, {"item_id": min_item_events, "user_id": min_user_events})
    if events.is_empty():
        user, item = (tables.events[c].unique_counts().max() for c in ("user_id", "item_id"))
        raise DataError(
            f"No user is left with min_user_events={min_user_events} and min_item_events="
            f"{min_item_events}: the largest counts are {user!r} events of a user and {item!r} of "
            "an item. Lower the minimum"
        )
    left = events["item_id"].unique().cast(pl.String).implode()
    items = tables.items.filter(pl.col("item_id").is_in(left))
    triples = tables.triples
    if triples is not None:
        known = items["item_id"].implode()
        triples = triples.filter(
            (pl.col(f"{end}_type") != "item") | pl.col(end).is_in(known) for end in ("head", "tail")
        )
    note = (
        f"Filtered to {events['user_id'].n_unique():,} users, {len(items):,} items, "
        f"{len(events):,} of {len(tables.events):,} events."
    )
    return replace(tables, events=events, items=items, triples=triples, notes=(*tables.notes, note))


def _core(events: pl.DataFrame, least: dict[str, int]) -> pl.DataFrame:
    """Events whose values in each column occur often enough, also among the events that stay."""
    numbers = {name: codes(coded(events[name])) for name, count in least.items() if count > 1}
    kept = np.ones(len(events), bool)
    while numbers:
        before = np.count_nonzero(kept)
        for name, column in numbers.items():
            per_value = counts(column[kept], int(column.max(initial=0)) + 1)
            kept &= look_up(per_value >= least[name], column)
        if np.count_nonzero(kept) == before:
            break
    return events if kept.all() else events.filter(pl.Series(kept))


def without_consecutive_repeats(events: pl.DataFrame) -> pl.DataFrame:
    """Drop every event whose item is also the item of the user's previous event."""
    users, items = (codes(coded(events[name])) for name in ("user_id", "item_id"))
    kept = np.ones(len(events), bool)
    times = events["timestamp"].to_numpy()
    for rows in user_blocks(users, counts(users, int(users.max(initial=0)) + 1)):
        ordered = rows[time_order(users[rows], times[rows])]
        user, item = users[ordered], items[ordered]
        kept[ordered[1:]] = (user[1:] != user[:-1]) | (item[1:] != item[:-1])
    return events.filter(pl.Series(kept))
