"""The calls of TF Serving's two services over the loaded models, free of HTTP and gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial

import numpy as np
from google.protobuf.message import Message
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    input_pb2,
    model_pb2,
    predict_pb2,
    regression_pb2,
)

from tfllm.serving import answers, codec, examples
from tfllm.serving.batcher import Batcher, ExecutorPool
from tfllm.serving.lifecycle import Models, Version
from tfllm.serving.observe import UNKNOWN_MODEL, Metrics
from tfllm.serving.schema import Batching, Code, Limits, RequestError, invalid
from tfllm.serving.servable import DEFAULT_SIGNATURE, Signature, code_of
from tfllm.serving.tensors import from_proto, to_proto

METADATA_FIELD = "signature_def"
Arrays = dict[str, np.ndarray]

# When the request that is being answered must be done, on `time.monotonic`'s clock.
DEADLINE: ContextVar[float] = ContextVar("deadline", default=math.inf)


@dataclass(frozen=True)
class Target:
    """What a request names: a model and perhaps a version, a label, a signature."""

    model: str
    version: int | None = None
    label: str | None = None
    signature: str = ""

    @classmethod
    def of(cls, request: Message) -> Target:
        """Read a gRPC request's ModelSpec. Raises INVALID_ARGUMENT where there is none."""
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        return cls.from_spec(request.model_spec)

    @classmethod
    def from_spec(cls, spec: model_pb2.ModelSpec) -> Target:
        """Read a ModelSpec."""
        choice = spec.WhichOneof("version_choice")
        return cls(
            model=spec.name,
            version=spec.version.value if choice == "version" else None,
            label=spec.version_label if choice == "version_label" else None,
            signature=spec.signature_name,
        )


