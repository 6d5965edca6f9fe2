"""One loaded version of a SavedModel and its signatures, run the way TF Serving runs them.

A TF1 session on the graph, not `tf.saved_model.load`: it is the server's own code path, gives the
SignatureDefs as they are stored, ends a run at its deadline, and a call costs a fifth of the
overhead. Operators of tensorflow-text are registered by importing it.
"""

from __future__ import annotations

import math
import queue
import re
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401  registers its operators
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2

from tfllm.serving.internals import GraphSession, SavedModelLoader
from tfllm.serving.schema import Code, RequestError, invalid
from tfllm.serving.tensors import TensorSpec, from_proto

SERVE_TAG = "serve"
INIT_OP = "__saved_model_init_op"
DEFAULT_SIGNATURE = "serving_default"
MAX_SECONDS = 1e9  # longer limits are none
CANCEL_SECONDS = 2.0  # for runs to notice that they are cancelled

Arrays = dict[str, np.ndarray]


def code_of(error: BaseException) -> Code:
    """Return the status code of any exception that loading or running can raise."""
    if isinstance(error, RequestError):
        return error.code
    number = getattr(error, "error_code", None)
    if isinstance(error, tf.errors.OpError) and number in set(Code):
        return Code(number)
    if isinstance(error, FileNotFoundError):
        return Code.NOT_FOUND
    return Code.UNKNOWN


def session_config(concurrent_runs: int) -> config_pb2.ConfigProto:
    """Return a configuration: one core for each run, in a thread that no other run has meanwhile.

    Not in the caller's own thread: there TensorFlow cannot end a run before it is done.
    """
    return tf.compat.v1.ConfigProto(
        intra_op_parallelism_threads=1,
        session_inter_op_thread_pool=[
            config_pb2.ThreadPoolOptionProto(num_threads=1) for _ in range(concurrent_runs)
        ],
    )


class Runner:
    """A session's runs. Each has one of the session's threads to itself, and a time limit.

    The thread that was used last is used next: its caches are warm, and the others sleep.
    """

    def __init__(self, session: GraphSession, concurrent_runs: int):
        self._session = session
        self._concurrent_runs = concurrent_runs
        self._threads: queue.LifoQueue[int] = queue.LifoQueue()
        for index in range(concurrent_runs):
            self._threads.put(index)
        self.closed = False

    def handle(self, tensor: str) -> Any:
        """Return what `run` takes for a tensor of this name."""
        return self._session.handle(tensor)

    def run(self, feeds: dict[Any, np.ndarray], fetches: list[Any], seconds: float) -> list[Any]:
        """Run the graph.

        Args:
            feeds: Values by handle.
            fetches: Handles of what to compute.
            seconds: How long it may take.

        Returns:
            The values of `fetches`.

        Raises:
            tf.errors.DeadlineExceededError: The run took `seconds` and was cancelled.
            RequestError: UNAVAILABLE, the session is closed.
        """
        if self.closed:
            raise unloaded_error()
        thread = self._threads.get()
        options = config_pb2.RunOptions(inter_op_thread_pool=thread)
        if seconds < MAX_SECONDS:
            options.timeout_in_ms = max(1, math.ceil(seconds * 1e3))
        try:
            return self._session.run(feeds, fetches, options)
        finally:
            self._threads.put(thread)

    def close(self) -> None:
        """Cancel what runs, and free the variables and the graph."""
        if self.closed:
            return
        self.closed = True
        self._session.close()
        try:
            for _ in range(self._concurrent_runs):  # when the last run has ended
                self._threads.get(timeout=CANCEL_SECONDS)
        except queue.Empty:
            return  # an operator that cannot be cancelled: left to the garbage collector
        self._session.dismantle()


