"""TF Serving's REST interface, with health and metrics beside it.

GET  /v1/models/NAME[/versions/N|/labels/L]              status
GET  /v1/models/NAME[/versions/N|/labels/L]/metadata     signatures
POST /v1/models/NAME[/versions/N|/labels/L]:predict      also :classify, :regress
GET  /healthz  /readyz  /metrics  /monitoring/prometheus/metrics
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import time
import traceback
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

import anyio
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
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
GZIP_PIECE = 4096  # small, because zlib copies what follows a member's end
BODY_READ = "body_read"  # in a request's state: its body was read to the end


@dataclass(frozen=True)
class Call:
    """A request's path, taken apart. `method` is lower case only where TF Serving's is."""

    target: Target
    method: str


def read_path(verb: str, path: str) -> Call:
    """Parse the path of a request.

    Args:
        verb: GET or POST.
        path: The path, without a query.

    Raises:
        RequestError: INVALID_ARGUMENT, with TF Serving's messages.
    """
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


class Application:
    """The ASGI application: every answer is JSON but the metrics, whatever goes wrong.

    Args:
        service: Answers the calls.
        ready: Answers /readyz.
        token: The bearer token that all but the health pages need; None for none.
        access_log: Whether each request is a line in the log.
    """

    def __init__(
        self,
        service: Service,
        ready: Callable[[], bool],
        token: str | None = None,
        access_log: bool = False,
    ):
        self.service = service
        self.ready = ready
        self.token = token
        self.access_log = access_log
        self.closing = False  # every answer is the last of its connection
        self._pages = {
            "/healthz": self._health,
            "/readyz": self._readiness,
            "/metrics": self._metrics,
            "/monitoring/prometheus/metrics": self._metrics,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; if cancelled, say that the server stops."""
        request = Request(scope, receive)
        try:
            response = await self._respond(request)
        except asyncio.CancelledError:
            response = _refusal(RequestError(Code.UNAVAILABLE, "The server stops."))
        except Exception as error:
            response = _refusal(_fault(error, "a page"))
        unread = _announces_body(request) and not request.scope["state"].get(BODY_READ)
        if self.closing or unread:
            response.headers["connection"] = "close"  # the rest of the body is not waited for
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        path = request.scope.get("raw_path", b"").decode("latin-1").split("?", 1)[0]
        if page := self._pages.get(path):
            if request.method not in ("GET", "HEAD"):
                error = invalid(f"Malformed request: {request.method} {path}")
                return _refusal(RequestError(error.code, error.message, 405))
            return page(request)
        if not path.lower().startswith(API_START):
            return _refusal(RequestError(Code.NOT_FOUND, f"There is nothing at {path[:200]}."))
        return await _answer(self.service, request, path, self.token, self.access_log)

    def _health(self, request: Request) -> Response:
        return Response(b'{"status": "alive"}\n', media_type=JSON)

    def _readiness(self, request: Request) -> Response:
        models = self.service.models.models.values()
        state = {model.entry.name: model.available() for model in models}
        ready = self.ready()
        body = json.dumps({"ready": ready, "available": state}) + "\n"
        return Response(body, 200 if ready else 503, media_type=JSON)

    def _metrics(self, request: Request) -> Response:
        if not authorized(request.headers.get("authorization"), self.token):
            return _refusal(RequestError(Code.UNAUTHENTICATED, "A bearer token is needed."))
        return Response(self.service.metrics.page(), media_type=PROMETHEUS)


def authorized(header: str | None, token: str | None) -> bool:
    """Return whether a request carries the token, compared in constant time.

    Args:
        header: Its `Authorization`.
        token: The token; None: none is needed.
    """
    if token is None:
        return True
    scheme, _, credentials = (header or "").partition(" ")
    same = hmac.compare_digest(credentials.strip().encode(), token.encode())
    return same and scheme.lower() == "bearer"


async def _answer(
    service: Service, request: Request, path: str, token: str | None, access_log: bool
) -> Response:
    started = time.monotonic()
    model, method = "", "other"
    try:
        if not authorized(request.headers.get("authorization"), token):
            async with service.track_request("", method, "REST", None):
                raise RequestError(Code.UNAUTHENTICATED, "A bearer token is needed.")
        call: Call | RequestError
        try:
            call = read_path(request.method, path)
            model, method = call.target.model, call.method
        except RequestError as error:
            call = error
        async with service.track_request(model, method, "REST", None):
            if isinstance(call, RequestError):
                raise call
            response = Response(await _call(service, call, request), media_type=JSON)
    except RequestError as error:
        response = _refusal(error)
    except Exception as error:
        response = _refusal(_fault(error, method))
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


