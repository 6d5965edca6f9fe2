"""The signals that ask a run to save its state and end: SIGINT (Ctrl-C), SIGTERM and SIGHUP."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
from collections.abc import Iterator

STANDARD_STREAMS = (0, 1, 2)


def stop_signals() -> tuple[int, ...]:
    """Return the signals that ask a process to end.

    SIGHUP, of a terminal that closes, stays ignored where it was, as under nohup.
    """
    hangup = getattr(signal, "SIGHUP", None)  # not on every system
    if hangup is None or signal.getsignal(hangup) == signal.SIG_IGN:
        return (signal.SIGINT, signal.SIGTERM)
    return (signal.SIGINT, signal.SIGTERM, hangup)


class StopRequest:
    """Set by a signal: the run ends after the current step."""

    signal: int | None = None


@contextlib.contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Inside, a signal sets `StopRequest.signal`; a second one ends the process as usual."""
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in stop_signals()}

    def handle(number: int, _: object) -> None:
        stop.signal = number
        detach_lost_terminal()
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def detach_lost_terminal() -> None:
    """Redirect standard streams whose terminal has closed to /dev/null: writing would fail."""
    lost = [stream for stream in STANDARD_STREAMS if _is_lost(stream)]
    if lost:
        devnull = os.open(os.devnull, os.O_RDWR)
        for stream in lost:
            os.dup2(devnull, stream)
        os.close(devnull)


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
