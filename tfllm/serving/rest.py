"""TF Serving's REST interface, with health and metrics beside it.

GET  /v1/models/NAME[/versions/N|/labels/L]              status
GET  /v1/models/NAME[/versions/N|/labels/L]/metadata     signatures
POST /v1/models/NAME[/versions/N|/labels/L]:predict      also :classify, :regress
GET  /healthz  /readyz  /metrics  /monitoring/prometheus/metrics
"""

from __future__ import annotations

import hmac
import json
import logging
import re
import time
import traceback
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

import anyio
from google.protobuf.json_format import MessageToJson
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2

from tfllm.serving import observe
from tfllm.serving.answers import write_error
from tfllm.serving.schema import Code, RequestError, http_status, invalid
from tfllm.serving.service import METADATA_FIELD, Service, Target

log = logging.getLogger("tfllm.serving")

# model_servers/http_rest_api_util.cc
PLACE = r"/v1/models(?:/([^/:]+))?(?:/versions/(\d+)|/labels/([^/:]+))?"
ASK = re.compile(
    r"/v1/models/([^/:]+)(?:/versions/(\d+)|/labels/([^/:]+))?:(classify|regress|predict)",
    re.IGNORECASE | re.ASCII,
)
LOOK = re.compile(PLACE + r"(?:/(metadata))?", re.IGNORECASE | re.ASCII)
API_START = "/v1/"
INT64_MAX = 2**63 - 1

JSON = "application/json"
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
RETRY_AFTER = {429: "1", 503: "5"}
CLOSE_AFTER = (408, 413)
DISCARDED_PER_LIMIT = 4  # of a body that is too long, so that its sender reads the answer


@dataclass(frozen=True)
class Call:
    """A request's path, taken apart. `method` is lower case only where TF Serving's is."""

    target: Target
    method: str


def read_path(verb: str, path: str) -> Call:
    """Raises INVALID_ARGUMENT with TF Serving's messages."""
    match = (
        ASK.fullmatch(path) if verb == "POST" else LOOK.fullmatch(path) if verb == "GET" else None
    )
    malformed = invalid(f"Malformed request: {verb} {path}")
    if match is None:
        raise malformed
    name, number, label, method = match.groups()
    version = None
    if number is not None:
        version = int(number.lstrip("0")[:20] or 0)
        if version > INT64_MAX:
            raise invalid(f"Failed to convert version: {number} to numeric.")
    target = Target(_decoded(name or ""), version, None if label is None else _decoded(label))
    if verb == "POST":
        if method not in ("classify", "regress", "predict"):
            raise malformed  # the path may be in capitals, the method may not
        return Call(target, method)
    if not target.model:
        raise invalid("Missing model name in request.")
    return Call(target, "metadata" if method == "metadata" else "status")


def application(
    service: Service, ready: Callable[[], bool], token: str | None = None, access_log: bool = False
) -> Starlette:
    """The ASGI application. `ready` answers /readyz; health needs no token."""

    async def health(request: Request) -> Response:
        return Response(b'{"status": "alive"}\n', media_type=JSON)

    async def readiness(request: Request) -> Response:
        state = {model.entry.name: model.available() for model in service.models.models.values()}
        body = json.dumps({"ready": ready(), "available": state}) + "\n"
        return Response(body, 200 if ready() else 503, media_type=JSON)

    async def metrics(request: Request) -> Response:
        if not authorized(request.headers.get("authorization"), token):
            return _refusal(RequestError(Code.UNAUTHENTICATED, "A bearer token is needed."))
        return Response(service.metrics.page(), media_type=PROMETHEUS)

    async def api(request: Request) -> Response:
        path = request.scope.get("raw_path", b"").decode("latin-1").split("?", 1)[0]
        if not path.lower().startswith(API_START):
            return Response(status_code=404)
        return await _answer(service, request, path, token, access_log)

    return Starlette(
        routes=[
            Route("/healthz", health),
            Route("/readyz", readiness),
            Route("/metrics", metrics),
            Route("/monitoring/prometheus/metrics", metrics),
            Route("/{path:path}", _AnyMethod(api)),
        ]
    )


def authorized(header: str | None, token: str | None) -> bool:
    """Whether an `Authorization` header carries the token; compared in constant time."""
    if token is None:
        return True
    scheme, _, given = (header or "").partition(" ")
    same = hmac.compare_digest(given.strip().encode(), token.encode())
    return same and scheme.lower() == "bearer"


class _AnyMethod:
    """An ASGI endpoint for every HTTP method: TF Serving answers all of them itself."""

    def __init__(self, function: Callable[[Request], Any]):
        self.function = function

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        response = await self.function(Request(scope, receive))
        await response(scope, receive, send)


