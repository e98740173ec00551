"""Dynamic batching: requests that arrive during one computation are computed together next.

So the load decides the batch size, and no request waits for others to arrive.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from functools import partial
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


class Call(NamedTuple):
    """A function to run between two batches, and the future of its result."""

    function: Callable[[], Any]
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
        self.waiting: SimpleQueue[Waiting | Call | None] = SimpleQueue()
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

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function between two batches, in their thread, and return its result."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.waiting.put(Call(partial(function, *arguments), future))
        return await future

    def close(self) -> None:
        """Compute what is waiting, then stop."""
        self.waiting.put(None)
        self.thread.join()

    def _run(self) -> None:
        is_open = True
        while is_open:
            batch, call, is_open = self._next()
            if batch:
                self._compute(batch)
            if call is not None and not call.future.done():
                self._call(call)

    def _next(self) -> tuple[list[Waiting], Call | None, bool]:
        """The next batch, a call that comes behind it, and whether more may follow."""
        batch: list[Waiting] = []
        entry = self.waiting.get()
        while isinstance(entry, Waiting):
            if not entry.future.done():  # else nobody waits for the answer
                batch.append(entry)
            if len(batch) == self.max_size:
                return batch, None, True
            try:
                entry = self.waiting.get_nowait()
            except Empty:
                return batch, None, True
        return batch, entry, entry is not None

    def _call(self, call: Call) -> None:
        results = _attempt(lambda: [call.function()], 1)
        call.future.get_loop().call_soon_threadsafe(_deliver, [call.future], results)

    def _compute(self, batch: list[Waiting]) -> None:
        self.sizes.observe(len(batch))
        requests = [request for request, _ in batch]
        results = _attempt(lambda: self.process(requests), len(batch))
        futures = [future for _, future in batch]
        futures[0].get_loop().call_soon_threadsafe(_deliver, futures, results)


def _attempt(compute: Callable[[], Sequence[Any]], count: int) -> Sequence[Any]:
    """The results, or the exception as each of them."""
    try:
        return compute()
    except BaseException as error:  # a panic in a Rust library is not an Exception
        return [error if isinstance(error, Exception) else RuntimeError(str(error))] * count


def _deliver(futures: Sequence[asyncio.Future], results: Sequence[Any]) -> None:
    """Give every future its result, or its exception."""
    for future, result in zip(futures, results, strict=True):
        if future.done():  # its time is over
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
