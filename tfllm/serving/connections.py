"""HTTP/1.1 connections: strict framing, bounded waiting, and answers that the client can read.

uvicorn's protocol class leaves four things open. A request that offers an upgrade (`Upgrade: h2c`,
as Java's HttpClient and `curl --http2` send) loses its body, which would then be read as the next
request. A connection may be held open, or filled with headers, for ever. A connection that closes
while the client still sends is reset, and the answer with it. A client that is gone and one
that has only ended its own side look the same. `internals` lists the parts of
uvicorn that are used here.

Framing follows RFC 9112, parsed by llhttp in its strict mode; upgrades are ignored (RFC 9110,
section 7.8).
"""

from __future__ import annotations

import asyncio
import http
from typing import Any

import httptools
from starlette.types import Receive, Scope, Send

from tfllm.serving.answers import write_error
from tfllm.serving.internals import HttpToolsProtocol
from tfllm.serving.schema import Code, Limits, RequestError, invalid

VERSIONS = ("1.0", "1.1")
NOT_THIS_VERSION = (
    "This port speaks HTTP/1.1 (REST). HTTP/2 is not supported here, and gRPC has another port "
    "(--grpc-port)."
)
UPGRADE_HEADERS = (b"content-length", b"transfer-encoding", b"connection")  # which frame a request

ANSWER_START = b"HTTP/1.1 "  # of every answer
CONTINUE = b"HTTP/1.1 100 "
# A client that has ended its side may wait for the answer, or be gone: only writing tells. The
# first bytes of the answer are written early, in two parts; the second write fails if it is gone.
PROBES = ((0.0, len(b"HTTP/")), (0.5, len(ANSWER_START)))

MAX_DISCARDED = 128 << 20  # bytes of a refused body that are read so that the answer arrives


def protocol(limits: Limits) -> type[HttpToolsProtocol]:
    """Return uvicorn's protocol class with these limits; it makes one object per connection."""
    return type(
        "LimitedProtocol",
        (_Connection,),
        {"patience": limits.header_seconds, "header_bytes": limits.header_bytes},
    )


