"""What a store keeps of the items that a shop sends to the live service, and its interface."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from jaxrec.serving.stores.packing import UNREADABLE, pack, unpack

logger = logging.getLogger(__name__)

FORMAT = 1  # of the bytes that `encode_item` writes


class TextVector(NamedTuple):
    """The pooled vector of an item's text, so that every text is encoded once for all workers."""

    encoder: str  # which encoder computed it, from which text
    values: Float[np.ndarray, " hidden"]


@dataclass(frozen=True)
class ItemDocument:
    """What a shop has sent about one item."""

    item_id: str
    columns: dict[str, Any] = field(default_factory=dict)  # JSON values
    whole: bool = True  # False: the run gives the columns that are not named here
    removed: bool = False  # it is in no list; its columns stay, for the histories that hold it
    text: TextVector | None = None
    changed: float = 0.0  # when it was sent last (s)
    sequence: int = 0  # number of its last change, among all changes of the store; 0: not stored


@runtime_checkable
class ItemStore(Protocol):
    """Documents of items, and their order of change, which workers follow.

    All methods raise a StoreError when the store fails. A document that cannot be read counts as
    that of a removed item, and the log says so: it must not keep workers from all later changes.
    """

    def sequence(self) -> int:
        """Return the number of the last change; 0 before the first one."""

    def load(self, item_ids: Sequence[str]) -> dict[str, ItemDocument]:
        """Return the stored documents by item id."""

    def since(self, sequence: int, limit: int) -> list[ItemDocument]:
        """Return the items that changed after a change, the earliest first, at most `limit`."""

    def save(self, documents: Iterable[ItemDocument]) -> list[str]:
        """Write documents, all at once, except those that were changed since they were loaded.

        A document is written if the stored sequence still equals its own. It is durable when this
        returns, and its sequence is higher than that of every earlier change.

        Returns:
            Item ids whose documents were not written: load them again and retry.
        """

    def forget(self, documents: Iterable[ItemDocument]) -> int:
        """Delete documents that did not change since they were loaded; return their number."""

    def ids(self) -> list[str]:
        """Return the ids of all documents, those of removed items included."""

    def count(self) -> int:
        """Return the number of documents, those of removed items included."""


def encode_item(document: ItemDocument) -> bytes:
    """Encode a document."""
    head = {
        "columns": document.columns,
        "whole": document.whole,
        "removed": document.removed,
        "changed": document.changed,
        "encoder": None if document.text is None else document.text.encoder,
    }
    numbers = b"" if document.text is None else document.text.values.astype("<f4").tobytes()
    return pack(FORMAT, head, numbers)


def decode_item(item_id: str, sequence: int, content: bytes) -> ItemDocument:
    """Decode what `encode_item` returned; see `ItemStore` for content that cannot be read."""
    try:
        head, numbers = unpack(FORMAT, content)
        encoder, values = head.pop("encoder"), np.frombuffer(numbers, "<f4").astype(np.float32)
        text = None if encoder is None else TextVector(encoder, values)
        return ItemDocument(item_id, **head, text=text, sequence=sequence)
    except UNREADABLE as error:
        logger.error("the document of item %r cannot be read: %s; PUT it again", item_id, error)
        return ItemDocument(item_id, removed=True, sequence=sequence)