async def _answer(
    service: Service, request: Request, path: str, token: str | None, access_log: bool
) -> Response:
    started = time.monotonic()
    model, method = "", "other"
    try:
        if not authorized(request.headers.get("authorization"), token):
            async with service.answering("", method, "REST", None):
                raise RequestError(Code.UNAUTHENTICATED, "A bearer token is needed.")
        call: Call | RequestError
        try:
            call = read_path(request.method, path)
            model, method = call.target.model, call.method
        except RequestError as error:
            call = error
        async with service.answering(model, method, "REST", None):
            if isinstance(call, RequestError):
                raise call
            response = Response(await _call(service, call, request), media_type=JSON)
    except RequestError as error:
        response = _refusal(error)
    except Exception as error:  # a fault of ours: the place is logged, the text is not
        place = "".join(traceback.format_tb(error.__traceback__)[-3:])
        log.error("%s while answering %s:\n%s", type(error).__name__, method, place)
        response = _refusal(RequestError(Code.INTERNAL, "Internal error; the log has its place."))
    identifier = observe.request_id(request.headers.get("x-request-id"))
    response.headers["x-request-id"] = identifier
    if access_log:
        observe.log_request(
            {
                "entrypoint": "REST",
                "model": model if model in service.models.models else observe.UNKNOWN_MODEL,
                "method": method,
                "status": response.status_code,
                "milliseconds": round((time.monotonic() - started) * 1e3, 3),
                "request_id": identifier,
                "trace_id": observe.trace_id(request.headers.get("traceparent")),
            }
        )
    return response


async def _call(service: Service, call: Call, request: Request) -> bytes:
    if call.method == "status":
        status = get_model_status_pb2.GetModelStatusResponse()
        service.status(call.target, status)
        return _pretty(status).encode()
    if call.method == "metadata":
        metadata = get_model_metadata_pb2.GetModelMetadataResponse()
        service.metadata(call.target, [METADATA_FIELD], metadata)
        return _metadata_json(metadata)
    limits = service.limits
    body = await _read_body(request, limits.body_bytes, limits.header_seconds)
    if call.method == "predict":
        return await service.predict_body(call.target, body)
    return await service.examples_body(call.target, call.method, body)


def _refusal(error: RequestError) -> Response:
    response = Response(write_error(error.message), error.status, media_type=JSON)
    if error.status in RETRY_AFTER:
        response.headers["retry-after"] = RETRY_AFTER[error.status]
    if error.status in CLOSE_AFTER:
        response.headers["connection"] = "close"
    if error.status == http_status(Code.UNAUTHENTICATED):
        response.headers["www-authenticate"] = "Bearer"
    return response


def _pretty(message: Any) -> str:
    return MessageToJson(message, always_print_fields_with_no_presence=True, indent=1)


def _metadata_json(response: Any) -> bytes:
    """`{"model_spec", "metadata": {"signature_def": {"signature_def": {...}}}}`."""
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata[METADATA_FIELD].Unpack(signatures)
    spec, definitions = (
        MessageToJson(
            part, preserving_proto_field_name=True, always_print_fields_with_no_presence=True,
            indent=1,
        )
        for part in (response.model_spec, signatures)
    )  # fmt: skip
    return (
        f'{{\n"model_spec":{spec},\n"metadata": {{"signature_def": {definitions}}}\n}}\n'
    ).encode()


async def _read_body(request: Request, limit: int, seconds: float) -> bytes:
    """The body, at most `limit` bytes before and after decompression, within `seconds`."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip"):
        raise RequestError(
            Code.UNIMPLEMENTED, f"Content-Encoding {encoding[:40]} is not read here.", 415
        )
    chunks: list[bytes] = []
    size = 0
    try:
        with anyio.fail_after(seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= limit:
                    chunks.append(chunk)
                elif size > limit * DISCARDED_PER_LIMIT:
                    break
    except TimeoutError:
        raise RequestError(
            Code.DEADLINE_EXCEEDED, f"The body did not arrive within {seconds:g} s.", 408
        ) from None
    except ClientDisconnect:
        raise RequestError(Code.CANCELLED, "The client went away.") from None
    if size > limit:
        raise _too_long(limit)
    body = b"".join(chunks)
    return _decompressed(body, limit) if encoding == "gzip" else body


def _decompressed(body: bytes, limit: int) -> bytes:
    unpacker = zlib.decompressobj(wbits=31)
    try:
        plain = unpacker.decompress(body, limit + 1)
    except zlib.error:
        raise invalid("The body is not gzip, as its Content-Encoding says.") from None
    if len(plain) > limit:
        raise _too_long(limit)
    if not unpacker.eof:
        raise invalid("The gzip body is cut short.")
    return plain


def _too_long(limit: int) -> RequestError:
    return RequestError(
        Code.INVALID_ARGUMENT, f"The body is longer than {limit} bytes.", status=413
    )


def _decoded(text: str) -> str:
    return unquote_to_bytes(text).decode("utf-8", "replace")
