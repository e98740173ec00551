"""Decoded documents of the users that were read or written last, beside a store."""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from jaxrec.serving.stores.base import NEVER, UserDocument

MAX_BYTES = 2**26
EVENT_BYTES, ITEM_BYTES = 300, 100  # of Python's objects, about


class DocumentCache:
    """The latest documents by user id. A document is valid while the store holds its version.

    Several threads may share it.

    Args:
        max_bytes: about the memory of all documents; the least recently used ones go.
    """

    def __init__(self, max_bytes: int = MAX_BYTES):
        self.max_bytes, self.bytes = max_bytes, 0
        self.documents: OrderedDict[str, UserDocument] = OrderedDict()
        self.lock = threading.Lock()

    def get(self, user_ids: Sequence[str]) -> dict[str, UserDocument]:
        """The documents of these users, as far as they are kept."""
        with self.lock:
            known = {user: self.documents[user] for user in user_ids if user in self.documents}
            for user in known:
                self.documents.move_to_end(user)
        return known

    def put(self, documents: Iterable[UserDocument]) -> None:
        """Keep documents as the store holds them, unless a newer one is kept."""
        with self.lock:
            for document in documents:
                before = self.documents.get(document.user_id)
                if before is not None and before.version >= document.version:
                    continue
                self._drop(document.user_id)
                self.documents[document.user_id] = document
                self.bytes += size_of(document)
            while self.bytes > self.max_bytes:
                self._drop(next(iter(self.documents)))

    def drop(self, user_id: str) -> None:
        """Forget the document of a user."""
        with self.lock:
            self._drop(user_id)

    def clear(self) -> None:
        """Forget all documents."""
        with self.lock:
            self.documents.clear()
            self.bytes = 0

    def _drop(self, user_id: str) -> None:
        if user_id in self.documents:
            self.bytes -= size_of(self.documents.pop(user_id))


def stored(document: UserDocument, version: int) -> UserDocument:
    """A document that was written; its state is a copy, as the other may be one of a batch."""
    state, base = (None if s is None else s.copy() for s in (document.state, document.base))
    return replace(document, state=state, base=base, version=version, deleted_at=NEVER)


def size_of(document: UserDocument) -> int:
    """About the bytes of a document in memory."""
    states = sum(state.nbytes for state in (document.state, document.base) if state is not None)
    events = len(document.events) + len(document.feedback)
    items = sum(map(len, document.positives.values())) + len(document.base_ids)
    return states + EVENT_BYTES * (events + 1) + ITEM_BYTES * items