class Signature:
    """A named function of a servable: arrays in, arrays out."""

    def __init__(self, name: str, definition: meta_graph_pb2.SignatureDef, runner: Runner):
        self.name = name
        self.definition = definition
        self.inputs = {key: TensorSpec.of(definition.inputs[key]) for key in definition.inputs}
        self.outputs = {key: TensorSpec.of(definition.outputs[key]) for key in definition.outputs}
        self.defaults = {key: from_proto(value) for key, value in definition.defaults.items()}
        # Fed and fetched in these orders.
        self.input_names = sorted(self.inputs)
        self.output_names = sorted(self.outputs)
        self._runner = runner
        # Dense tensors only; `check` refuses calls of signatures that have others.
        feeds = [(name, self.inputs[name].tensor) for name in self.input_names]
        fetches = [self.outputs[name].tensor for name in self.output_names]
        self._feeds = [(name, runner.handle(tensor)) for name, tensor in feeds if tensor]
        self._fetches = [runner.handle(tensor) for tensor in fetches if tensor]

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
        """Return all inputs with defaults. Raises INVALID_ARGUMENT for wrong names or types."""
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
        for name, spec in self.outputs.items():
            if not spec.tensor:
                raise invalid(f"Output '{name}' is no dense tensor ({spec.type}).")
        return complete

    def run(self, arrays: Arrays, seconds: float = math.inf) -> Arrays:
        """Run the signature.

        Args:
            arrays: All inputs by name.
            seconds: How long it may take.

        Returns:
            The outputs by name.

        Raises:
            RequestError: With TensorFlow's code and message.
        """
        feeds = {handle: arrays[name] for name, handle in self._feeds}
        try:
            results = self._runner.run(feeds, self._fetches, seconds)
        except tf.errors.OpError as error:
            raise self._failure(error, seconds) from None
        except UnicodeDecodeError as error:  # TensorFlow quotes bytes that are no text
            raise invalid(cause(error.object.decode("utf-8", "replace"))) from None
        except (TypeError, ValueError) as error:
            raise invalid(cause(str(error))) from None
        except RuntimeError:
            if not self._runner.closed:
                raise
            raise unloaded_error() from None
        return dict(zip(self.output_names, map(as_array, results), strict=True))

    def _failure(self, error: Any, seconds: float) -> RequestError:
        if self._runner.closed:
            return unloaded_error()
        if isinstance(error, tf.errors.DeadlineExceededError) and seconds < MAX_SECONDS:
            return RequestError(Code.DEADLINE_EXCEEDED, f"Not done after {seconds:.3g} s.")
        return RequestError(code_of(error), cause(error.message))


def as_array(result: Any) -> np.ndarray:
    """Return a session's result as an array; a string scalar comes back as bare bytes."""
    return np.asarray(result, object if isinstance(result, bytes) else None)


FRAME = re.compile(
    r"Graph execution error:|Detected at node.*|Original stack trace.*|File \".*|<stack traces.*"
    r"|\d+ root error\(s\) found\.|\[\[.*|(?:Errors may have )?originated from.*"
)
NUMBERED = re.compile(r"\(\d+\) [A-Z_]+: ")  # how one of several root errors begins
NODE = re.compile(r"\{\{node ([^}]+)\}\}")
CAUSE_CHARACTERS = 1000


def cause(message: str) -> str:
    """Return the line of TensorFlow's message that names the cause, without frame or traceback.

    Where the message names the graph's node, so does the line.
    """
    lines = [line.strip() for line in str(message).splitlines()]
    plain = [NUMBERED.sub("", line) for line in lines if line and not FRAME.match(line)]
    if not plain:
        return " ".join(filter(None, lines))[:CAUSE_CHARACTERS]
    framed = lines[0] == "Graph execution error:"
    node = NODE.search(message) if framed else None
    return plain[0][:CAUSE_CHARACTERS] + (f" (node {node[1]})" if node else "")


def unloaded_error() -> RequestError:
    """Return the error of a run whose version is closed meanwhile."""
    return RequestError(Code.UNAVAILABLE, "The model was unloaded before the answer was ready.")


class Servable:
    """A version of a model in memory. `close()` cancels its runs and frees it.

    `threads` of its runs may share one signature; each signature has one more to itself.
    """

    def __init__(self, name: str, version: int, path: Path, threads: int = 2):
        self.name, self.version, self.path = name, version, path
        loader = SavedModelLoader(str(path))
        meta_graph = loader.get_meta_graph_def_from_tags([SERVE_TAG])
        self.definitions = dict(meta_graph.signature_def)
        runs = threads + len(self.definitions)
        graph = tf.Graph()
        with graph.as_default():
            session = GraphSession(graph, session_config(runs))
            self.runner = Runner(session, runs)
            try:
                _restore(loader, session.session, path)
                session.extend()  # where there was nothing to restore, nothing has yet
                self.signatures = {
                    key: Signature(key, definition, self.runner)
                    for key, definition in self.definitions.items()
                    if key != INIT_OP
                }
            except BaseException:
                self.close()
                raise
        graph.finalize()

    def close(self) -> None:
        """End its runs, free the graph and its variables."""
        self.runner.close()
        self.signatures = {}
        self.definitions = {}


def _restore(loader: SavedModelLoader, session: tf.compat.v1.Session, path: Path) -> None:
    try:
        loader.load(session, [SERVE_TAG])
    except ValueError:
        index = path / "variables" / "variables.index"
        if index.exists():
            raise
        raise RequestError(Code.NOT_FOUND, f"{index}; No such file or directory") from None
