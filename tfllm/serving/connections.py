"""HTTP connections that cannot be held open, or filled with headers, without an end.

uvicorn limits neither: a client may open a connection and say nothing, or send headers for ever.
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tfllm.serving.schema import Limits

TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"connection: close\r\ncontent-length: 0\r\n\r\n"
)


def protocol(limits: Limits) -> type[HttpToolsProtocol]:
    """uvicorn's protocol class with these limits; uvicorn makes one object for each connection."""
    return type(
        "LimitedProtocol",
        (_LimitedProtocol,),
        {"patience": limits.header_seconds, "header_bytes": limits.header_bytes},
    )


class _LimitedProtocol(HttpToolsProtocol):
    """Closes a connection on which no request was completed for `patience` seconds."""

    patience = 15.0
    header_bytes = 16 << 10

    def connection_made(self, transport) -> None:
        """Starts the watch."""
        super().connection_made(transport)
        self._unparsed = self._head = 0
        self._refused = False
        self._last_cycle: Any = None
        self._watch = self.loop.call_later(self.patience, self._look)

    def connection_lost(self, exc) -> None:
        """Ends it."""
        self._watch.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Counts what the parser keeps without telling: a line or a header that does not end."""
        self._unparsed += len(data)
        super().data_received(data)
        if self._unparsed > self.header_bytes:
            self._refuse()

    def on_message_begin(self) -> None:
        """A request's first byte."""
        self._head = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """The request line."""
        self._count(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._count(name + value)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The end of the headers."""
        self._unparsed = 0
        if self._head > self.header_bytes:
            self._refuse()
        if not self._refused:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._unparsed = 0
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The end of the request."""
        self._unparsed = 0
        if not self._refused:
            super().on_message_complete()

    def _count(self, part: bytes) -> None:
        self._head += len(part)

    def _refuse(self) -> None:
        if not self._refused and not self.transport.is_closing():
            self.transport.write(TOO_LARGE)
            self.transport.close()
        self._refused = True

    def _look(self) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self.cycle is self._last_cycle:
            self.transport.close()
            return
        self._last_cycle = self.cycle
        self._watch = self.loop.call_later(self.patience, self._look)