class _Connection(HttpToolsProtocol):
    """One client's connection, closed when no request was completed for `patience` seconds."""

    patience = 15.0
    header_bytes = 16 << 10

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self._application, self.app = self.app, self._answer
        self._task: asyncio.Task | None = None
        self._unanswered = 0  # requests whose headers are complete
        self._in_head = self._in_body = False
        self._replaying = False
        self._unparsed = self._head = 0
        self._refusal: RequestError | None = None
        self._half_closed = False
        self._last_cycle: Any = None
        self._timers: list[asyncio.TimerHandle] = []

    @property
    def waits_for_request(self) -> bool:
        """Whether its first request, or the rest of a request, is still to come."""
        return self.cycle is None or self._in_head or self._in_body

    # ---- the transport's events

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the watch."""
        self.wire = _Wire(transport, self)
        super().connection_made(self.wire)  # type: ignore[arg-type]
        self._watch = self.loop.call_later(self.patience, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the watch, and the work for a client that is gone."""
        self._watch.cancel()
        for timer in self._timers:
            timer.cancel()
        self.wire.lost = True
        super().connection_lost(exc)
        self.pipeline.clear()
        if self._task:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        """Parse what came, unless the connection is about to close."""
        if self.wire.closing:
            self.wire.discard(len(data))
            return
        if self._refusal:
            return
        self._unset_keepalive_if_required()
        self._unparsed += len(data)
        try:
            self._feed(data)
            if self._unparsed > self.header_bytes:  # a line or a header that does not end
                raise self._head_too_long()
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, RequestError) else _malformed("its target"))
        except httptools.HttpParserError as error:
            self._refuse(self._reason(error))
        except RequestError as error:
            self._refuse(error)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Answer what the client, which has ended its side, asked for in full, and close."""
        if self._half_closed:
            return True
        if self.wire.closing or self.scheme == "https":  # TLS knows no half-closed connection
            return False
        self._half_closed = True
        if (self._in_head or self._in_body) and not self._refusal:
            self._refuse(_malformed("it ends too early"))
        if not self._unanswered:
            return False
        if not self._refusal:
            self.cycle.keep_alive = False
        self._timers += [self.loop.call_later(after, self._probe, size) for after, size in PROBES]
        return True

    def shutdown(self) -> None:
        """Close; uvicorn calls this when the server stops."""
        if self.wire.closing:
            self.wire.close_now()
        else:
            super().shutdown()

    # ---- the parser's events

    def on_message_begin(self) -> None:
        """Note a request's first byte."""
        if self._replaying:
            return
        self._in_head, self._head = True, 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Note the request line."""
        if self._replaying:
            return
        self._count(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header; those after the body (trailers) are counted and dropped."""
        if self._replaying:
            return
        self._count(name + value)
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Check the headers: what they say about the body must be beyond doubt."""
        self._unparsed = 0
        if self._replaying:
            self._replaying = False
            return
        self._check_head()
        super().on_headers_complete()
        self._in_head, self._in_body = False, True
        self._unanswered += 1

    def on_body(self, body: bytes) -> None:
        """Add a part of the body."""
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request; with an upgrade the parser calls this before the body."""
        self._unparsed = 0
        if self.parser.should_upgrade():
            return
        self._in_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """End an answer. One that came before the body's end is the connection's last."""
        self._unanswered -= 1
        self.wire.end_answer()
        if self._in_body and not self._unanswered:
            self.wire.close()
        super().on_response_complete()
        if self._refusal and not self._unanswered:
            self._write_refusal()

    # ---- parts

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application, in a task that is cancelled when the client is gone."""
        self._task = asyncio.current_task()
        try:
            await self._application(scope, receive, send)
        finally:
            self._task = None

    def _feed(self, data: bytes) -> None:
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                self._ignore_upgrade()

    def _ignore_upgrade(self) -> None:
        """Start a new parser at the body of a request without an upgrade."""
        lines = [b"%s / HTTP/1.1" % self.parser.get_method()]
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token.strip().lower() for token in value.split(b",")]
                value = b", ".join(token for token in tokens if token != b"upgrade")
            if name in UPGRADE_HEADERS:
                lines.append(b"%s: %s" % (name, value))
        self.parser = httptools.HttpRequestParser(self)
        # As uvicorn: what follows a request with `Connection: close` is no error of that request.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._replaying = True
        self.parser.feed_data(b"\r\n".join([*lines, b"", b""]))

    def _check_head(self) -> None:
        if self._head > self.header_bytes:
            raise self._head_too_long()
        version = self.parser.get_http_version()
        if version not in VERSIONS:
            raise RequestError(Code.UNIMPLEMENTED, NOT_THIS_VERSION, 505)
        if self.parser.get_method() == b"CONNECT":
            raise RequestError(Code.UNIMPLEMENTED, "CONNECT: this server is no proxy.")
        named = [value for name, value in self.headers if name == b"transfer-encoding"]
        if named and version == "1.0":
            raise _malformed("HTTP/1.0 has no Transfer-Encoding")
        codings = [coding.strip().lower() for coding in b",".join(named).split(b",")]
        if named and codings[-1] != b"chunked":
            raise _malformed("the last of Transfer-Encoding is not chunked")
        if len(codings) > 1:
            raise RequestError(
                Code.UNIMPLEMENTED, "Of all transfer encodings only chunked is read here."
            )

    def _count(self, part: bytes) -> None:
        self._head += len(part)
        if not self._in_head and self._head > self.header_bytes:
            raise self._head_too_long()

    def _head_too_long(self) -> RequestError:
        message = f"The request line and headers are longer than {self.header_bytes} bytes."
        return RequestError(Code.INVALID_ARGUMENT, message, 431)

    def _reason(self, error: Exception) -> RequestError:
        """Return the error of what the parser refused; other HTTP versions have their own."""
        if self.parser.get_http_version()[:1] == "2" or "HTTP version" in str(error):
            return RequestError(Code.UNIMPLEMENTED, NOT_THIS_VERSION, 505)
        return _malformed(str(error))

    def _refuse(self, error: RequestError) -> None:
        """Answer a request that cannot be read, after those before it, and read no more."""
        self._refusal = error
        if self._in_body:
            self._in_body = False
            if self.pipeline:
                self.pipeline.popleft()
            elif self.cycle.response_started:
                self.wire.close()
                return
            else:
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            self._unanswered -= 1
        if not self._unanswered:
            self._write_refusal()

    def _write_refusal(self) -> None:
        assert self._refusal is not None
        self.wire.write(_error_answer(self._refusal))
        self.wire.linger()

    def _probe(self, size: int) -> None:
        if self._unanswered:
            self.wire.begin_answer(size)

    def _look(self) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self.cycle is self._last_cycle:
            self.wire.close_now()
            return
        self._last_cycle = self.cycle
        self._watch = self.loop.call_later(self.patience, self._look)


class _Wire:
    """The transport of a connection. It closes in a way that lets the client read the answer.

    A socket that is closed with unread bytes resets the connection, and the client loses what it
    had not read yet. So where a request is not read to its end only our side is closed, and what
    still comes is thrown away, up to MAX_DISCARDED bytes or `patience` seconds.
    """

    def __init__(self, transport: Any, connection: _Connection):
        self._transport = transport
        self._connection = connection
        self._early = 0  # bytes of the next answer that are written already
        self._answering = False
        self._discarded = 0
        self.closing = self.lost = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """Return whether nothing can be requested any more."""
        return self.closing or self._transport.is_closing()

    def write(self, data: bytes) -> None:
        """Write an answer, or what is not yet written of it."""
        if self.lost:
            return
        self._answering = not data.startswith(CONTINUE)
        self._early, early = 0, self._early
        self._transport.write(data[early:])

    def begin_answer(self, size: int) -> None:
        """Write an answer's first bytes, which are the same for all."""
        if not self._answering and not self.is_closing() and size > self._early:
            self._early, early = size, self._early
            self._transport.write(ANSWER_START[early:size])

    def end_answer(self) -> None:
        """Note that the answer is complete."""
        self._answering = False

    def close(self) -> None:
        """Close, at once where everything sent was read."""
        if self._connection._in_body or self._connection._refusal:
            self.linger()
        else:
            self.close_now()

    def close_now(self) -> None:
        """Close, whatever may still come."""
        self.closing = True
        self._transport.close()

    def linger(self) -> None:
        """End our side, and close when the client has ended its own."""
        if self.closing or self.lost:
            return
        self.closing = True
        connection = self._connection
        if connection._half_closed:
            self.close_now()
            return
        if self._transport.can_write_eof():
            self._transport.write_eof()
        connection.flow.resume_reading()
        connection._timers.append(
            connection.loop.call_later(connection.patience, self._transport.close)
        )

    def discard(self, size: int) -> None:
        """Count bytes that came too late."""
        self._discarded += size
        if self._discarded > MAX_DISCARDED:
            self.close_now()


def _malformed(what: str) -> RequestError:
    return invalid(f"Malformed HTTP request: {what}.")


def _error_answer(error: RequestError) -> bytes:
    body = write_error(error.message)
    phrase = http.HTTPStatus(error.status).phrase
    return (
        f"HTTP/1.1 {error.status} {phrase}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    ).encode() + body
