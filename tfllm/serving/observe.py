"""What an operator sees: metrics in Prometheus' format, request ids, logs without request text.

Every number is offered under tfllm's name and, where TF Serving has one for it, under TF Serving's
(`:tensorflow:serving:request_count`, microseconds), so that its dashboards and alerts work.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import sys
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, Histogram, disable_created_metrics
from prometheus_client import Counter as Total
from prometheus_client.exposition import generate_latest

from tfllm.serving.batcher import BatchReport
from tfllm.serving.schema import Code

UNKNOWN_MODEL = "unknown"  # one label value for all names that are not served
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
MICROSECONDS = tuple(10 * 1.8**power for power in range(33))  # TF Serving's buckets
RUN_MICROSECONDS = tuple(1000 * 2**power for power in range(20))  # TensorFlow's
EXAMPLES = tuple(2**power for power in range(15))  # TF Serving's
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

REQUEST_COUNT = ":tensorflow:serving:request_count"
GRAPH_RUNS = ":tensorflow:core:graph_runs"
GRAPH_RUN_TIME = ":tensorflow:core:graph_run_time_usecs"
RUN_TOTALS = (GRAPH_RUNS, GRAPH_RUN_TIME)

REQUEST_ID = re.compile(r"[A-Za-z0-9._:/=+-]{1,128}")
TRACE_PARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")

log = logging.getLogger("tfllm.serving")
access_logger = logging.getLogger("tfllm.serving.access")


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
        self._served: Counter[tuple[str, str]] = Counter()
        self._tensorflow_series()

    def _tensorflow_series(self) -> None:
        """Create TF Serving's and TensorFlow's own series."""
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
        self._served_examples = self._histogram(
            prefix + "request_example_counts", "Examples of a request.", EXAMPLES, "model"
        )
        self._served_example_total = self._total(
            prefix + "request_example_count", "Examples of all requests.", "model"
        )
        self._served_warm_up = self._histogram(
            prefix + "model_warmup_latency", "Microseconds of a warm-up.", MICROSECONDS,
            "model_path", "status",
        )  # fmt: skip
        self._run_microseconds = self._histogram(
            ":tensorflow:core:graph_run_time_usecs_histogram", "Microseconds of a graph's run.",
            RUN_MICROSECONDS,
        )  # fmt: skip
        self._runs: Counter[str] = Counter(dict.fromkeys(RUN_TOTALS, 0))

    def request(self, model: str, method: str, entrypoint: str, code: Code, seconds: float) -> None:
        """Count one answered request.

        Args:
            model: The model's name.
            method: predict, classify, ...
            entrypoint: REST or GRPC.
            code: The answer's code.
            seconds: How long it took.
        """
        self._requests.labels(model, method, entrypoint, code.name).inc()
        self._request_seconds.labels(model, method, entrypoint).observe(seconds)
        self._served[model, code.name] += 1
        if code == Code.OK:
            api = method if entrypoint == "REST" else method.capitalize()
            self._served_latency.labels(model, api, entrypoint).observe(seconds * 1e6)

    def batch(self, model: str, report: BatchReport) -> None:
        """Count one batch, and its runs of TensorFlow."""
        self._rows.labels(model).inc(report.rows)
        self._batch_rows.labels(model).observe(report.rows)
        self._padding.labels(model).inc(report.padding)
        for seconds in report.run_seconds:
            self._run_seconds.labels(model).observe(seconds)
            self._served_runtime.labels(model, "Predict", "TF1").observe(seconds * 1e6)
            self._run_microseconds.observe(seconds * 1e6)
            self._runs[GRAPH_RUNS] += 1
            self._runs[GRAPH_RUN_TIME] += round(seconds * 1e6)
        for seconds in report.queue_seconds:
            self._queue_seconds.labels(model).observe(seconds)
            self._served_queue.observe(seconds * 1e6)

    def examples(self, model: str, count: int) -> None:
        """Count the Examples of one classification or regression."""
        self._served_examples.labels(model).observe(count)
        self._served_example_total.labels(model).inc(count)

    def warm_up(self, path: str, code: Code, seconds: float) -> None:
        """Count one replay of a version's warm-up requests; called in the loader's thread."""
        self._served_warm_up.labels(path, code.name).observe(seconds * 1e6)

    def versions(self, states: Iterable[tuple[str, int, int]]) -> None:
        """Set the state of every known version: model, version, state."""
        self.version_state.clear()
        for model, version, state in states:
            self.version_state.labels(model, str(version)).set(state)

    def page(self) -> bytes:
        """Return all series as text.

        The client library ends the name of every counter in `_total`; TF Serving's do not.
        """
        lines = [f"# TYPE {REQUEST_COUNT} counter"]
        for (model, status), value in list(self._served.items()):
            lines.append(
                f'{REQUEST_COUNT}{{model_name="{_escape(model)}",status="{status}"}} {value}'
            )
        for name, value in self._runs.items():
            lines += [f"# TYPE {name} counter", f"{name} {value}"]
        return generate_latest(self.registry) + "\n".join([*lines, ""]).encode()

    def _total(self, name: str, text: str, *labels: str) -> Total:
        return Total(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple, *labels: str) -> Histogram:
        return Histogram(name, text, labels, registry=self.registry, buckets=buckets)


def _escape(value: str) -> str:
    """Return a label's value as the text format has it."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def request_id(header: str | None) -> str:
    """Return the caller's id where it is a plain one, otherwise a new one."""
    return header if header and REQUEST_ID.fullmatch(header) else secrets.token_hex(8)


def trace_id(traceparent: str | None) -> str | None:
    """Return the trace id of a W3C `traceparent` header."""
    match = TRACE_PARENT.fullmatch(traceparent or "")
    return match[1] if match else None


class JsonLines(logging.Formatter):
    """One JSON object per line. Records carry names and numbers, never a request's text."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
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
    """Log one line per request, where the access log is on."""
    access_logger.info("request", extra={"fields": fields})


def configure_logging(access_log: bool = False) -> None:
    """Write all logs as JSON lines to stderr: loggers, warnings, and unraisable exceptions."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers = [handler]
    for name in list(root.manager.loggerDict):  # absl's and TensorFlow's print by themselves
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
    logging.captureWarnings(True)
    sys.unraisablehook = lambda error: log.error(
        "%s in %s", error.exc_type.__name__, getattr(error.object, "__qualname__", "a finalizer")
    )
    log.setLevel(logging.INFO)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it calls TF1's loader old
    access_logger.disabled = not access_log
