"""The stream of a Redis or Valkey server as a source of events: addresses and entries."""

import json
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from pydantic import ValidationError

from jaxrec.errors import ConfigError, InputError
from jaxrec.serving.http.schemas import EventRequest

SCHEMES = ("redis", "rediss")
MAX_FIELDS, MAX_VALUE = 20, 4096  # of a rejected entry that are kept; characters of a value

Fields = Mapping[str, str]


class StreamAddress(NamedTuple):
    """Where a stream is."""

    server: str  # such as `redis://localhost:6379/0`
    name: str  # key of the stream

    @property
    def rejected(self) -> str:
        """Key of the stream of entries that cannot be used."""
        return f"{self.name}:rejected"


def parse_stream(address: str) -> StreamAddress:
    """The server and the name of `redis://HOST:PORT/DB/STREAM`.

    Raises:
        ConfigError: the address is not of this form.
    """
    parts = urlsplit(address)
    database, _, name = parts.path.removeprefix("/").partition("/")
    server = parts.scheme in SCHEMES and parts.hostname and _has_valid_port(parts)
    if not server or not database.isdigit() or not name:
        raise ConfigError(
            "--consume: write redis://HOST:PORT/DB/STREAM, such as redis://localhost:6379/0/events"
        )
    return StreamAddress(urlunsplit(parts._replace(path=f"/{database}")), unquote(name))


def _has_valid_port(parts: SplitResult) -> bool:
    try:
        return parts.port != 0
    except ValueError:
        return False


def parse_entry(entry_id: str, fields: Fields) -> EventRequest:
    """The event of an entry.

    An entry has the fields of an event, or one field `event` with the event as a JSON object. An
    event without an `event_id` gets the id of its entry, and one without a time the time in it, so
    that an entry that is delivered again counts once.

    Args:
        entry_id: MILLISECONDS-NUMBER.

    Raises:
        InputError: the entry is no valid event; the message says why.
    """
    try:
        if "user_id" in fields:
            event = EventRequest.model_validate(_with_number(fields))
        elif "event" in fields:
            event = EventRequest.model_validate_json(fields["event"])
        else:
            raise InputError("send the fields of an event, or a field `event` with its JSON")
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(": ".join([*map(str, first["loc"]), first["msg"]])) from None
    milliseconds, _, _ = entry_id.partition("-")
    defaults = {"event_id": entry_id, "timestamp": int(milliseconds) // 1000}
    missing = {name: value for name, value in defaults.items() if getattr(event, name) is None}
    return event.model_copy(update=missing)


def rejected_fields(entry_id: str, fields: Fields, reason: str) -> dict[str, str]:
    """What is kept of an entry that cannot be used."""
    kept = {name[:MAX_VALUE]: value[:MAX_VALUE] for name, value in [*fields.items()][:MAX_FIELDS]}
    return {"entry": entry_id, "reason": reason[:MAX_VALUE], "fields": json.dumps(kept)}


def _with_number(fields: Fields) -> dict[str, str | int]:
    """Fields with the time as a number where it is one; empty values are none."""
    given: dict[str, str | int] = {name: value for name, value in fields.items() if value}
    seconds = fields.get("timestamp", "")
    if seconds.isascii() and seconds.isdigit() and len(seconds) < 20:
        given["timestamp"] = int(seconds)
    return given
