"""What the service tells Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from jaxrec.serving.live.state_updater import BATCHES

LATENCY_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5)  # seconds
DOCUMENT_BUCKETS = (2**10, 2**12, 2**13, 2**14, 2**15, 2**16, 2**18)  # bytes


class Metrics:
    """The metrics of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.request_seconds = Histogram(
            "jaxrec_request_seconds",
            "Time to answer a request",
            ("method", "route", "status"),
            registry=self.registry,
            buckets=LATENCY_BUCKETS,
        )
        self.batch_size = Histogram(
            "jaxrec_batch_size",
            "Requests that were computed together",
            registry=self.registry,
            buckets=BATCHES,
        )
        self.document_bytes = Histogram(
            "jaxrec_document_bytes",
            "Size of written documents",
            registry=self.registry,
            buckets=DOCUMENT_BUCKETS,
        )
        self.outcomes = self._counter("events", "Received events by outcome", "outcome")
        self.store_errors = self._counter("store_errors", "Requests that the store failed")
        self.failed_reloads = self._counter("failed_reloads", "Checkpoints that cannot be loaded")
        self.expired = self._counter("expired_users", "Users deleted because of age or number")
        self.model_step = self.gauge("model_step", "Training step of the served model")

    def gauge(self, name: str, meaning: str, value: Callable[[], float] | None = None) -> Gauge:
        """Add a gauge, which calls `value` when it is read."""
        gauge = Gauge(f"jaxrec_{name}", meaning, registry=self.registry)
        if value is not None:
            gauge.set_function(value)
        return gauge

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(f"jaxrec_{name}", meaning, labels, registry=self.registry)
