"""The server's settings (models, limits, batching), and the error that it answers with."""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Literal

from pydantic import Field, model_validator

from tfllm.config import Settings
from tfllm.errors import InputError


class Code(IntEnum):
    """The status codes that gRPC, TensorFlow and TF Serving share."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


# TF Serving's own table (model_servers/http_server.cc); what is missing there is 500.
HTTP_STATUS = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
    Code.UNAUTHENTICATED: 401,
}


def http_status(code: Code) -> int:
    """Return the HTTP status that TF Serving answers with for a status code."""
    return HTTP_STATUS.get(code, 500)


class RequestError(InputError):
    """A request that cannot be answered: a status code and TF Serving's message for it.

    `status` replaces the code's HTTP status where REST has a better one (413, 415).
    """

    def __init__(self, code: Code, message: str, status: int | None = None):
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status or http_status(code)


def invalid(message: str) -> RequestError:
    """Return INVALID_ARGUMENT, the answer to most wrong requests."""
    return RequestError(Code.INVALID_ARGUMENT, message)


MAX_BYTES = 2**31 - 1  # gRPC's own limit, an int32
MAX_SECONDS = 1e6  # eleven days; event loops count milliseconds

Bytes = Annotated[int, Field(ge=1, le=MAX_BYTES)]
Count = Annotated[int, Field(ge=1)]
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=MAX_SECONDS, allow_inf_nan=False)]
Pause = Annotated[float, Field(ge=0, le=MAX_SECONDS, allow_inf_nan=False)]


class Limits(Settings):
    """What one request, and all waiting requests of one signature together, may take."""

    body_bytes: Bytes = 1 << 20
    """Bytes of a REST body, after decompression; above: 413."""
    message_bytes: Bytes = 4 << 20
    """Bytes of a gRPC message; above: RESOURCE_EXHAUSTED."""
    tensor_elements: Count = 1 << 24
    """Elements of one gRPC tensor: a few bytes can ask for a huge constant tensor."""
    json_depth: Annotated[int, Field(ge=1, le=1000)] = 64
    rows: Count = 256
    text_characters: Count = 100_000
    """Characters of a string that is a text; one that is no UTF-8 is bytes, such as an image."""
    queue_rows: Count = 256
    """Rows waiting for one signature; above: 429, RESOURCE_EXHAUSTED."""
    queue_bytes: Count = 64 << 20
    timeout_seconds: Seconds = 30.0
    """From the request's arrival to its answer; above: 504, DEADLINE_EXCEEDED."""
    header_bytes: Bytes = 16 << 10
    """Bytes of a REST request's line and headers; above: 431."""
    header_seconds: Seconds = 15.0
    """A connection that has sent no complete request for so long is closed."""


class Batching(Settings):
    """Requests for one signature that wait while TensorFlow is busy run together.

    There is no batch timeout: a lone request never waits for company.
    """

    max_batch_size: Count = 32
    allowed_batch_sizes: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
    """A batch is padded to the next of these, so that few shapes reach TensorFlow."""
    num_batch_threads: Annotated[int, Field(ge=1, le=1024)] = 2
    """Batches that run at once; each runs on one core."""
    max_enqueued_batches: Count | None = None
    """Batches that may wait for one signature; unset: `Limits.queue_rows` rows."""

    def padded_size(self, rows: int) -> int:
        """Return the smallest allowed batch size for `rows`; `rows` itself above them all."""
        return next((size for size in self.allowed_batch_sizes if size >= rows), rows)


class VersionPolicy(Settings):
    """Which of the version directories to serve: TF Serving's ServableVersionPolicy."""

    kind: Literal["latest", "all", "specific"] = "latest"
    count: int = 1
    versions: tuple[int, ...] = ()

    def select(self, present: list[int]) -> list[int]:
        """Return the versions to serve of those `present` on the disk, ascending."""
        if self.kind == "all":
            return sorted(present)
        if self.kind == "specific":
            return sorted(set(present) & set(self.versions))
        return sorted(present)[-max(self.count, 1) :]


class ModelEntry(Settings):
    """One model of the server's configuration."""

    name: str
    base_path: str
    policy: VersionPolicy = VersionPolicy()
    labels: dict[str, int] = {}


class ServerOptions(Settings):
    """Addresses, access and timing of one server process."""

    host: str = "127.0.0.1"
    rest_port: Port = 8501
    grpc_port: Port = 8500
    token: str | None = None
    """Bearer token that every request must carry; health stays open."""
    admin: bool = True
    """Whether the gRPC reload of the configuration is answered."""
    certificate: str | None = None
    key: str | None = None
    client_ca: str | None = None
    poll_seconds: Seconds = 1.0
    load_threads: Annotated[int, Field(ge=1, le=1024)] = 4
    """Models that load at once; versions of one model load one after the other."""
    lame_duck_seconds: Pause = 2.0
    """After SIGTERM: not ready any more, and still answering, so that load balancers notice."""
    drain_seconds: Pause = 10.0
    access_log: bool = False
    limits: Limits = Limits()
    batching: Batching = Batching()

    @model_validator(mode="after")
    def _ports_differ(self) -> ServerOptions:
        if self.rest_port == self.grpc_port != 0:
            raise ValueError(
                f"REST and gRPC cannot both listen on port {self.rest_port}; choose another "
                "--rest-port or --grpc-port"
            )
        return self
