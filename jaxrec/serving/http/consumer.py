"""Consumes events from a stream, beside those that come over HTTP.

An entry is acknowledged when the store keeps its event. So an entry may be delivered twice, when a
process ends in between, but its event counts once, by its `event_id`.
"""

import asyncio
import logging
import math
import os
import socket
import traceback
from typing import Any, NamedTuple

import redis.asyncio as redis
from fastapi import HTTPException
from prometheus_client import Counter, Gauge
from redis.exceptions import RedisError, ResponseError

from jaxrec.errors import InputError, StoreError
from jaxrec.serving.http.routes import parse_events
from jaxrec.serving.http.service import LiveService
from jaxrec.serving.http.stream import (
    Fields,
    parse_entry,
    parse_stream,
    rejected_fields,
)
from jaxrec.serving.live.recorder import Recorded, UserEvent
from jaxrec.serving.stores.redis import server_message

logger = logging.getLogger("uvicorn.error")  # the server sets its format and level

GROUP = "jaxrec"
BATCH = 512  # entries read at a time
BLOCK_SECONDS = 1.0  # to wait for new entries
CLAIM_SECONDS = 60.0  # after which the entries of a process that ended go to another
RETRY_SECONDS = 1.0  # between attempts while the model is loading, or a server fails
MAX_ATTEMPTS = 5  # to record an event of a user whose document cannot be read or written
MAX_REJECTED = 10_000  # entries kept in the stream of rejected ones, about


class Entry(NamedTuple):
    """An entry of the stream and its event."""

    id: str
    fields: Fields
    event: UserEvent


