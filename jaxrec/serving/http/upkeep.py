"""What runs beside the requests: reloading, checks of the store, deletion of old users."""

import asyncio
import logging
import math
import time
import traceback

from jaxrec.artifacts import run_directory
from jaxrec.errors import StoreError
from jaxrec.serving.http.service import LiveService
from jaxrec.serving.stores.retention import Retention

logger = logging.getLogger("uvicorn.error")  # the server sets its format and level

DAY, HOUR, GIGABYTE = 86_400, 3600, 1e9
CHECK_SECONDS = 5.0  # between checks of the store


def background_tasks(service: LiveService) -> list[asyncio.Task]:
    """Start what runs beside the requests."""
    work = (watch_run, expire_documents, check_store)
    tasks = [service.follower.run(), *(function(service) for function in work)]
    return [asyncio.create_task(task) for task in tasks]


async def watch_run(service: LiveService) -> None:
    """Load the best model, then every better one; the present one serves meanwhile."""
    seen: set[tuple[str, int, int]] = set()
    while True:
        try:
            files = await asyncio.to_thread(run_directory.file_states, service.run)
            if files != seen:
                await service.replace_engine(service.load_best)
            seen, service.reload_failure = files, ""
        except Exception as error:
            service.metrics.failed_reloads.inc()
            service.reload_failure = f"the checkpoint cannot be loaded: {error}"
            logger.exception("cannot load the checkpoint; the previous model stays")
        service.tried.set()
        await asyncio.sleep(service.options.refresh)


async def check_store(service: LiveService) -> None:
    """Read and write the store every few seconds, for `/health/ready`."""
    while True:
        try:
            await asyncio.to_thread(service.store.check)
            service.store_failure = ""
        except StoreError as error:
            service.store_failure = str(error)
        await asyncio.sleep(CHECK_SECONDS)


async def expire_documents(service: LiveService) -> None:
    """Delete documents that are too old or too many, every hour."""
    while True:
        try:
            deleted = await asyncio.to_thread(_expire, service)
            service.metrics.expired.inc(deleted)
            if deleted:
                logger.info("deleted %d expired documents", deleted)
            if service.engine is not None:
                before = time.time() - DAY * service.options.keep_days
                await asyncio.to_thread(service.item_recorder.forget, before)
        except StoreError as error:
            service.metrics.store_errors.inc()
            logger.error("%s", error)
        except Exception as error:  # its message may hold data of a user
            frames, kind = "".join(traceback.format_tb(error.__traceback__)), type(error).__name__
            logger.error("cannot delete expired documents (%s in\n%s)", kind, frames)
        await asyncio.sleep(HOUR)


def _expire(service: LiveService) -> int:
    options, now = service.options, time.time()
    retention = Retention(
        before=now - DAY * options.keep_days,
        max_users=options.keep_users,
        max_bytes=GIGABYTE * options.keep_gigabytes or math.inf,
        max_share=options.expire_share,
        tombstones_before=now - DAY * options.keep_tombstones,
    )
    return service.store.expire(retention)
