"""Batch jobs on Ray Data: workers on one machine or many read, group and score the events.

Tasks read shares of the files and number their rows. The users decide where blocks begin, Ray Data
brings the events of a block together, and actors, which hold the model, score it and write its
files. A file appears whole or not at all, and its bytes do not depend on the actor, so a block that
a killed actor has left is scored again without harm.
"""

import contextlib
import json
import logging
import os
import signal
import socket
from collections.abc import Collection, Generator, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl
import pyarrow as pa

from jaxrec.artifacts.directories import Directory
from jaxrec.artifacts.partitions import has_manifest, write_files
from jaxrec.data import share_tasks as tasks
from jaxrec.data.shares import BLOCK, block_starts, ordered_block, shares
from jaxrec.data.stream import EventStream
from jaxrec.errors import ConfigError, InputError, RunError
from jaxrec.serving.console import silence
from jaxrec.serving.scoring import JobOptions, Outputs, Scorer, load_scorer, score_part

if TYPE_CHECKING:
    from ray.data import Dataset

RESTARTS = 3  # of an actor that is killed, and attempts more for its block
MOST_GROUPS = 1024  # of blocks that are brought together; each is in memory at once


class FinishedPart(NamedTuple):
    """A part whose files are written."""

    facts: dict[str, Any]  # for the manifest
    preview: list[str]
    total: int  # parts of the job


class Pool(NamedTuple):
    """The actors of a job."""

    size: int
    gpus: int  # of each


@contextlib.contextmanager
def cluster() -> Iterator[None]:
    """Connect to the cluster that RAY_ADDRESS names or that this machine belongs to, or start one.

    Enter it before anything is computed: Ray forks to start processes, and JAX must not occupy an
    accelerator in this process, which only directs the others.

    Raises a ConfigError if Ray is not installed, or there is no such cluster.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ConfigError(f"--engine ray needs pip install 'jaxrec[ray]' ({error})") from None
    import jax

    jax.config.update("jax_platforms", "cpu")
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised
    ray.data.DataContext.get_current().enable_progress_bars = False
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise ConfigError(f"RAY_ADDRESS: {error}; start the cluster, or name another") from error
    finally:
        signal.signal(signal.SIGTERM, handler)  # Ray has put its own in place
    try:
        yield
    finally:
        ray.shutdown()


def write_parts(
    options: JobOptions, events: EventStream, finished: Collection[int], outputs: Outputs
) -> Generator[FinishedPart, None, None]:
    """Score and write the blocks that are not in `finished`, in any order, on the `cluster`.

    Raises:
        ConfigError: there are too few GPUs for the workers.
        InputError: as `EventStream.blocks`.
        RunError: a worker was killed again and again, or Ray has failed.
    """
    import ray

    with _plain_errors():
        machines = sum(node["Alive"] for node in ray.nodes())
        pool = pool_of(ray.cluster_resources(), machines, options.workers)
        directory = Path.cwd()
        rows = _numbered_rows(events, directory).materialize()
        users = rows.map_batches(tasks.users, batch_format="pyarrow")
        starts = block_starts(_frames(users), events)
        total = len(starts.firsts)
        missing = total - len(finished)
        if not missing:
            return
        number = partial(tasks.with_blocks, starts, frozenset(finished))
        blocks = rows.map_batches(number, batch_format="pyarrow").groupby(
            BLOCK, num_partitions=min(missing, MOST_GROUPS)
        )
        scored = blocks.map_groups(
            PartWriter,
            fn_constructor_args=(options, events, outputs, directory),
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=pool.size),
            num_cpus=0,  # so that all actors and the tasks before them fit on the smallest cluster
            num_gpus=pool.gpus,
            max_restarts=RESTARTS,
            max_task_retries=RESTARTS,
        )
        for row in scored.iter_rows():
            yield FinishedPart(json.loads(row["facts"]), json.loads(row["preview"]), total)


def pool_of(resources: Mapping[str, float], machines: int, workers: int | None) -> Pool:
    """The actors for a cluster: one for each GPU, or for each machine without GPUs.

    Args:
        resources: of the cluster, by Ray's names.
        workers: another number of actors.

    Raises:
        ConfigError: there are fewer GPUs than workers.
    """
    gpus = int(resources.get("GPU", 0))
    if gpus and workers and workers > gpus:
        raise ConfigError(f"--workers {workers}: the cluster has {gpus} GPUs, one for each worker")
    return Pool(workers or gpus or machines, min(gpus, 1))


class PartWriter:
    """An actor that scores blocks and writes their files."""

    def __init__(
        self, options: JobOptions, events: EventStream, outputs: Outputs, directory: Path
    ) -> None:
        self.options, self.events, self.outputs = options, events, outputs
        self.directory = directory

    @cached_property
    def scorer(self) -> Scorer:
        """Loaded for the first block: of errors in a constructor, Ray reports the text alone."""
        tasks.enter(self.directory)
        _refuse_another_directory(self.outputs.lists)
        with silence(True):  # the process of the job has printed the notes
            return load_scorer(self.options, shared=True)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Score one block: its numbered events -> facts and preview, as JSON."""
        events = tasks.frame_of(rows)
        number = events[BLOCK][0]
        block = ordered_block(events, number, self.events)
        part = score_part(self.scorer, number, block, self.outputs)
        write_files(part.files)
        return pa.table({"facts": [json.dumps(part.facts)], "preview": [json.dumps(part.preview)]})


def _numbered_rows(events: EventStream, directory: Path) -> "Dataset":
    import ray

    parts = shares(events)
    numbers = ray.data.range(len(parts), override_num_blocks=len(parts))
    return numbers.map_batches(partial(tasks.read, parts, directory), batch_format="pyarrow")


def _frames(rows: "Dataset") -> Iterator[pl.DataFrame]:
    return map(tasks.frame_of, rows.iter_batches(batch_size=None, batch_format="pyarrow"))


def _refuse_another_directory(directory: Directory) -> None:
    """Raise a RunError if this machine does not see what the process of the job has written."""
    if not has_manifest(directory.names()):
        raise RunError(
            f"{socket.gethostname()}: {directory.address} is not the directory of the job; write "
            "to one that all machines of the cluster share"
        )


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Raise what is wrong with the input as in one process, and failures of Ray as a RunError."""
    from ray import exceptions

    try:
        yield
    except exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, InputError):  # without what Ray adds on its attempts
            raise type(cause)(str(cause).partition("\nFailed to apply UDF")[0]) from None
        if isinstance(cause, OSError):
            raise cause from None
        raise
    except exceptions.RayError as error:
        what = str(error).partition("\n")[0]
        raise RunError(
            f"Ray: {what} Its logs are in /tmp/ray/session_latest/logs on that machine; give the "
            "same command again to continue"
        ) from error
