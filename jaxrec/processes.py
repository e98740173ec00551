"""The processes of one training: how they start, agree, and share work.

Each has devices of its own and runs the same program (`jax.distributed`). The first one writes the
files and the console. With a single process, every function here does nothing.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager
from threading import Thread
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Shaped

from jaxrec import errors
from jaxrec.errors import ConfigError, InputError, RunError

HEARTBEAT_TIMEOUT = 60  # seconds without a sign of life after which a process counts as dead
SHUTDOWN_TIMEOUT = 30  # seconds that a process which ends waits for the others
FAILURE_TIMEOUT = 3  # seconds that a process which has failed waits for others that have failed too
T = TypeVar("T")


def join(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Join the processes of a job; must come before anything is computed.

    What is not given, JAX finds on Cloud TPU, Slurm, Open MPI and Kubernetes.

    Args:
        coordinator: address and port of the first process, such as `10.0.0.1:1234`.
        processes: number of processes.
        process: number of this process, from 0.

    Raises:
        ConfigError: an argument is missing and cannot be found.
        RunError: the other processes cannot be reached.
    """
    # its handler of SIGTERM would take the place of that of the command line
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
            shutdown_timeout_seconds=SHUTDOWN_TIMEOUT,
        )
    except ValueError as error:
        raise ConfigError(
            f"no cluster is found ({error}); give --coordinator HOST:PORT, --processes N and "
            "--process NUMBER"
        ) from error
    except RuntimeError as error:  # of JAX, and of its search for a cluster
        raise RunError(
            f"the other processes cannot be reached ({error}); see that all of them start, with "
            "the same coordinator and number of processes"
        ) from error


def leave(code: int) -> None:
    """End this process, which has failed and said why, if it is one of several.

    The others may still compute. At the exit of Python, JAX would wait for them and then abort.
    They end when they miss this process.
    """
    if not jax.distributed.is_initialized():
        return
    farewell = Thread(target=jax.distributed.shutdown, daemon=True)
    farewell.start()
    farewell.join(FAILURE_TIMEOUT)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def is_first() -> bool:
    """Whether this process writes files."""
    return jax.process_index() == 0


def from_first(function: Callable[[], T]) -> T:
    """What a function returns in the first process; the others wait, and do not call it.

    What it returns must be JSON.

    Raises:
        Exception: what the function raises. In the other processes it is an `InputError` of the
            same class, or a RuntimeError.
    """
    if jax.process_count() == 1:
        return function()
    if not is_first():
        answer = _interruptibly(lambda: _broadcast({}))
        if "message" in answer:
            kind = getattr(errors, answer["kind"], RuntimeError)
            raise kind(answer["message"])
        return answer["result"]
    try:
        result = function()
    except Exception as error:
        named = type(error).__name__ if isinstance(error, InputError) else ""
        _broadcast({"kind": named, "message": f"the first process: {error}"})
        raise
    _broadcast({"result": result})
    return result


@contextmanager
def entered_by_first(manager: AbstractContextManager) -> Iterator[None]:
    """A `with` block that only the first process enters; its errors reach all."""
    with ExitStack() as stack:

        def enter() -> None:
            stack.enter_context(manager)

        from_first(enter)
        yield


def share(count: int) -> slice:
    """The part of `count` rows that this process works on."""
    size = -(-count // jax.process_count())
    return slice(size * jax.process_index(), size * (jax.process_index() + 1))


def gathered(
    rows: Shaped[np.ndarray, "n *shape"], count: int
) -> Shaped[np.ndarray, "count *shape"]:
    """All `count` rows, made of the `share` of every process."""
    if jax.process_count() == 1:
        return rows
    padded = np.zeros((-(-count // jax.process_count()), *rows.shape[1:]), rows.dtype)
    padded[: len(rows)] = rows
    return multihost_utils.process_allgather(padded, tiled=True)[:count]


def any_of(value: bool) -> bool:
    """Whether a value is true in any process."""
    return bool(gathered(np.array([value]), jax.process_count()).any())


def refuse_unequal(tree: Any) -> None:
    """Raise a RunError in every process unless all have the same arrays of NumPy or JAX."""
    if jax.process_count() == 1:
        return
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    digests = gathered(np.frombuffer(digest.digest(), np.uint8)[None], jax.process_count())
    if (digests != digests[0]).any():
        raise RunError(
            "the processes have read different data; give all of them the same files and options"
        )


def _broadcast(content: dict[str, Any]) -> dict[str, Any]:
    """The content that the first process gives."""
    text = np.frombuffer(json.dumps(content).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    # powers of two, so that few sizes are compiled
    padded = np.zeros(1 << length.bit_length(), np.uint8)
    if is_first():
        padded[:length] = text
    return json.loads(multihost_utils.broadcast_one_to_all(padded)[:length].tobytes())


def _interruptibly(function: Callable[[], T]) -> T:
    """Wait for a function in a thread, so that a signal still stops this process."""
    answer: Future[T] = Future()

    def call() -> None:
        try:
            answer.set_result(function())
        except BaseException as error:
            answer.set_exception(error)

    Thread(target=call, daemon=True).start()
    return answer.result()
