"""Documents as bytes: one byte for the format, compressed JSON, then numbers.

The first two formats of users had no such byte: a line of JSON, then numbers.
"""

import json
import zlib
from collections.abc import Mapping
from typing import Any

FIRST_FORMATS = b"{"  # how documents of the first two formats begin
LEVEL = 1  # of zlib: higher levels save a twentieth and take several times as long
# what other content raises when it is decoded
UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, RecursionError, zlib.error)


def pack(number: int, head: Mapping[str, Any], numbers: bytes) -> bytes:
    """The bytes of a document in a format."""
    text = json.dumps(head, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return bytes([number]) + zlib.compress(text.encode(), LEVEL) + numbers


def unpack(number: int, content: bytes) -> tuple[dict[str, Any], bytes]:
    """The head and the numbers of a document; raises one of `UNREADABLE` for other content."""
    if content.startswith(FIRST_FORMATS):
        text, _, numbers = content.partition(b"\n")
    elif content.startswith(bytes([number])):
        decompressor = zlib.decompressobj()
        text, numbers = decompressor.decompress(content[1:]), decompressor.unused_data
    elif content and number < content[0] < FIRST_FORMATS[0]:
        raise ValueError(f"a newer jaxrec wrote it in format {content[0]}; update jaxrec")
    else:
        raise ValueError("its format is unknown")
    return json.loads(text), numbers
