"""Brings the items that any worker has recorded into the lists of this one."""

import asyncio
import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from jaxrec.errors import StoreError

if TYPE_CHECKING:
    from jaxrec.serving.http.service import LiveService  # which has one follower
    from jaxrec.serving.live.engine import LiveEngine

logger = logging.getLogger("uvicorn.error")  # the server sets its format and level

FOLLOW_SECONDS = 0.25  # between looks at the store
MAX_PAUSE = 2.0  # seconds, after an update that took as long


class ItemFollower:
    """Follows the changes of the store's items.

    An update is prepared in a thread of its own. It takes effect in the thread of the lists,
    between two batches. Where rows for new items become scarce, a larger engine is compiled
    meanwhile.
    """

    def __init__(self, service: "LiveService"):
        self.service = service
        self.changed = asyncio.Event()  # this worker has recorded items
        self.growth: asyncio.Task | None = None

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            start = time.monotonic()
            try:
                await self.follow()
            except StoreError as error:
                self.service.metrics.store_errors.inc()
                logger.error("cannot read changed items: %s", error)
            except Exception:
                self.service.metrics.failed_item_updates.inc()
                logger.exception("changed items are not in effect; next try in a second")
                await asyncio.sleep(1)
            # lists keep half of the processor
            await asyncio.sleep(min(time.monotonic() - start, MAX_PAUSE))
            with suppress(TimeoutError):
                await asyncio.wait_for(self.changed.wait(), FOLLOW_SECONDS)
            self.changed.clear()

    async def follow(self) -> None:
        """Bring the changes so far into effect."""
        service, engine = self.service, self.service.engine
        if engine is None:
            return
        metrics = service.metrics
        start = time.monotonic()
        while (update := await asyncio.to_thread(engine.next_update)) is not None:
            await service.list_batcher.call(engine.apply, update)
            metrics.failed_item_updates.inc(update.catalogue.failed)
            metrics.item_update_seconds.set(time.monotonic() - start)
            metrics.items.set(engine.num_items)
            start = time.monotonic()
        if engine.needs_room and (self.growth is None or self.growth.done()):
            self.growth = asyncio.create_task(self.grow(engine))

    async def grow(self, engine: "LiveEngine") -> None:
        """Serve from larger tables once their programs are compiled; the present ones meanwhile."""

        def make() -> "LiveEngine":
            if self.service.engine is not engine:  # a new checkpoint came first, with more room
                return self.service.ready_engine
            logger.info("making room for more than %d new items", engine.catalogue.new_items)
            return self.service.make_engine(engine.trained)

        try:
            await self.service.replace_engine(make)
        except Exception:
            self.service.metrics.failed_item_updates.inc()
            logger.exception("cannot make room for new items; the present ones are served")
            await asyncio.sleep(60)
