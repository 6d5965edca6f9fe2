"""The private parts of TensorFlow and uvicorn that the server uses, all of them, in one place.

setup.cfg pins the versions that they were tested with; tests/serving/test_internals.py fails,
naming the part, when a new version has changed one.

TensorFlow: `Session._call_tf_sessionrun` is `Session.run` without its bookkeeping, which costs more
than a small model. `dismantle_graph` takes apart the cycles of a graph: it spares a garbage
collection, which would hold up the event loop, and memory that grows until there is one.

uvicorn: its protocol class, of which `connections` changes the framing, and its server, whose
signal handlers would end the process with status 143.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import tensorflow as tf
import uvicorn
from tensorflow.core.protobuf import config_pb2
from tensorflow.python.client import pywrap_tf_session
from tensorflow.python.framework.ops import dismantle_graph
from tensorflow.python.saved_model.loader_impl import SavedModelLoader
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["GraphSession", "HttpServer", "HttpToolsProtocol", "SavedModelLoader"]

# What `connections` reads, calls or overrides.
PROTOCOL_ATTRIBUTES = (
    "app", "cycle", "flow", "headers", "loop", "parser", "pipeline", "scheme",
)  # fmt: skip
PROTOCOL_METHODS = (
    "_unset_keepalive_if_required", "connection_lost", "connection_made", "data_received",
    "eof_received", "on_body", "on_header", "on_headers_complete", "on_message_begin",
    "on_message_complete", "on_response_complete", "on_url", "shutdown",
)  # fmt: skip
CYCLE_ATTRIBUTES = (
    "disconnected", "keep_alive", "message_event", "response_complete", "response_started",
)  # fmt: skip


class GraphSession:
    """A TensorFlow 1 session over one graph, with cheap runs."""

    def __init__(self, graph: tf.Graph, config: config_pb2.ConfigProto):
        self.session = tf.compat.v1.Session(graph=graph, config=config)

    def handle(self, tensor: str) -> Any:
        """Return what `run` takes for a tensor of this name."""
        return self.session.graph.get_tensor_by_name(tensor)._as_tf_output()

    def run(
        self, feeds: dict[Any, np.ndarray], fetches: list[Any], options: config_pb2.RunOptions
    ) -> list[Any]:
        """Run the graph.

        Args:
            feeds: Values by handle.
            fetches: Handles of what to compute.
            options: Of the run.

        Returns:
            The values of `fetches`.

        Raises:
            tf.errors.OpError: The run failed.
        """
        buffer = pywrap_tf_session.TF_NewBufferFromString(options.SerializeToString())
        try:
            return self.session._call_tf_sessionrun(buffer, feeds, fetches, [], None)
        finally:
            pywrap_tf_session.TF_DeleteBuffer(buffer)

    def extend(self) -> None:
        """Hand the graph to TensorFlow; `run` does not do it by itself."""
        self.session._extend_graph()

    def close(self) -> None:
        """Cancel what runs, and free the variables."""
        self.session.close()

    def dismantle(self) -> None:
        """Free the graph. Nothing may run any more."""
        dismantle_graph(self.session.graph)


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers."""

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        """Leave signals to the caller."""
        return contextlib.nullcontext()

    @property
    def connections(self) -> set[Any]:
        """The open connections, objects of the protocol class."""
        return self.server_state.connections
