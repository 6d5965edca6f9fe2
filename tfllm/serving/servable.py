"""One loaded version of a SavedModel and its signatures, run the way TF Serving runs them.

A TF1 session on the graph, not `tf.saved_model.load`: it is the server's own code path, gives the
SignatureDefs as they are stored, and a call costs a fifth of the overhead. Operators of
tensorflow-text are registered by importing it.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401  registers its operators
from tensorflow.core.protobuf import config_pb2

from tfllm.serving.schema import Code, RequestError, invalid
from tfllm.serving.tensors import TensorSpec, from_proto

SERVE_TAG = "serve"
INIT_OP = "__saved_model_init_op"
DEFAULT_SIGNATURE = "serving_default"

Arrays = dict[str, np.ndarray]


def code_of(error: BaseException) -> Code:
    """The status code of any exception that loading or running can raise."""
    if isinstance(error, RequestError):
        return error.code
    number = getattr(error, "error_code", None)
    if isinstance(error, tf.errors.OpError) and number in set(Code):
        return Code(number)
    if isinstance(error, FileNotFoundError):
        return Code.NOT_FOUND
    return Code.UNKNOWN


def session_config() -> Any:
    """One core per call, no thread pool in between: requests are the parallelism."""
    return tf.compat.v1.ConfigProto(
        intra_op_parallelism_threads=1,
        inter_op_parallelism_threads=-1,  # negative: in the caller's thread
    )


class Signature:
    """A named function of a servable: arrays in, arrays out."""

    def __init__(self, name: str, definition: Any, session: Any):
        self.name = name
        self.definition = definition
        self.inputs = {key: TensorSpec.of(definition.inputs[key]) for key in definition.inputs}
        self.outputs = {key: TensorSpec.of(definition.outputs[key]) for key in definition.outputs}
        self.defaults = {key: from_proto(value) for key, value in definition.defaults.items()}
        # Fed and fetched in these orders.
        self.input_names = sorted(self.inputs)
        self.output_names = sorted(self.outputs)
        self._call: Any = None
        self._session = session
        self._lock = threading.Lock()

    @property
    def batchable(self) -> bool:
        """Every input and output has a leading dimension of any size: rows are independent."""
        specs = [*self.inputs.values(), *self.outputs.values()]
        return all(spec.shape is None or spec.shape[:1] == (-1,) for spec in specs) and all(
            spec.shape is not None for spec in self.inputs.values()
        )

    @property
    def splittable(self) -> bool:
        """Outputs of several runs can be joined: no dimension but the first varies."""
        return self.batchable and all(
            spec.shape is not None and -1 not in spec.shape[1:] for spec in self.outputs.values()
        )

    def check(self, arrays: Arrays) -> Arrays:
        """The complete inputs in the signature's types. Raises INVALID_ARGUMENT."""
        extra, missing = set(arrays) - set(self.inputs), set(self.inputs) - set(arrays)
        if extra or (missing and not missing <= set(self.defaults)):
            raise invalid(
                f"input size does not match signature: {len(arrays)}!={len(self.inputs)} "
                f"len({{{','.join(sorted(arrays))}}}) != len({{{','.join(sorted(self.inputs))}}}). "
                f"Sent extra: {{{','.join(sorted(extra))}}}. "
                f"Missing but required: {{{','.join(sorted(missing))}}}."
            )
        complete = {**self.defaults, **arrays} if missing else arrays
        for name, spec in self.inputs.items():
            spec.check(name, complete[name])
        return complete

    def run(self, arrays: Arrays) -> Arrays:
        """Runs in the calling thread. Raises RequestError with TensorFlow's code and message."""
        with self._lock:
            if self._call is None:
                self._call = self._callable()
        try:
            results = self._call(*(arrays[name] for name in self.input_names))
        except tf.errors.OpError as error:
            raise RequestError(code_of(error), first_line(error.message)) from None
        except UnicodeDecodeError as error:  # TensorFlow quotes bytes that are no text
            raise invalid(first_line(error.object.decode("utf-8", "replace"))) from None
        except (TypeError, ValueError) as error:
            raise invalid(first_line(str(error))) from None
        return dict(zip(self.output_names, map(as_array, results), strict=True))

    def _callable(self) -> Any:
        """Feeds and fetches bound once: a fifth of `Session.run`'s overhead, and no public form."""
        options = config_pb2.CallableOptions(
            feed=[self.inputs[name].tensor for name in self.input_names],
            fetch=[self.outputs[name].tensor for name in self.output_names],
        )
        return self._session._make_callable_from_options(options)


def as_array(result: Any) -> np.ndarray:
    """A session's result; a string scalar comes back as bare bytes."""
    return np.asarray(result, object if isinstance(result, bytes) else None)


def first_line(message: str) -> str:
    """TensorFlow's message without the Python traceback of the graph's making."""
    return str(message).split("\n", 1)[0].strip()[:1000]


class Servable:
    """A version of a model in memory. `close()` frees it; no call may be running then."""

    def __init__(self, name: str, version: int, path: Path):
        self.name, self.version, self.path = name, version, path
        graph = tf.Graph()
        with graph.as_default():
            self._session = tf.compat.v1.Session(graph=graph, config=session_config())
            try:
                meta_graph = tf.compat.v1.saved_model.loader.load(
                    self._session, [SERVE_TAG], str(path)
                )
                self.definitions = dict(meta_graph.signature_def)
                self.signatures = {
                    key: Signature(key, definition, self._session)
                    for key, definition in self.definitions.items()
                    if key != INIT_OP
                }
            except BaseException:
                self._session.close()
                raise
        graph.finalize()

    def close(self) -> None:
        """Frees the graph and its variables."""
        self._session.close()
        self.signatures = {}
