"""Pure functions on user documents: bytes and back, merging of events."""

from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from itertools import starmap
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np

from jaxrec.errors import StoreError
from jaxrec.runtime import personal
from jaxrec.serving.stores.base import (
    MAX_POSITIVES,
    MAX_UNKNOWN,
    LiveEvent,
    Loaded,
    UserDocument,
)
from jaxrec.serving.stores.packing import UNREADABLE, pack, unpack

FORMAT = 3  # of the bytes that `encode` writes
PRECISIONS = {"float32": "<f4", "float16": "<f2"}  # little-endian
RENAMED = {"chosen": "positives", "forgotten": "truncated", "folded": "num_in_base"}  # of format 1
FIELD_TYPES: tuple[set[type], ...] = ({int}, {str}, {str}, {str, type(None)})  # of an event

SortKey = Callable[[LiveEvent], Any]
BY_TIME: SortKey = attrgetter("time")


class StoredRow(NamedTuple):
    """What a store holds of one user."""

    version: int | None = None
    content: bytes | None = None  # None: no document
    deleted_at: int | None = None  # None: no tombstone


def encode(document: UserDocument) -> bytes:
    """Encode a document."""
    states = [state for state in (document.state, document.base) if state is not None]
    halved = bool(states) and all(state.dtype == np.float16 for state in states)
    precision = "float16" if halved else "float32"
    head = {
        "precision": precision,
        "events": document.events,
        "feedback": document.feedback,
        "has_state": document.state is not None,
        "has_base": document.base is not None,
        "base_time": document.base_time,
        "base_ids": sorted(document.base_ids),
        "num_in_base": document.num_in_base,
        "truncated": document.truncated,
        "approximate": document.approximate,
        "positives": document.positives,
        "model": document.model,
    }
    numbers = b"".join(state.astype(PRECISIONS[precision]).tobytes() for state in states)
    return pack(FORMAT, head, numbers)


def decode(user_id: str, version: int, content: bytes) -> UserDocument:
    """Decode what `encode` returned, in this format or an older one.

    Raises:
        StoreError: the content is damaged, or a newer jaxrec wrote it.
    """
    try:
        return _decode(user_id, version, content)
    except UNREADABLE as error:
        raise damaged(user_id, str(error)) from error


def damaged(user_id: str, reason: str) -> StoreError:
    """The error for a document that cannot be read."""
    return StoreError(
        f"the document of user {personal(user_id)} cannot be read: {reason}; "
        "DELETE the user to start it afresh"
    )


def decode_each(
    rows: Mapping[str, StoredRow], known: Mapping[str, UserDocument] | None = None
) -> Loaded:
    """Decode what is stored of every user, each apart from the others.

    Args:
        known: documents whose content is not needed if their version is the stored one.
    """
    loaded, known = Loaded({}, {}), known or {}
    for user_id, (version, content, deleted_at) in rows.items():
        is_known = user_id in known and known[user_id].version == version
        if content is None and deleted_at is None and not is_known:
            continue
        document = known[user_id] if is_known else UserDocument(user_id)
        try:
            if content is not None:
                document = decode(user_id, version or 0, content)
        except StoreError as error:
            loaded.damaged[user_id] = error
            continue
        if deleted_at is not None:
            document = replace(document, deleted_at=deleted_at)
        loaded.documents[user_id] = document
    return loaded


def _decode(user_id: str, version: int, content: bytes) -> UserDocument:
    head, numbers = unpack(FORMAT, content)
    head = {RENAMED.get(name, name): value for name, value in head.items() if name != "format"}
    names = [name for name in ("state", "base") if head.pop(f"has_{name}")]
    precision = PRECISIONS[head.pop("precision", "float32")]
    states: Any = np.frombuffer(numbers, precision).reshape(max(len(names), 1), -1)
    if not all(type(head[name]) is int for name in ("base_time", "num_in_base", "truncated")):
        raise TypeError("a time or a count is not a whole number")
    positives = head.pop("positives").items()
    return UserDocument(
        user_id,
        events=_events(head.pop("events")),
        feedback=_events(head.pop("feedback", ())),
        base_ids=frozenset(head.pop("base_ids", ())),
        positives={event_type: tuple(items) for event_type, items in positives},
        version=version,
        **dict(zip(names, states, strict=False)),
        **head,
    )


def with_events(
    document: UserDocument,
    events: Sequence[LiveEvent],
    catalog: Container[str],
    key: SortKey = BY_TIME,
) -> UserDocument:
    """Add events that the model reads to a document, in the order of `key`.

    Events in the base stay before all others.

    Args:
        catalog: the ids of the items that the model knows.
    """
    positives = dict(document.positives)
    for event_type in {event.event_type for event in events}:
        items = [event.item_id for event in events if event.event_type == event_type]
        positives[event_type] = newest_items((*positives.get(event_type, ()), *items), catalog)
    in_base = document.events[: document.num_in_base]
    after_base = merge_events(document.events_after_base, events, key)
    return replace(document, events=in_base + after_base, positives=positives)


def merge_events(
    kept: Sequence[LiveEvent], new: Sequence[LiveEvent], key: SortKey = BY_TIME
) -> tuple[LiveEvent, ...]:
    """Merge events in the order of `key`; among equal keys, new events come last."""
    return tuple(sorted((*kept, *new), key=key))


def newest_items(items: Sequence[str], catalog: Container[str]) -> tuple[str, ...]:
    """The newest items of the catalogue and the newest others, each once, in the same order."""
    distinct = dict.fromkeys(reversed(items))
    if len(distinct) <= MAX_UNKNOWN:  # there is room for all
        return tuple(reversed(distinct))
    room = {True: MAX_POSITIVES, False: MAX_UNKNOWN}
    kept = list[str]()
    for item in distinct:
        is_known = item in catalog
        if room[is_known]:
            room[is_known] -= 1
            kept.append(item)
    return tuple(reversed(kept))


def newest_of_each_type(events: Sequence[LiveEvent], count: int) -> tuple[LiveEvent, ...]:
    """Keep the newest `count` events of each type, so that no type displaces the others."""
    seen, kept = Counter[str](), list[LiveEvent]()
    for event in reversed(events):
        seen[event.event_type] += 1
        if seen[event.event_type] <= count:
            kept.append(event)
    return tuple(reversed(kept))


def _events(rows: Sequence[Sequence]) -> tuple[LiveEvent, ...]:
    events = tuple(starmap(LiveEvent, rows))
    for values, types in zip(zip(*events, strict=True), FIELD_TYPES, strict=False):
        if not set(map(type, values)) <= types:
            raise TypeError("a field of an event is of another type")
    return events
