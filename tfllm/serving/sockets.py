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


async def turn_away(listening: Sequence[socket.socket]) -> None:
    """Lets nobody connect any more, and returns when the event loop has taken in who had.

    Linux can do that before closing; elsewhere it only waits a moment.
    """
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *row) for row in DROP_NEW))
    pointer = struct.pack("HP", len(DROP_NEW), ctypes.addressof(program))
    for one in listening:
        with contextlib.suppress(OSError):
            one.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, pointer)
    end = time.monotonic() + BACKLOG_SECONDS
    while any(map(_waiting, listening)) and time.monotonic() < end:
        await asyncio.sleep(ACCEPT_SECONDS / 10)
    await asyncio.sleep(ACCEPT_SECONDS)


def _waiting(listening: socket.socket) -> int:
    """Connections that nobody has accepted yet."""
    try:
        state = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, BACKLOG + 4)
        return struct.unpack_from("I", state, BACKLOG)[0]
    except (OSError, AttributeError, struct.error):
        return 0


def bound_to(port: int, listening: bool) -> Iterator[socket.socket]:
    """Copies of this process's TCP sockets with this local port: those that wait for connections,
    or the connections. None where there is no /proc.
    """
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        return
    for number in numbers:
        with contextlib.suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            found = socket.socket(fileno=os.dup(number))
            inet = found.family in (socket.AF_INET, socket.AF_INET6)
            waits = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            if inet and found.getsockname()[1] == port and bool(waits) == listening:
                yield found
            else:
                found.close()