class Service:
    """Answers requests. Every method raises RequestError and nothing else for a bad request."""

    def __init__(self, models: Models, limits: Limits, batching: Batching, metrics: Metrics):
        self.models = models
        self.limits = limits
        self.metrics = metrics
        self.executors = ExecutorPool(batching)

    # ---- gRPC's side: protos in, protos out

    async def predict(
        self, request: predict_pb2.PredictRequest, response: predict_pb2.PredictResponse
    ) -> None:
        """Answer a PredictRequest into a PredictResponse."""
        target = Target.of(request)
        with self.models.use(target.model, target.version, target.label) as version:
            name = target.signature or DEFAULT_SIGNATURE
            signature = version.servable.signatures.get(name)
            if signature is None:
                raise RequestError(
                    Code.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.'
                )
            names = _output_names(signature, list(request.output_filter))
            max_elements = self.limits.tensor_elements
            arrays = {key: from_proto(request.inputs[key], max_elements) for key in request.inputs}
            outputs = await self.run(version, signature, arrays)
            _fill_spec(response.model_spec, target.model, name, version.number)
            for key in names:
                response.outputs[key].CopyFrom(to_proto(outputs[key]))

    async def classify(
        self,
        target: Target,
        input_proto: input_pb2.Input,
        response: classification_pb2.ClassificationResponse,
    ) -> None:
        """Answer an Input proto into a ClassificationResponse."""
        with self.models.use(target.model, target.version, target.label) as version:
            await self._classify(version, target, input_proto, response.result)
            self._spec(response, target, version)

    async def regress(
        self,
        target: Target,
        input_proto: input_pb2.Input,
        response: regression_pb2.RegressionResponse,
    ) -> None:
        """Answer an Input proto into a RegressionResponse."""
        with self.models.use(target.model, target.version, target.label) as version:
            await self._regress(version, target, input_proto, response.result)
            self._spec(response, target, version)

    async def multi_inference(
        self,
        request: inference_pb2.MultiInferenceRequest,
        response: inference_pb2.MultiInferenceResponse,
    ) -> None:
        """Answer a MultiInferenceRequest: one version answers all tasks."""
        spec = request.tasks[0].model_spec if request.tasks else model_pb2.ModelSpec()
        first = Target.from_spec(spec)
        with self.models.use(first.model, first.version, first.label) as version:
            for target, method in _tasks(request):
                result = response.results.add()
                if method == examples.CLASSIFY_METHOD:
                    result.classification_result.SetInParent()
                    await self._classify(
                        version, target, request.input, result.classification_result
                    )
                else:
                    result.regression_result.SetInParent()
                    await self._regress(version, target, request.input, result.regression_result)
                self._spec(result, target, version)

    def metadata(
        self,
        target: Target,
        fields: list[str],
        response: get_model_metadata_pb2.GetModelMetadataResponse,
    ) -> None:
        """Fill a GetModelMetadataResponse: the signatures of an available version.

        Args:
            target: The model and version.
            fields: `signature_def` alone.
            response: The response.

        Raises:
            RequestError: INVALID_ARGUMENT for other fields; NOT_FOUND.
        """
        if not fields:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for field in fields:
            if field != METADATA_FIELD:
                raise invalid(f"Metadata field {field} is not supported")
        with self.models.use(target.model, target.version, target.label) as version:
            signatures = get_model_metadata_pb2.SignatureDefMap()
            for name, definition in version.servable.definitions.items():
                signatures.signature_def[name].CopyFrom(definition)
            _fill_spec(response.model_spec, target.model, "", version.number)
            response.metadata[METADATA_FIELD].Pack(signatures)

    def status(self, target: Target, response: get_model_status_pb2.GetModelStatusResponse) -> None:
        """Fill a GetModelStatusResponse: the states of one or all versions."""
        for version in self.models.statuses(target.model, target.version):
            status = response.model_version_status.add()
            status.version = version.number
            status.state = get_model_status_pb2.ModelVersionStatus.State.Value(version.state.name)
            status.status.error_code = int(version.code)
            status.status.error_message = version.message

    # ---- REST's side: a body in, a body out

    async def predict_body(self, target: Target, body: bytes) -> bytes:
        """Return the JSON answer to a `:predict` body."""
        document = codec.parse(body, self.limits.json_depth)
        name = codec.signature_name(document) or DEFAULT_SIGNATURE
        with self.models.use(target.model, target.version, target.label) as version:
            if name not in version.servable.definitions:
                raise invalid(f'Serving signature name: "{name}" not found in signature def')
            signature = version.servable.signatures.get(name)
            if signature is None or not signature.inputs:
                raise invalid(f"Failed to get input map for signature: {name}")
            arrays, rows = codec.read_inputs(document, signature.inputs)
            outputs = await self.run(version, signature, arrays)
            return answers.write_predictions(outputs, rows)

    async def examples_body(self, target: Target, method: str, body: bytes) -> bytes:
        """Return the JSON answer to a `:classify` or `:regress` body."""
        document = codec.parse(body, self.limits.json_depth)
        signature_name = codec.signature_name(document)
        input_proto = examples.read_examples(document)
        target = Target(target.model, target.version, target.label, signature_name)
        result = inference_pb2.InferenceResult()
        with self.models.use(target.model, target.version, target.label) as version:
            if method == "classify":
                classified = result.classification_result
                await self._classify(version, target, input_proto, classified)
                return answers.write_classifications(
                    [
                        [(c.label, c.score) for c in row.classes]
                        for row in classified.classifications
                    ]
                )
            regressed = result.regression_result
            await self._regress(version, target, input_proto, regressed)
            values = [row.value for row in regressed.regressions]
            return answers.write_regressions(np.array(values, np.float32))

    # ---- shared

    async def run(self, version: Version, signature: Signature, arrays: Arrays) -> Arrays:
        """Run a signature, in one batch with other requests.

        Args:
            version: The loaded version.
            signature: One of its signatures.
            arrays: All inputs by name.

        Returns:
            The outputs by name.

        Raises:
            RequestError: INVALID_ARGUMENT, an input cannot be fed; DEADLINE_EXCEEDED; or
                TensorFlow's code.
        """
        self._check_size(arrays)
        inputs = signature.check(arrays)
        batcher = version.batchers.get(signature.name)
        if batcher is None:
            batcher = version.batchers[signature.name] = Batcher(
                signature, self.executors, self.limits,
                partial(self.metrics.batch, version.model),
            )  # fmt: skip
        return await batcher.submit(inputs, DEADLINE.get())

    @contextlib.asynccontextmanager
    async def track_request(
        self, model: str, method: str, entrypoint: str, seconds: float | None
    ) -> AsyncIterator[None]:
        """Time and count a request, and end it at its deadline.

        Args:
            model: The model's name.
            method: predict, classify, ...
            entrypoint: REST or GRPC.
            seconds: The caller's deadline; None: the server's.

        Raises:
            RequestError: DEADLINE_EXCEEDED.
        """
        started = time.monotonic()
        code = Code.OK
        # A new list of models takes the time that loading takes.
        allowed = math.inf if method == "reload" else self.limits.timeout_seconds
        seconds = allowed if seconds is None else min(seconds, allowed)
        self.metrics.in_flight.inc()
        token = DEADLINE.set(started + seconds)
        try:
            async with asyncio.timeout(seconds if math.isfinite(seconds) else None):
                yield
        except TimeoutError:
            code = Code.DEADLINE_EXCEEDED
            raise RequestError(code, f"No answer within {seconds:g} s.") from None
        except asyncio.CancelledError:
            code = Code.CANCELLED
            raise
        except BaseException as error:
            code = code_of(error)
            raise
        finally:
            DEADLINE.reset(token)
            self.metrics.in_flight.dec()
            known = model if model in self.models.models else UNKNOWN_MODEL
            self.metrics.request(known, method, entrypoint, code, time.monotonic() - started)

    async def close(self) -> None:
        """Close, after the last request."""
        await self.executors.close()

    def _check_size(self, arrays: Arrays) -> None:
        limits = self.limits
        for name, array in arrays.items():
            if array.ndim and array.shape[0] > limits.rows:
                raise invalid(
                    f"Input '{name}' has {array.shape[0]} rows; a request may have {limits.rows}."
                )
            if array.dtype.kind == "O":
                for text in array.flat:
                    self._check_text(name, text)

    def _check_text(self, name: str, text: bytes) -> None:
        max_characters = self.limits.text_characters
        if len(text) <= max_characters:
            return
        try:
            characters = len(text.decode())
        except UnicodeDecodeError:
            return  # bytes, such as an image: the limits of body and message are theirs
        if characters > max_characters:
            raise invalid(
                f"A text of input '{name}' has {characters} characters; a text may have "
                f"{max_characters}."
            )

    async def _classify(
        self,
        version: Version,
        target: Target,
        input_proto: input_pb2.Input,
        result: classification_pb2.ClassificationResult,
    ) -> None:
        signature = examples.classification_signature(version.servable, target.signature)
        rows = examples.serialize_input(input_proto)
        outputs = await self.run(version, signature, {examples.INPUTS: rows})
        result.CopyFrom(examples.classification(outputs, len(rows)))
        self.metrics.examples(version.model, len(rows))

    async def _regress(
        self,
        version: Version,
        target: Target,
        input_proto: input_pb2.Input,
        result: regression_pb2.RegressionResult,
    ) -> None:
        signature = examples.regression_signature(version.servable, target.signature)
        rows = examples.serialize_input(input_proto)
        outputs = await self.run(version, signature, {examples.INPUTS: rows})
        result.CopyFrom(examples.regression(outputs, len(rows)))
        self.metrics.examples(version.model, len(rows))

    def _spec(self, response: Message, target: Target, version: Version) -> None:
        name = target.signature or DEFAULT_SIGNATURE
        _fill_spec(response.model_spec, target.model, name, version.number)


