"""What a server tells Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

# Seconds; bars that service levels are stated in (30, 40, 50, 100, 200 ms; 0.45, 0.5, 2 s) are edges.
TTFT_EDGES = (0.01, 0.025, 0.05, 0.1, 0.2, 0.45, 0.5, 1, 2, 5, 10, 30, 60, 300)
TPOT_EDGES = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.1, 0.2, 0.5, 1, 2)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        disable_created_metrics()  # a second series per counter, which nobody asked for
        self.registry = CollectorRegistry()
        home: dict[str, Any] = {"namespace": "trimline", "registry": self.registry}
        self.requests = Counter("requests", "Requests answered, by path and HTTP status.", ["path", "status"], **home)
        self.errors = Counter("errors", "Requests answered with an error, by its code.", ["code"], **home)
        self.cancelled = Counter("cancelled", "Requests whose client went away.", **home)
        self.prompt_tokens = Counter("prompt_tokens", "Prompt tokens read.", **home)
        self.completion_tokens = Counter("completion_tokens", "Tokens generated, the end-of-text token included.", **home)
        self.ttft = Histogram(
            "time_to_first_token_seconds", "From the request's arrival to its first text, queue included.", buckets=TTFT_EDGES, **home
        )
        self.tpot = Histogram(
            "time_per_output_token_seconds", "Mean over a request of the time per token after the first.", buckets=TPOT_EDGES, **home
        )
        self._waiting = Gauge("queue_length", "Requests that wait.", **home)
        self._running = Gauge("running", "Requests that are being answered.", **home)

    def watch(self, waiting: Callable[[], float], running: Callable[[], float]) -> None:
        """Asks these whenever the metrics are read."""
        self._waiting.set_function(waiting)
        self._running.set_function(running)
