"""What the service counts, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Requests by model and status, their seconds, and the sizes of batches; of one service, not of the process."""

    def __init__(self, waiting: Callable[[], float]) -> None:
        self._registry = CollectorRegistry()
        self.requests: Counter = Counter(
            "torchswat_requests", "Requests answered.", ("model", "status"), registry=self._registry
        )
        self.seconds: Histogram = Histogram(
            "torchswat_request_seconds",
            "Seconds of requests that were answered with a result.",
            ("model",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.sizes: Histogram = Histogram(
            "torchswat_batch_size", "Images in a batch.", ("model",), buckets=_SIZES, registry=self._registry
        )
        Gauge("torchswat_images_queued", "Images in the queues.", registry=self._registry).set_function(
            waiting
        )

    def text(self) -> bytes:
        """Return all of it."""
        return generate_latest(self._registry)
