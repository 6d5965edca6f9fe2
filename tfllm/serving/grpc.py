"""TF Serving's PredictionService and ModelService, and gRPC's own health service."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import Message
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)
from tensorflow_serving.config import model_server_config_pb2

from tfllm.serving.rest import authorized
from tfllm.serving.schema import Code, RequestError, invalid
from tfllm.serving.service import Service, Target

log = logging.getLogger("tfllm.serving")

GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}
MESSAGE_CHARACTERS = 2000  # a status travels in a header

Fill = Callable[[], object]


class Calls:
    """The calls that are not answered yet. After `finish` new ones are refused: UNAVAILABLE."""

    def __init__(self) -> None:
        self.finishing = False
        self._begun: set[grpc.aio.ServicerContext] = set()
        self._changed = asyncio.Event()

    def begin(self, context: grpc.aio.ServicerContext) -> None:
        """Begin a call, which ends with its answer's last byte. Raises UNAVAILABLE."""
        if self.finishing:
            raise RequestError(Code.UNAVAILABLE, "The server is shutting down.")
        self._begun.add(context)
        context.add_done_callback(self._end)

    async def finish(self, seconds: float) -> None:
        """Wait until all have their answer, or `seconds` are over."""
        self.finishing = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._begun:
                    self._changed.clear()
                    await self._changed.wait()

    def _end(self, context: grpc.aio.ServicerContext) -> None:
        self._begun.discard(context)
        self._changed.set()


class Answering:
    """What both services share: the token, the deadline, errors to status codes."""

    def __init__(self, service: Service, token: str | None, calls: Calls):
        self.service = service
        self.token = token
        self.calls = calls

    async def answer(
        self,
        context: grpc.aio.ServicerContext,
        method: str,
        model: str,
        response: Message,
        fill: Fill,
    ) -> Any:
        """Return a filled response, or end the call with the error's status.

        Args:
            context: Of the call.
            method: What metrics call the method.
            model: The model's name, for metrics.
            response: An empty response.
            fill: Fills the response.
        """
        try:
            seconds = context.time_remaining()
            self.calls.begin(context)
            async with self.service.track_request(model, method, "GRPC", seconds):
                if not authorized(_authorization(context), self.token):
                    raise RequestError(Code.UNAUTHENTICATED, "A bearer token is needed.")
                result = fill()
                if isinstance(result, Awaitable):
                    await result
            return response
        except RequestError as error:
            message = error.message[:MESSAGE_CHARACTERS]
            await context.abort(GRPC_CODES[int(error.code)], message)
        except Exception as error:  # a fault of ours: the place is logged, the text is not
            location = "".join(traceback.format_tb(error.__traceback__)[-3:])
            log.error("%s while answering %s:\n%s", type(error).__name__, method, location)
            await context.abort(grpc.StatusCode.INTERNAL, "Internal error; see the server's log.")


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer, Answering):
    """tensorflow.serving.PredictionService."""

    async def Predict(
        self, request: predict_pb2.PredictRequest, context: grpc.aio.ServicerContext
    ) -> predict_pb2.PredictResponse:
        """Run a signature on tensors."""
        response = predict_pb2.PredictResponse()
        return await self.answer(
            context, "predict", request.model_spec.name, response,
            lambda: self.service.predict(request, response),
        )  # fmt: skip

    async def Classify(
        self, request: classification_pb2.ClassificationRequest, context: grpc.aio.ServicerContext
    ) -> classification_pb2.ClassificationResponse:
        """Classify Examples."""
        response = classification_pb2.ClassificationResponse()
        return await self.answer(
            context, "classify", request.model_spec.name, response,
            lambda: self.service.classify(Target.of(request), request.input, response),
        )  # fmt: skip

    async def Regress(
        self, request: regression_pb2.RegressionRequest, context: grpc.aio.ServicerContext
    ) -> regression_pb2.RegressionResponse:
        """Predict one number for each Example."""
        response = regression_pb2.RegressionResponse()
        return await self.answer(
            context, "regress", request.model_spec.name, response,
            lambda: self.service.regress(Target.of(request), request.input, response),
        )  # fmt: skip

    async def MultiInference(
        self, request: inference_pb2.MultiInferenceRequest, context: grpc.aio.ServicerContext
    ) -> inference_pb2.MultiInferenceResponse:
        """Run several classifications and regressions of the same Examples."""
        response = inference_pb2.MultiInferenceResponse()
        model = request.tasks[0].model_spec.name if request.tasks else ""
        return await self.answer(
            context, "multi_inference", model, response,
            lambda: self.service.multi_inference(request, response),
        )  # fmt: skip

    async def GetModelMetadata(
        self,
        request: get_model_metadata_pb2.GetModelMetadataRequest,
        context: grpc.aio.ServicerContext,
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """Return the signatures of a model."""
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        return await self.answer(
            context, "metadata", request.model_spec.name, response,
            lambda: self.service.metadata(
                Target.of(request), list(request.metadata_field), response
            ),
        )  # fmt: skip


class ModelService(model_service_pb2_grpc.ModelServiceServicer, Answering):
    """tensorflow.serving.ModelService. `reload` replaces the list of models."""

    def __init__(
        self,
        service: Service,
        token: str | None,
        calls: Calls,
        reload: Callable[[model_server_config_pb2.ModelServerConfig], Awaitable[None]] | None,
    ):
        super().__init__(service, token, calls)
        self.reload = reload

    async def GetModelStatus(
        self, request: get_model_status_pb2.GetModelStatusRequest, context: grpc.aio.ServicerContext
    ) -> get_model_status_pb2.GetModelStatusResponse:
        """Return the states of a model's versions."""
        response = get_model_status_pb2.GetModelStatusResponse()
        return await self.answer(
            context, "status", request.model_spec.name, response,
            lambda: self.service.status(Target.of(request), response),
        )  # fmt: skip

    async def HandleReloadConfigRequest(
        self, request: model_management_pb2.ReloadConfigRequest, context: grpc.aio.ServicerContext
    ) -> model_management_pb2.ReloadConfigResponse:
        """Replace the list of models; answer when they are available."""
        response = model_management_pb2.ReloadConfigResponse()

        async def fill() -> None:
            if self.reload is None:
                raise RequestError(
                    Code.PERMISSION_DENIED,
                    "Changing the configuration over an open address needs a token.",
                )
            if request.config.WhichOneof("config") != "model_config_list":
                raise invalid(
                    "ServerModelConfig type not supported by HandleReloadConfigRequest. "
                    "Only ModelConfigList is currently supported"
                )
            await self.reload(request.config)
            response.status.error_code = int(Code.OK)

        return await self.answer(context, "reload", "", response, fill)


def _authorization(context: grpc.aio.ServicerContext) -> str | None:
    for key, value in context.invocation_metadata() or ():
        if key == "authorization":
            return value if isinstance(value, str) else value.decode("latin-1")
    return None
