"""The signals that ask a run to save its state and end: Ctrl-C, SIGTERM, and SIGHUP."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

STANDARD_STREAMS = (0, 1, 2)


def asking() -> tuple[int, ...]:
    """The signals that ask for an end. SIGHUP, of a terminal that goes, stays ignored where it was,
    as under nohup."""
    hangup = getattr(signal, "SIGHUP", None)  # not on every system
    if hangup is None or signal.getsignal(hangup) == signal.SIG_IGN:
        return (signal.SIGINT, signal.SIGTERM)
    return (signal.SIGINT, signal.SIGTERM, hangup)


class Stop:
    """Set by a signal: the run ends after the step that it is in."""

    signal: int | None = None


@contextlib.contextmanager
def signals() -> Iterator[Stop]:
    """The signals set `Stop.signal` once; a second one ends the process as usual."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in asking()}

    def handle(number: int, _: Any) -> None:
        stop.signal = number
        leave_lost_terminal()
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_lost_terminal() -> None:
    """Leads standard streams to nowhere whose terminal has gone: writing there is an error."""
    lost = [stream for stream in STANDARD_STREAMS if _is_lost(stream)]
    if lost:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in lost:
            os.dup2(nowhere, stream)
        os.close(nowhere)


def _is_lost(stream: int) -> bool:
    try:
        import termios
    except ImportError:  # not on every system
        return False
    try:
        termios.tcgetattr(stream)
    except termios.error as error:
        return error.args[0] == errno.EIO
    return False