def _fill_spec(spec: model_pb2.ModelSpec, model: str, signature: str, version: int) -> None:
    spec.name, spec.signature_name, spec.version.value = model, signature, version


def _output_names(signature: Signature, output_filter: list[str]) -> list[str]:
    """Return the outputs to answer with. All are computed: one queue serves every filter."""
    for position, name in enumerate(output_filter):
        if name not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {name} Outputs expected to be in "
                f"the set {{{','.join(signature.output_names)}}}."
            )
        if name in output_filter[:position]:
            raise invalid(f"duplicate output tensor alias: {name}")
    return output_filter or signature.output_names


def _tasks(request: inference_pb2.MultiInferenceRequest) -> Iterator[tuple[Target, str]]:
    """Return the tasks of a MultiInferenceRequest, all checked before the first is run."""
    tasks: list[tuple[Target, str]] = []
    for task in request.tasks:
        target = Target.from_spec(task.model_spec)
        if not target.model:
            raise invalid("Found ModelSpec with an empty model name.")
        if tasks and target.model != tasks[0][0].model:
            raise invalid(
                "All ModelSpecs in a MultiInferenceRequest must access the same model name."
            )
        name = target.signature or DEFAULT_SIGNATURE
        if any((other.signature or DEFAULT_SIGNATURE) == name for other, _ in tasks):
            raise invalid(f"Duplicate evaluation of signature: {name}")
        if task.method_name not in (examples.CLASSIFY_METHOD, examples.REGRESS_METHOD):
            raise RequestError(
                Code.UNIMPLEMENTED, f"Unsupported signature method_name: {task.method_name}"
            )
        tasks.append((target, task.method_name))
    return iter(tasks)
