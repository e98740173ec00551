"""Documents as bytes: one byte for the format, compressed JSON, then numbers."""

import json
import zlib
from collections.abc import Mapping
from typing import Any

LEVEL = 1  # of zlib: higher levels save a twentieth and take several times as long
# what other content raises when it is decoded
UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, RecursionError, zlib.error)


def pack(number: int, head: Mapping[str, Any], numbers: bytes) -> bytes:
    """The bytes of a document in a format."""
    text = json.dumps(head, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return bytes([number]) + zlib.compress(text.encode(), LEVEL) + numbers


def unpack(number: int, content: bytes) -> tuple[dict[str, Any], bytes]:
    """The head and the numbers of a document; raises one of `UNREADABLE` for other content."""
    if content[0] != number:
        raise ValueError(f"its format is {content[0]}, and this version of jaxrec reads {number}")
    decompressor = zlib.decompressobj()
    return json.loads(decompressor.decompress(content[1:])), decompressor.unused_data
