"""Listening sockets that close without losing a client that is just connecting.

When a listening socket closes, the kernel resets the connections that it has accepted and the
program has not: their clients may have sent a request. So new ones are turned away first, those
that are waiting are taken in, and only then the socket closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator, Sequence

SO_ATTACH_FILTER = 26  # Linux; the socket module has no name for it
ACCEPT_SECONDS = 0.1  # for what the event loop has accepted to become a connection
BACKLOG_SECONDS = 2.0  # for the event loop to accept what waits
BACKLOG = 24  # where struct tcp_info of a listening socket has the connections that wait
# Classic BPF over the TCP header: code, jump if true, jump if false, operand. A packet that opens a
# connection (SYN) is dropped: its sender tries again after a second. All others pass.
DROP_NEW = (
    (0x30, 0, 0, 13),  # load the byte with the flags
    (0x45, 0, 1, 0x02),  # SYN?
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFFFFFF),  # pass
)


async def refuse_connections(listening: Sequence[socket.socket]) -> None:
    """Refuse new connections; return when the event loop has accepted those that wait.

    Linux can do that before closing; elsewhere it only waits a moment.
    """
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *row) for row in DROP_NEW))
    pointer = struct.pack("HP", len(DROP_NEW), ctypes.addressof(program))
    for listener in listening:
        with contextlib.suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, pointer)
    end = time.monotonic() + BACKLOG_SECONDS
    while any(map(_waiting, listening)) and time.monotonic() < end:
        await asyncio.sleep(ACCEPT_SECONDS / 10)
    await asyncio.sleep(ACCEPT_SECONDS)


def _waiting(listening: socket.socket) -> int:
    """Return the number of connections that nobody has accepted yet."""
    try:
        state = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, BACKLOG + 4)
        return struct.unpack_from("I", state, BACKLOG)[0]
    except (OSError, AttributeError, struct.error):
        return 0


def sockets_on_port(port: int, listening: bool) -> Iterator[socket.socket]:
    """Yield copies of this process's TCP sockets with a local port; none without /proc.

    Args:
        port: The port.
        listening: Whether to yield those that wait for connections, or the connections.
    """
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        return
    for number in numbers:
        with contextlib.suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            duplicate = socket.socket(fileno=os.dup(number))
            inet = duplicate.family in (socket.AF_INET, socket.AF_INET6)
            waits = duplicate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            if inet and duplicate.getsockname()[1] == port and bool(waits) == listening:
                yield duplicate
            else:
                duplicate.close()
