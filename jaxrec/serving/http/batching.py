"""Dynamic batching: requests that arrive during one computation are computed together next.

So the load decides the batch size, and no request waits for others to arrive.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from fastapi import HTTPException
from prometheus_client import Gauge, Histogram

MAX_WAITING = 10_000  # requests in one queue

Request = TypeVar("Request")
Result = TypeVar("Result")


class RequestBatcher(Generic[Request, Result]):
    """Collects requests and computes them in batches.

    Args:
        process: maps a batch of requests to one result, or one exception, per request.
        executor: runs `process`.
        max_size: largest batch.
        sizes: records the batch sizes.
        unanswered: counts the requests that wait for their results.
    """

    def __init__(
        self,
        process: Callable[[list[Request]], Sequence[Result | Exception]],
        executor: ThreadPoolExecutor,
        max_size: int,
        sizes: Histogram,
        unanswered: Gauge,
    ):
        self.process, self.executor, self.max_size = process, executor, max_size
        self.sizes, self.unanswered = sizes, unanswered
        self.waiting: asyncio.Queue[tuple[Request, asyncio.Future[Result]]] = asyncio.Queue()

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
        with self.unanswered.track_inprogress():
            await self.waiting.put((request, future))
            return await future

    async def run(self) -> None:
        """Compute batches until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self.waiting.get()]
            while len(batch) < self.max_size and not self.waiting.empty():
                batch.append(self.waiting.get_nowait())
            batch = [(request, future) for request, future in batch if not future.done()]
            if not batch:  # nobody waits for an answer any more
                continue
            self.sizes.observe(len(batch))
            requests = [request for request, _ in batch]
            results: Sequence[Result | Exception]
            try:
                results = await loop.run_in_executor(self.executor, self.process, requests)
            except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # a panic in a Rust library is not an Exception
                failure = error if isinstance(error, Exception) else RuntimeError(str(error))
                results = [failure] * len(batch)
            for (_, future), result in zip(batch, results, strict=True):
                if future.done():  # its time is over
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)
