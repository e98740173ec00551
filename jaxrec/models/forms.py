"""Which of several equal forms a computation has: what is fast differs by platform."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from jaxrec.runtime import target_platform


class Forms(NamedTuple):
    """The forms of a program. They give the same results, but for rounding."""

    experts_as_one: bool  # one scan over time reads the events of all experts
    products_behind_scan: bool  # products over all steps give the gradients of an LSTM, not sums
    memory_by_products: bool  # matrix products give the item memory of all steps, not a scan
    lstm_kernel: bool  # a Pallas kernel for TPUs scans an LSTM
    gradients_as_one: bool  # one message adds up the gradients of all devices along `users`
    loss_logits: int  # of a block of the softmax: many small blocks start many kernels


ON_CPU = Forms(
    experts_as_one=False,
    products_behind_scan=False,
    memory_by_products=False,
    lstm_kernel=False,
    gradients_as_one=True,
    loss_logits=2**21,
)
ON_GPU = Forms(
    experts_as_one=True,
    products_behind_scan=True,
    memory_by_products=True,
    lstm_kernel=False,
    gradients_as_one=False,
    loss_logits=2**25,
)
BY_PLATFORM = {"cpu": ON_CPU, "gpu": ON_GPU, "tpu": ON_GPU._replace(lstm_kernel=True)}

_chosen: ContextVar[Forms | None] = ContextVar("forms", default=None)


def chosen_forms() -> Forms:
    """The forms to trace: those of the platform, or of `traced_with`."""
    return _chosen.get() or BY_PLATFORM.get(target_platform(), ON_GPU)


@contextmanager
def traced_with(forms: Forms) -> Iterator[None]:
    """Trace programs with these forms. A program that JAX has traced already keeps its own."""
    token = _chosen.set(forms)
    try:
        yield
    finally:
        _chosen.reset(token)
