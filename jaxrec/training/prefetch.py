"""Batches on the devices, one ahead of the step that computes."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from jaxrec.sharding import host_rows, shard_batch
from jaxrec.training.state import TrainContext
from jaxrec.types import Batch


def prefetch(context: TrainContext, epoch: int, steps: range) -> Iterator[tuple[Batch, int]]:
    """Batches on the devices, with their numbers of targets; a thread makes the next one."""
    batch_size = context.config.train.batch_size
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
