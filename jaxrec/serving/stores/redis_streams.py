"""Removes the entries of users from streams of a Redis or Valkey server."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import redis

from jaxrec.errors import StoreError

BATCH = 1000  # entries read at a time


def erase_entries(
    server: str, names: Sequence[str], user_ids: Collection[str]
) -> tuple[frozenset[str], int]:
    """Delete the entries of users; returns the users that were found, and the number of entries.

    Args:
        names: keys of streams of events, and of rejected entries.

    Raises:
        StoreError: the server fails.
    """
    users, entries = set[str](), 0
    try:
        with redis.Redis.from_url(
            server, decode_responses=True, encoding_errors="surrogateescape"
        ) as client:
            for name in names:
                rows: Any
                start = "-"
                while rows := client.xrange(name, start, "+", BATCH):
                    owners_of = {entry: owners(fields, user_ids) for entry, fields in rows}
                    deleted = [entry for entry, of_entry in owners_of.items() if of_entry]
                    if deleted:
                        client.xdel(name, *deleted)
                    users.update(*owners_of.values())
                    entries += len(deleted)
                    start = f"({rows[-1][0]}"
    except redis.RedisError as error:
        raise StoreError(f"the stream fails: {error}") from error
    return frozenset(users), entries


def owners(fields: Mapping[str, str], user_ids: Collection[str]) -> frozenset[str]:
    """The users that an entry names: an event, its JSON, or a rejected entry that holds either.

    What cannot be read names the users whose ids are in its text.
    """
    if "user_id" in fields:
        return frozenset({fields["user_id"]} & set(user_ids))
    text = fields.get("fields", fields.get("event", ""))
    try:
        inner = json.loads(text)
        values = {str(name): value for name, value in inner.items()}
        if "user_id" in values or "event" in values:
            texts = {name: value for name, value in values.items() if isinstance(value, str | int)}
            return owners({name: str(value) for name, value in texts.items()}, user_ids)
    except (ValueError, AttributeError, RecursionError):
        pass
    return frozenset(user for user in user_ids if user in text)
