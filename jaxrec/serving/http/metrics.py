"""The metrics of the service, for Prometheus.

Several workers write their values to files in one directory, and any of them answers for all.
"""

import math
import os
from collections.abc import Callable, Iterator
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from jaxrec.errors import StoreError
from jaxrec.serving.live.state_updater import BATCHES

DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client reads it when it is imported
LATENCY_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5)  # seconds
DOCUMENT_BUCKETS = (2**10, 2**12, 2**13, 2**14, 2**15, 2**16, 2**18)  # bytes


class Metrics:
    """The metrics of one process, or of all workers.

    Attributes:
        registry: what to answer.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.written_to: CollectorRegistry | None = self.registry
        if DIRECTORY in os.environ:
            MultiProcessCollector(self.registry)
            self.written_to = None  # the files alone
        self.request_seconds = Histogram(
            "jaxrec_request_seconds",
            "Time to answer a request",
            ("method", "route", "status"),
            registry=self.written_to,
            buckets=LATENCY_BUCKETS,
        )
        self.batch_size = Histogram(
            "jaxrec_batch_size",
            "Requests that were computed together",
            registry=self.written_to,
            buckets=BATCHES,
        )
        self.document_bytes = Histogram(
            "jaxrec_document_bytes",
            "Size of written documents",
            registry=self.written_to,
            buckets=DOCUMENT_BUCKETS,
        )
        self.outcomes = self.counter("events", "Received events by outcome", "outcome")
        self.store_errors = self.counter("store_errors", "Requests that the store failed")
        self.failed_reloads = self.counter("failed_reloads", "Checkpoints that cannot be loaded")
        self.expired = self.counter("expired_users", "Users deleted because of age or number")
        self.items = self.latest("items", "Items that may be listed")
        self.item_outcomes = self.counter("item_changes", "Received items by outcome", "outcome")
        self.item_update_seconds = self.latest(
            "item_update_seconds", "Time of the last update of the items, until it was in effect"
        )
        self.failed_item_updates = self.counter(
            "failed_item_updates", "Updates and items that could not be brought into effect"
        )
        self.model_step = self._gauge(
            "model_step", "Training step of the served model, of the last worker", "livemin"
        )

    def counter(self, name: str, meaning: str, *labels: str) -> Counter:
        """Add a counter, the sum over all workers."""
        return Counter(f"jaxrec_{name}", meaning, labels, registry=self.written_to)

    def total(self, name: str, meaning: str) -> Gauge:
        """Add a gauge, the sum over all workers."""
        return self._gauge(name, meaning, "livesum")

    def latest(self, name: str, meaning: str) -> Gauge:
        """Add a gauge of what all workers share: the last value that one of them has set."""
        return self._gauge(name, meaning, "livemostrecent")

    def computed(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        """Add a gauge of what all workers share, which calls `value` when it is read."""
        self.registry.register(Computed(f"jaxrec_{name}", meaning, value))

    def _gauge(
        self, name: str, meaning: str, mode: Literal["livemin", "livesum", "livemostrecent"]
    ) -> Gauge:
        return Gauge(f"jaxrec_{name}", meaning, registry=self.written_to, multiprocess_mode=mode)


class Computed(Collector):
    """A gauge whose value is computed when it is read; NaN while the store fails."""

    def __init__(self, name: str, meaning: str, value: Callable[[], float]):
        self.name, self.meaning, self.value = name, meaning, value

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """The name alone, so that registering it does not compute the value."""
        yield GaugeMetricFamily(self.name, self.meaning)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The name and the value."""
        try:
            value = self.value()
        except StoreError:
            value = math.nan
        yield GaugeMetricFamily(self.name, self.meaning, value)
