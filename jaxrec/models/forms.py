"""Which of several equal forms a computation has: what is fast differs by platform."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from jaxrec.runtime import target_platform


class Forms(NamedTuple):
    """The forms of a program. They give the same results, but for rounding."""

    experts_as_one: bool  # one scan over time reads the events of all experts
    gradient_behind_scan: bool  # one product behind the scan gives the gradient of LSTM weights
    lstm_kernel: bool  # a Pallas kernel for TPUs scans an LSTM


BY_PLATFORM = {
    "cpu": Forms(experts_as_one=False, gradient_behind_scan=False, lstm_kernel=False),
    "gpu": Forms(experts_as_one=True, gradient_behind_scan=True, lstm_kernel=False),
    "tpu": Forms(experts_as_one=True, gradient_behind_scan=True, lstm_kernel=True),
}

_chosen: ContextVar[Forms | None] = ContextVar("forms", default=None)


def chosen_forms() -> Forms:
    """The forms to trace: those of the platform, or of `traced_with`."""
    return _chosen.get() or BY_PLATFORM.get(target_platform(), BY_PLATFORM["gpu"])


@contextmanager
def traced_with(forms: Forms) -> Iterator[None]:
    """Trace programs with these forms. A program that JAX has traced already keeps its own."""
    token = _chosen.set(forms)
    try:
        yield
    finally:
        _chosen.reset(token)
