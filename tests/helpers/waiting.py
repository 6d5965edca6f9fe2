"""Waiting for what another thread or process does."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE_SECONDS = 60.0  # for a thread of the test's process
PROCESS_SECONDS = 240.0  # for another process, which imports TensorFlow first


def wait_for(
    condition: Callable[[], T],
    process: subprocess.Popen[str] | None = None,
    seconds: float | None = None,
) -> T:
    """Wait until a condition is true and return its value.

    It fails where `process` ends or the time is over before: PROCESS_SECONDS with a process, else
    PATIENCE_SECONDS.
    """
    seconds = seconds or (PATIENCE_SECONDS if process is None else PROCESS_SECONDS)
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert process is None or process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, f"not within {seconds} s: {condition}"
        time.sleep(0.02)
    return value