def _announces_body(request: Request) -> bool:
    headers = request.headers
    return "transfer-encoding" in headers or headers.get("content-length", "0").strip("0") != ""


def _fault(error: Exception, method: str) -> RequestError:
    """Return the error for a fault of ours, whose place is logged, but no text of the request."""
    location = "".join(traceback.format_tb(error.__traceback__)[-3:])
    log.error("%s while answering %s:\n%s", type(error).__name__, method, location)
    return RequestError(Code.INTERNAL, "Internal error; see the server's log.")


def _refusal(error: RequestError) -> Response:
    response = Response(write_error(error.message), error.status, media_type=JSON)
    if error.status in RETRY_AFTER:
        response.headers["retry-after"] = RETRY_AFTER[error.status]
    if error.status == 405:
        response.headers["allow"] = "GET, HEAD"
    if error.status == 415:
        response.headers["accept-encoding"] = "gzip"
    if error.status == http_status(Code.UNAUTHENTICATED):
        response.headers["www-authenticate"] = "Bearer"
    return response


def _pretty(message: Message) -> str:
    return MessageToJson(message, always_print_fields_with_no_presence=True, indent=1)


def _metadata_json(response: get_model_metadata_pb2.GetModelMetadataResponse) -> bytes:
    """Return `{"model_spec", "metadata": {"signature_def": {"signature_def": {...}}}}`."""
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
    """Return the body, at most `limit` bytes before and after decompression, within `seconds`.

    A body that is too long is refused at once, without "100 Continue" where its length is
    announced; the connection takes care that the client can read the answer.
    """
    codings = _content_codings(request)
    if int(request.headers.get("content-length", 0)) > limit:
        raise _too_long(limit)
    chunks: list[bytes] = []
    size = 0
    try:
        with anyio.fail_after(seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise _too_long(limit)
                chunks.append(chunk)
    except TimeoutError:
        raise RequestError(
            Code.DEADLINE_EXCEEDED, f"The body did not arrive within {seconds:g} s.", 408
        ) from None
    except ClientDisconnect:
        raise RequestError(Code.CANCELLED, "The client went away.") from None
    request.scope["state"][BODY_READ] = True
    body = b"".join(chunks)
    return decompress(body, limit) if codings else body


def _content_codings(request: Request) -> list[str]:
    """Return the codings of the body but `identity`: none or gzip. Raises RequestError."""
    named = ",".join(request.headers.getlist("content-encoding")).lower()
    codings = [coding.strip() for coding in named.split(",")]
    codings = [coding for coding in codings if coding not in ("", "identity")]
    if codings not in ([], ["gzip"], ["x-gzip"]):
        raise RequestError(
            Code.UNIMPLEMENTED,
            f"Content-Encoding {', '.join(codings)[:40]} is not read here; gzip is.",
            415,
        )
    return codings


def decompress(body: bytes, limit: int) -> bytes:
    """Decompress a gzip body: one member or several, one after the other (RFC 1952).

    Args:
        body: The body.
        limit: Bytes of the content at most.

    Raises:
        RequestError: It is no gzip file, or too large.
    """
    parts: list[bytes] = []
    view, start, size, members = memoryview(body), 0, 0, 0
    while start < len(view) or not members:
        unpacker = zlib.decompressobj(wbits=31)
        while start < len(view) and not unpacker.eof:
            piece = view[start : start + GZIP_PIECE]
            try:
                parts.append(unpacker.decompress(piece, limit - size + 1))
            except zlib.error:
                where = f"What follows member {members} of" if members else "The beginning of"
                raise invalid(f"{where} the body is not gzip, or is damaged.") from None
            size += len(parts[-1])
            if size > limit:
                raise _too_long(limit)
            start += len(piece) - len(unpacker.unused_data)
        if not unpacker.eof:
            raise invalid("The gzip body is cut short.")
        members += 1
    return b"".join(parts)


def _too_long(limit: int) -> RequestError:
    return RequestError(
        Code.INVALID_ARGUMENT, f"The body is longer than {limit} bytes.", status=413
    )


def _decoded(text: str) -> str:
    return unquote_to_bytes(text).decode("utf-8", "replace")
