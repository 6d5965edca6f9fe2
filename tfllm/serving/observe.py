"""What an operator sees: metrics in Prometheus' format, request ids, logs without request text.

Every number is offered under tfllm's name and, where TF Serving has one for it, under TF Serving's
(`:tensorflow:serving:request_count`, microseconds), so that its dashboards and alerts work.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, Histogram, disable_created_metrics
from prometheus_client import Counter as Total
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest

from tfllm.serving.batcher import BatchReport
from tfllm.serving.schema import Code

UNKNOWN_MODEL = "unknown"  # one label value for all names that are not served
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
MICROSECONDS = tuple(10 * 1.8**power for power in range(33))  # TF Serving's buckets
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

REQUEST_ID = re.compile(r"[A-Za-z0-9._:/=+-]{1,128}")
TRACE_PARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")

access_log = logging.getLogger("tfllm.serving.access")


class Metrics:
    """All series of one server, in a collection of its own."""

    def __init__(self) -> None:
        disable_created_metrics()
        self.registry = CollectorRegistry()
        self._requests = self._total(
            "tfllm_requests", "Requests answered.", "model", "method", "entrypoint", "code"
        )
        self._request_seconds = self._histogram(
            "tfllm_request_seconds", "From arrival to answer.", SECONDS,
            "model", "method", "entrypoint",
        )  # fmt: skip
        self._rows = self._total("tfllm_rows", "Rows that TensorFlow ran.", "model")
        self._batch_rows = self._histogram(
            "tfllm_batch_rows", "Rows of a batch, padding left out.", ROWS, "model"
        )
        self._padding = self._total("tfllm_padding_rows", "Rows added to fill batches.", "model")
        self._queue_seconds = self._histogram(
            "tfllm_queue_seconds", "Waiting for a thread.", SECONDS, "model"
        )
        self._run_seconds = self._histogram(
            "tfllm_run_seconds", "TensorFlow's part of a batch.", SECONDS, "model"
        )
        self.in_flight = Gauge(
            "tfllm_requests_in_flight", "Requests being answered.", registry=self.registry
        )
        self.version_state = Gauge(
            "tfllm_model_version_state", "10 start, 20 loading, 30 available, 50 end.",
            ("model", "version"), registry=self.registry,
        )  # fmt: skip
        self._served = ServingTotals()
        self.registry.register(self._served)
        prefix = ":tensorflow:serving:"
        self._served_latency = self._histogram(
            prefix + "request_latency", "Microseconds of a request.", MICROSECONDS,
            "model_name", "API", "entrypoint",
        )  # fmt: skip
        self._served_runtime = self._histogram(
            prefix + "runtime_latency", "Microseconds in TensorFlow.", MICROSECONDS,
            "model_name", "API", "runtime",
        )  # fmt: skip
        self._served_queue = self._histogram(
            prefix + "batching_session:queuing_latency", "Microseconds in the queue.", MICROSECONDS
        )

    def request(self, model: str, method: str, entrypoint: str, code: Code, seconds: float) -> None:
        """Counts one answered request."""
        self._requests.labels(model, method, entrypoint, code.name).inc()
        self._request_seconds.labels(model, method, entrypoint).observe(seconds)
        self._served.count[model, code.name] += 1
        if code == Code.OK:
            api = method if entrypoint == "REST" else method.capitalize()
            self._served_latency.labels(model, api, entrypoint).observe(seconds * 1e6)

    def batch(self, model: str, report: BatchReport) -> None:
        """Counts one run of TensorFlow."""
        self._rows.labels(model).inc(report.rows)
        self._batch_rows.labels(model).observe(report.rows)
        self._padding.labels(model).inc(report.padding)
        self._run_seconds.labels(model).observe(report.run_seconds)
        self._served_runtime.labels(model, "Predict", "TF1").observe(report.run_seconds * 1e6)
        for seconds in report.queue_seconds:
            self._queue_seconds.labels(model).observe(seconds)
            self._served_queue.observe(seconds * 1e6)

    def versions(self, states: Iterable[tuple[str, int, int]]) -> None:
        """The state of every version now known: model, version, state."""
        self.version_state.clear()
        for model, version, state in states:
            self.version_state.labels(model, str(version)).set(state)

    def page(self) -> bytes:
        """All series as text."""
        return generate_latest(self.registry)

    def _total(self, name: str, text: str, *labels: str) -> Total:
        return Total(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple, *labels: str) -> Histogram:
        return Histogram(name, text, labels, registry=self.registry, buckets=buckets)


class ServingTotals:
    """TF Serving's `request_count`; the client library would add `_total` to the name."""

    def __init__(self) -> None:
        self.count: Counter[tuple[str, str]] = Counter()

    def collect(self) -> Iterator[Metric]:
        """For the client library."""
        name = ":tensorflow:serving:request_count"
        metric = Metric(name, "The total number of requests.", "unknown")
        for (model, status), value in list(self.count.items()):
            metric.add_sample(name, {"model_name": model, "status": status}, value)
        yield metric


def request_id(given: str | None) -> str:
    """The caller's id where it is a plain one, otherwise a new one."""
    return given if given and REQUEST_ID.fullmatch(given) else secrets.token_hex(8)


def trace_id(traceparent: str | None) -> str | None:
    """The trace id of a W3C `traceparent` header."""
    match = TRACE_PARENT.fullmatch(traceparent or "")
    return match[1] if match else None


class JsonLines(logging.Formatter):
    """One JSON object per line. Records carry names and numbers, never a request's text."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0]:
            line["exception"] = record.exc_info[0].__name__
        return json.dumps(line)


def log_request(fields: dict[str, Any]) -> None:
    """One line per request, where the access log is on."""
    access_log.info("request", extra={"fields": fields})