class StreamConsumer:
    """Reads a stream as one consumer of a group, and records its events."""

    def __init__(self, service: LiveService, address: str):
        self.service, self.address = service, parse_stream(address)
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self.client = redis.Redis.from_url(
            self.address.server,
            protocol=2,  # the answers of protocol 3 differ between versions of the client
            decode_responses=True,
            encoding_errors="surrogateescape",
            socket_timeout=5.0 + BLOCK_SECONDS,
            socket_connect_timeout=5.0,
        )
        metrics = service.metrics
        self.entries: Counter = metrics.counter(
            "stream_entries", "Entries of the stream by result", "result"
        )
        self.lag: Gauge = metrics.latest("stream_lag", "Entries that no process has read yet")
        self.pending: Gauge = metrics.latest("stream_pending", "Entries read, not yet recorded")

    async def run(self) -> None:
        """Consume until cancelled; wait while the model is loading or a server fails."""
        failure = ""  # is logged once, not every second
        try:
            while True:
                try:
                    await self._create_group()
                    failure = ""
                    await self._consume()
                except (RedisError, OSError) as error:
                    reason = server_message(error)
                    if reason != failure:
                        logger.error("the stream %s fails: %s", self.address.name, reason)
                    failure = reason
                except Exception as error:
                    self._log_defect(error)
                await asyncio.sleep(RETRY_SECONDS)
        finally:
            await self.client.aclose()

    async def _create_group(self) -> None:
        """Create the stream and its group where they are missing; it begins at the first entry."""
        try:
            await self.client.xgroup_create(self.address.name, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    async def _consume(self) -> None:
        clock = asyncio.get_running_loop().time
        next_claim = 0.0
        while True:
            if self.service.engine is None:
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if clock() >= next_claim:
                await self._claim()
                await self._measure()
                next_claim = clock() + CLAIM_SECONDS / 10
            streams: Any = await self.client.xreadgroup(
                GROUP, self.name, {self.address.name: ">"}, BATCH, int(1000 * BLOCK_SECONDS)
            )
            for _, entries in streams or []:
                await self._record(entries)

    async def _claim(self) -> None:
        """Record the entries of processes that ended before they acknowledged them."""
        name, start = self.address.name, "0-0"
        while True:
            start, entries, *_ = await self.client.xautoclaim(
                name, GROUP, self.name, int(1000 * CLAIM_SECONDS), start, count=BATCH
            )
            # an entry that was deleted from the stream meanwhile has no fields
            await self._record([(entry_id, fields) for entry_id, fields in entries if fields])
            if start == "0-0":
                return

    async def _measure(self) -> None:
        for group in await self.client.xinfo_groups(self.address.name):
            if group["name"] == GROUP:
                lag = group.get("lag")  # unknown to old servers, and after deletions
                self.lag.set(math.nan if lag is None else lag)
                self.pending.set(group["pending"])

    async def _record(self, entries: list[tuple[str, Fields]]) -> None:
        """Record the events of entries; reject those that cannot be used; acknowledge all."""
        waiting = await self._parsed(entries)
        for attempt in range(1, MAX_ATTEMPTS + 1):
            if not waiting:
                return
            if attempt > 1:
                await asyncio.sleep(RETRY_SECONDS)
            recorded, failed = list[str](), list[Entry]()
            for entry, outcome in zip(waiting, await self._outcomes(waiting), strict=True):
                if isinstance(outcome, str):
                    self.service.metrics.outcomes.labels(outcome).inc()
                    recorded.append(entry.id)
                elif isinstance(outcome, StoreError) and attempt < MAX_ATTEMPTS:
                    failed.append(entry)
                else:
                    await self._reject(entry.id, entry.fields, str(outcome))
            await self._acknowledge(recorded)
            waiting = failed

    async def _parsed(self, entries: list[tuple[str, Fields]]) -> list[Entry]:
        """The entries that are valid events; the others are rejected."""
        valid = list[Entry]()
        for entry_id, fields in entries:
            try:
                [event] = parse_events([parse_entry(entry_id, fields)], self.service)
            except InputError as error:
                await self._reject(entry_id, fields, str(error))
            except HTTPException as error:
                await self._reject(entry_id, fields, error.detail.removeprefix("events[0]."))
            else:
                valid.append(Entry(entry_id, fields, event))
        return valid

    async def _outcomes(self, entries: list[Entry]) -> list[Recorded | InputError]:
        """What became of each event; waits while the store fails.

        An error of one event is a StoreError that concerns its user, or an InputError.
        """
        while True:
            try:
                return list(
                    await self.service.record_batcher.submit([entry.event for entry in entries])
                )
            except (StoreError, HTTPException) as error:  # of the store, or too many requests wait
                reason = error.detail if isinstance(error, HTTPException) else error
                logger.error("the stream %s waits: %s", self.address.name, reason)
                await asyncio.sleep(RETRY_SECONDS)
            except Exception as error:  # of one event: the others must not suffer
                if len(entries) > 1:
                    return [
                        outcome for entry in entries for outcome in await self._outcomes([entry])
                    ]
                if isinstance(error, InputError):
                    return [error]
                self._log_defect(error)
                return [InputError(f"internal error ({type(error).__name__}); see the log")]

    def _log_defect(self, error: Exception) -> None:
        """Log where an error happened; its message may hold data of a user."""
        frames = "".join(traceback.format_tb(error.__traceback__))
        logger.error("stream %s: %s in\n%s", self.address.name, type(error).__name__, frames)

    async def _acknowledge(self, ids: list[str]) -> None:
        if ids:
            await self.client.xack(self.address.name, GROUP, *ids)
            self.entries.labels("recorded").inc(len(ids))

    async def _reject(self, entry_id: str, fields: Fields, reason: str) -> None:
        """Move an entry to the stream of rejected ones."""
        if self.service.id_key:  # what cannot be read may hold the id of a user anywhere
            fields, reason = {}, "no valid event; nothing of it is kept where ids are pseudonyms"
        kept: dict[Any, Any] = {**rejected_fields(entry_id, fields, reason)}
        async with self.client.pipeline(transaction=True) as pipeline:
            pipeline.xadd(self.address.rejected, kept, maxlen=MAX_REJECTED)
            pipeline.xack(self.address.name, GROUP, entry_id)
            await pipeline.execute()
        self.entries.labels("rejected").inc()
