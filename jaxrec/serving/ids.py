"""The alphabet of ids: user ids, item ids, event ids and event types."""

import re

from jaxrec.errors import InputError
from jaxrec.runtime import personal

SHOWN = 80  # characters of a text in a message
RULE = "use 1 to 256 characters without control characters and line breaks"
# controls, line and paragraph separators
FORBIDDEN = r"\x00-\x1f\x7f-\x9f\u2028\u2029"


def _pattern(forbidden: str) -> str:
    """1 to 256 characters; `.` and `..` are none, because clients shorten paths that hold them."""
    character, first = f"[^{forbidden}]", f"[^.{forbidden}]"
    forms = (
        f"{first}{character}{{0,255}}",
        rf"\.{first}{character}{{0,254}}",
        rf"\.\.{character}{{1,254}}",
    )
    return f"^(?:{'|'.join(forms)})$"


PATTERN = _pattern(FORBIDDEN)  # for Polars and JSON Schema, whose text has no surrogates
ID = re.compile(_pattern(rf"{FORBIDDEN}\ud800-\udfff"))


def is_id(text: str) -> bool:
    """Whether text is an id: 1 to 256 characters, without control characters and line breaks."""
    return ID.fullmatch(text) is not None


def check_id(text: str) -> str:
    """Return an id.

    Raises:
        InputError: the text is none.
    """
    if not is_id(text):
        raise InputError(f"{personal(text[:SHOWN])} is no id: {RULE}")
    return text
