"""Several workers at one address, and the supervisor that starts them again when they end."""

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import uvicorn
from fastapi import FastAPI
from prometheus_client.multiprocess import mark_process_dead
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from jaxrec.errors import Interrupted
from jaxrec.ranking.context import Step
from jaxrec.runtime import (
    compute_in_calling_thread,
    enable_compilation_cache,
    keep_freed_memory,
)
from jaxrec.serving.http.app import create_app
from jaxrec.serving.http.metrics import DIRECTORY
from jaxrec.serving.options import LiveOptions


def worker_app(
    run: Path, options: LiveOptions, strategy: Sequence[Step], *, load_first: bool = False
) -> FastAPI:
    """The application of one worker, which ends with its supervisor; see `create_app`."""
    keep_freed_memory()
    enable_compilation_cache()
    compute_in_calling_thread()
    threading.Thread(target=_end_with_supervisor, daemon=True).start()
    return create_app(run, options, strategy, load_first=load_first)


def _end_with_supervisor() -> None:
    supervisor = multiprocessing.parent_process()
    assert supervisor is not None
    supervisor.join()  # returns also when it was killed
    os.kill(os.getpid(), signal.SIGTERM)


def supervise(config: uvicorn.Config) -> None:
    """Run workers until a signal.

    Args:
        config: its application is made in every worker, so it must be picklable.

    Raises:
        Interrupted: a signal has stopped the workers.
        SystemExit: a worker cannot start.
    """
    with tempfile.TemporaryDirectory(prefix="jaxrec-metrics-") as directory:
        os.environ[DIRECTORY] = directory  # for the workers
        supervisor = Supervisor(config, [config.bind_socket()])
        supervisor.run()
    if supervisor.received is None:
        sys.exit(STARTUP_FAILURE)
    raise Interrupted(128 + supervisor.received)


class Supervisor(Multiprocess):
    """The supervisor of uvicorn, which also records why it ended and which workers died."""

    received: int | None = None  # the signal that ended it

    def init_processes(self) -> None:
        """Start the workers; those that replace them leave connections to the others at first."""
        super().init_processes()
        make_app = cast(Callable[..., FastAPI], self.config.app)
        self.config.app = partial(make_app, load_first=True)

    def handle_int(self) -> None:
        """Stop the workers."""
        self.received = signal.SIGINT
        super().handle_int()

    def handle_term(self) -> None:
        """Stop the workers."""
        self.received = signal.SIGTERM
        super().handle_term()

    def keep_subprocess_alive(self) -> None:
        """Start workers that died again; their gauges end."""
        before = list(self.processes)
        super().keep_subprocess_alive()
        for process in before:
            if process not in self.processes:
                mark_process_dead(process.pid, os.environ[DIRECTORY])
