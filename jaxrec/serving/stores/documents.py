"""Pure functions on user documents: bytes and back, merging of events."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any

import numpy as np

from jaxrec.errors import StoreError
from jaxrec.serving.stores.base import Impression, LiveEvent, UserDocument

FORMAT = 2  # of the bytes that `encode` writes
RENAMED = {"chosen": "positives", "forgotten": "truncated", "folded": "num_in_base"}  # of format 1

SortKey = Callable[[LiveEvent], Any]
BY_TIME: SortKey = attrgetter("time")


def encode(document: UserDocument) -> bytes:
    """Encode a document: one line of JSON, then its states as little-endian float32."""
    states = [state for state in (document.state, document.base) if state is not None]
    head = {
        "format": FORMAT,
        "events": [_event_row(event) for event in document.events],
        "feedback": [_event_row(event) for event in document.feedback],
        "has_state": document.state is not None,
        "has_base": document.base is not None,
        "base_time": document.base_time,
        "base_ids": sorted(document.base_ids),
        "num_in_base": document.num_in_base,
        "truncated": document.truncated,
        "approximate": document.approximate,
        "positives": {name: sorted(items) for name, items in document.positives.items()},
        "model": document.model,
    }
    text = json.dumps(head, ensure_ascii=False, separators=(",", ":"))
    return text.encode() + b"\n" + b"".join(state.astype("<f4").tobytes() for state in states)


def decode(user_id: str, version: int, content: bytes) -> UserDocument:
    """Decode what `encode` returned, in this format or an older one.

    Raises:
        StoreError: the content is damaged, or a newer jaxrec wrote it.
    """
    try:
        return _decode(user_id, version, content)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise StoreError(f"the document of user {user_id!r} cannot be read: {error}") from error


def _decode(user_id: str, version: int, content: bytes) -> UserDocument:
    text, _, numbers = content.partition(b"\n")
    head: dict[str, Any] = json.loads(text)
    if head.pop("format", 1) > FORMAT:
        raise ValueError("a newer jaxrec wrote it; update jaxrec")
    head = {RENAMED.get(name, name): value for name, value in head.items()}
    names = [name for name in ("state", "base") if head.pop(f"has_{name}")]
    states: Any = np.frombuffer(numbers, "<f4").reshape(max(len(names), 1), -1)
    positives = head.pop("positives").items()
    return UserDocument(
        user_id,
        events=tuple(LiveEvent(*row) for row in head.pop("events")),
        feedback=tuple(LiveEvent(*row) for row in head.pop("feedback", ())),
        base_ids=frozenset(head.pop("base_ids", ())),
        positives={event_type: frozenset(items) for event_type, items in positives},
        version=version,
        **dict(zip(names, states, strict=False)),
        **head,
    )


def decode_impression(user_id: str, time: int, content: str | bytes) -> Impression:
    """Decode an impression from the JSON list of its model, items and propensities."""
    model, items, propensities = json.loads(content)
    return Impression(user_id, time, model, tuple(items), tuple(propensities))


def with_events(
    document: UserDocument, events: Sequence[LiveEvent], key: SortKey = BY_TIME
) -> UserDocument:
    """Add events that the model reads to a document, in the order of `key`.

    Events in the base stay before all others.
    """
    positives = dict(document.positives)
    for event_type in {event.event_type for event in events}:
        items = {event.item_id for event in events if event.event_type == event_type}
        positives[event_type] = positives.get(event_type, frozenset()) | items
    in_base = document.events[: document.num_in_base]
    after_base = merge_events(document.events_after_base, events, key)
    return replace(document, events=in_base + after_base, positives=positives)


def merge_events(
    kept: Sequence[LiveEvent], new: Sequence[LiveEvent], key: SortKey = BY_TIME
) -> tuple[LiveEvent, ...]:
    """Merge events in the order of `key`; among equal keys, new events come last."""
    return tuple(sorted((*kept, *new), key=key))


def newest_of_each_type(events: Sequence[LiveEvent], count: int) -> tuple[LiveEvent, ...]:
    """Keep the newest `count` events of each type, so that no type displaces the others."""
    seen, kept = Counter[str](), list[LiveEvent]()
    for event in reversed(events):
        seen[event.event_type] += 1
        if seen[event.event_type] <= count:
            kept.append(event)
    return tuple(reversed(kept))


def _event_row(event: LiveEvent) -> list:
    return [event.time, event.item_id, event.event_type, event.event_id]
