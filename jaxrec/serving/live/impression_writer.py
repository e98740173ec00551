"""Writes impressions in a thread of its own, so that no list waits for the store."""

import logging
import threading
from collections.abc import Sequence
from queue import Empty, Full, Queue

from jaxrec.errors import StoreError
from jaxrec.serving.stores.base import Impression, Store

logger = logging.getLogger(__name__)

MAX_WAITING = 1000  # batches
MAX_WRITTEN = 64  # batches written at a time


class ImpressionWriter:
    """A queue of impressions before a store.

    Impressions serve evaluation alone. So they are dropped, with a warning, where the store fails
    or cannot keep up.
    """

    def __init__(self, store: Store):
        self.store = store
        self.waiting: Queue[Sequence[Impression] | None] = Queue(MAX_WAITING)
        self.thread = threading.Thread(target=self._write, name="impressions", daemon=True)
        self.thread.start()

    def add(self, impressions: Sequence[Impression]) -> None:
        """Write impressions soon; returns at once."""
        if not impressions:
            return
        try:
            self.waiting.put_nowait(impressions)
        except Full:
            logger.warning("%d lists were not stored: the store is too slow", len(impressions))

    def close(self) -> None:
        """Write what is waiting, then stop."""
        self.waiting.put(None)
        self.thread.join()

    def _write(self) -> None:
        is_open = True
        while is_open:
            batches = [self.waiting.get()]
            try:
                while len(batches) < MAX_WRITTEN:
                    batches.append(self.waiting.get_nowait())
            except Empty:
                pass
            is_open = None not in batches
            impressions = [i for batch in batches if batch is not None for i in batch]
            try:
                self.store.add_impressions(impressions)
            except StoreError as error:
                logger.warning("%d lists were not stored: %s", len(impressions), error)
