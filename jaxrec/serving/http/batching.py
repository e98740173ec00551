"""Dynamic batching: requests that arrive during one computation are computed together next.

So the load decides the batch size, and no request waits for others to arrive.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Generic, NamedTuple, TypeVar

from fastapi import HTTPException
from prometheus_client import Gauge, Histogram

MAX_WAITING = 10_000  # requests in one queue

Request = TypeVar("Request")
Result = TypeVar("Result")


class Waiting(NamedTuple):
    """A request and the future of its result."""

    request: Any
    future: asyncio.Future


class RequestBatcher(Generic[Request, Result]):
    """Collects requests and computes them in batches, in a thread of its own.

    Args:
        name: of the thread.
        process: maps a batch of requests to one result, or one exception, per request.
        max_size: largest batch.
        sizes: records the batch sizes.
        unanswered: counts the requests that wait for their results.
    """

    def __init__(
        self,
        name: str,
        process: Callable[[list[Request]], Sequence[Result | Exception]],
        max_size: int,
        sizes: Histogram,
        unanswered: Gauge,
    ):
        self.process, self.max_size = process, max_size
        self.sizes, self.unanswered = sizes, unanswered
        self.waiting: SimpleQueue[Waiting | None] = SimpleQueue()
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    async def submit(self, request: Request) -> Result:
        """Return the result of one request.

        Raises:
            HTTPException: 503 if too many requests are waiting.
        """
        if self.waiting.qsize() >= MAX_WAITING:
            raise HTTPException(
                503, "too many requests are waiting; try again later", {"Retry-After": "1"}
            )
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self.unanswered.inc()
        try:
            self.waiting.put(Waiting(request, future))
            return await future
        finally:
            self.unanswered.dec()

    def close(self) -> None:
        """Compute what is waiting, then stop."""
        self.waiting.put(None)
        self.thread.join()

    def _run(self) -> None:
        is_open = True
        while is_open:
            received = [self.waiting.get()]
            try:
                while len(received) < self.max_size:
                    received.append(self.waiting.get_nowait())
            except Empty:
                pass
            is_open = None not in received
            # nobody waits for the answer of a future that is done
            batch = [w for w in received if w is not None and not w.future.done()]
            if batch:
                self._compute(batch)

    def _compute(self, batch: list[Waiting]) -> None:
        self.sizes.observe(len(batch))
        results: Sequence[Result | Exception]
        try:
            results = self.process([request for request, _ in batch])
        except BaseException as error:  # a panic in a Rust library is not an Exception
            failure = error if isinstance(error, Exception) else RuntimeError(str(error))
            results = [failure] * len(batch)
        batch[0].future.get_loop().call_soon_threadsafe(_deliver, batch, results)


def _deliver(batch: Sequence[Waiting], results: Sequence[Any]) -> None:
    """Give every future its result, or its exception."""
    for (_, future), result in zip(batch, results, strict=True):
        if future.done():  # its time is over
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
