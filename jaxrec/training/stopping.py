"""Ctrl-C and SIGTERM: a training saves before it stops, all its processes after the same step.

A signal may reach one process of many, and the others a moment later or never. Therefore the
processes exchange the signals that have reached them, behind every step and every part of a
validation.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from jaxrec.sharding import replicated

T = TypeVar("T")
Runner = Callable[[Callable[[], T]], T]
"""Runs a part of some work, such as `AgreedStop.interruptible`."""


class Stopped(Exception):
    """A signal has ended a part of some work."""


def uninterrupted(work: Callable[[], T]) -> T:
    """Run a part of some work that nothing but its own errors ends."""
    return work()


class StopSignal(threading.Event):
    """Set by Ctrl-C (SIGINT) or SIGTERM; `number` is that of the signal."""

    number: int = signal.SIGTERM
    _ends_work = False

    def receive(self, number: int, frame: object) -> None:
        """Handle a signal."""
        self.number = number
        self.set()
        self._raise_once()

    @contextmanager
    def ending_work(self) -> Iterator[None]:
        """A block that a signal ends at once with `Stopped`, also one that came before."""
        self._ends_work = True
        try:
            if self.is_set():
                self._raise_once()
            yield
        finally:
            self._ends_work = False

    def _raise_once(self) -> None:
        if self._ends_work:
            self._ends_work = False
            raise Stopped


@contextmanager
def stop_signal() -> Iterator[StopSignal]:
    """An event that Ctrl-C or SIGTERM sets, so that the loop can save before it exits."""
    stop = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread receives signals
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, stop.receive) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class AgreedStop:
    """The signal that stops all processes of a training; they learn of it behind the same step."""

    def __init__(self, stop: StopSignal, mesh: Mesh):
        self.stop, self.mesh = stop, mesh
        self.number = 0  # of the signal that all processes know of; 0: none
        self._asked: Int[Array, ""] | None = None

    def after_step(self) -> bool:
        """Whether to stop; all processes call this behind every step.

        Of many processes, a signal counts one step late, so that no step waits for an answer.
        """
        if jax.process_count() == 1:
            return self.now()
        answer, self._asked = self._asked, self._ask()
        if answer is not None:
            self.number = self.number or int(answer)
        return self.number > 0

    def interruptible(self, work: Callable[[], T]) -> T:
        """What `work` returns, in which no process waits for another.

        All processes call this at the same time. A signal ends the work of its own process at once.

        Raises:
            Stopped: a signal has reached a process, so that no process goes on.
        """
        result: list[T] = []
        with suppress(Stopped), self.stop.ending_work():
            result.append(work())
        if self.now():
            raise Stopped
        return result[0]

    def now(self) -> bool:
        """Whether to stop; all processes wait for each other's answer."""
        alone = jax.process_count() == 1
        self.number = self.number or (self._own() if alone else int(self._ask()))
        return self.number > 0

    def _own(self) -> int:
        return self.stop.number if self.stop.is_set() else 0

    def _ask(self) -> Int[Array, ""]:
        """The largest number of a signal that has reached a process."""
        sharding = NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))
        own = np.full(1, self._own(), np.int32)
        numbers = jax.make_array_from_callback((self.mesh.size,), sharding, lambda _: own)
        return _largest(self.mesh)(numbers)


@cache
def _largest(mesh: Mesh):
    return jax.jit(jnp.max, out_shardings=replicated(mesh))
