"""SIGTERM as an exit that arrives, wherever Python is when it comes."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

STATUS = 143  # the shell's status for a command stopped by SIGTERM
AGAIN_SECONDS = 2.0  # until a SIGTERM that was not heard is told again


@contextlib.contextmanager
def as_exit() -> Iterator[None]:
    """SIGTERM leaves the block as SystemExit(143), so that files under temporary names are removed.

    Python raises it in whatever it is doing. That may be a function that C++ called, and C++ may
    drop it: it is raised again every 2 s until something handles it. Or C++ makes another exception
    of it: what then leaves the block is the exit all the same. Or it is a finalizer, whose
    exceptions Python prints as ignored: those are not shown.
    """
    told = False

    def tell(number: int, frame: FrameType | None) -> None:
        nonlocal told
        told = True
        signal.signal(signal.SIGALRM, tell)
        signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)
        if sys.exc_info()[0] is not SystemExit:  # else it was heard, and files are being removed
            sys.exit(STATUS)

    def ignored(exception: Any) -> None:
        if not told:
            show(exception)

    show, sys.unraisablehook = sys.unraisablehook, ignored
    before = signal.signal(signal.SIGTERM, tell)
    try:
        yield
    except BaseException as error:
        if told:
            raise SystemExit(STATUS) from error
        raise
    finally:
        if told:
            signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGTERM, before)
        sys.unraisablehook = show
