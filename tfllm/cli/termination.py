"""SIGTERM and SIGHUP as SystemExit, wherever Python is when they arrive."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from tfllm.training.stopping import detach_lost_terminal, stop_signals

SIGNAL_STATUS = 128  # the shell's status for a command stopped by a signal: this plus its number
RETRY_SECONDS = 2.0  # until a SIGTERM that C++ code dropped is raised again


@contextlib.contextmanager
def as_exit() -> Iterator[None]:
    """SIGTERM leaves the block as SystemExit(143), so that files under temporary names are removed;
    SIGHUP (a terminal that goes) as SystemExit(129), unless it is ignored, as under nohup.

    Python raises it in whatever it is doing. That may be a function that C++ called, and C++ may
    drop it: it is raised again every 2 s until something handles it. Or C++ makes another exception
    of it: what then leaves the block is the exit all the same. Or it is a finalizer, whose
    exceptions Python prints as ignored: those are not shown.
    """
    received = 0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = number if number != signal.SIGALRM else received
        detach_lost_terminal()
        signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, RETRY_SECONDS)
        if sys.exc_info()[0] is not SystemExit:  # else it arrived, and files are being removed
            sys.exit(SIGNAL_STATUS + received)

    def ignored(exception: Any) -> None:
        if not received:
            show(exception)

    show, sys.unraisablehook = sys.unraisablehook, ignored
    before = {
        number: signal.signal(number, handle)
        for number in stop_signals()
        if number != signal.SIGINT
    }
    try:
        yield
    except BaseException as error:
        if received:
            raise SystemExit(SIGNAL_STATUS + received) from error
        raise
    finally:
        if received:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = show
