"""Batches on the devices, one ahead of the step that computes."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from jaxrec.sharding import host_rows, shard_batch
from jaxrec.training.context import TrainContext
from jaxrec.types import Batch

T = TypeVar("T")


class Timed(Generic[T]):
    """An iterator; `seconds` is how long its user has waited for its items."""

    def __init__(self, items: Iterable[T]):
        self.items = iter(items)
        self.seconds = 0.0

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        start = time.perf_counter()
        try:
            return next(self.items)
        finally:
            self.seconds += time.perf_counter() - start


def prefetch(context: TrainContext, epoch: int, steps: range) -> Iterator[tuple[Batch, int]]:
    """Batches on the devices, with their numbers of targets; a thread makes the next one."""
    batch_size = context.packing.shape[0]
    rows = host_rows(batch_size, context.mesh, context.config.train.accumulate)

    def make(step: int) -> tuple[Batch, int]:
        batch = context.packing.batch(epoch, step, rows)
        targets = context.packing.num_targets(epoch, step)
        return shard_batch(batch, context.mesh, batch_size), targets

    with ThreadPoolExecutor(1) as worker:
        ahead = deque([worker.submit(make, step) for step in steps[:1]])
        for step in steps:
            if step + 1 in steps:
                ahead.append(worker.submit(make, step + 1))
            yield ahead.popleft().result()
