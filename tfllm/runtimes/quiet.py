"""Suppress the log output of C++ libraries on the terminal."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator

STDERR = 2  # file descriptor


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Show neither the warnings of Python nor the log output of C++ inside the `with` block."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    sys.stderr.flush()
    saved = os.dup(STDERR)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, STDERR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, STDERR)
        os.close(saved)
        os.close(null)
        logger.setLevel(level)


def silence() -> None:
    """Suppress the log output for the rest of the process."""
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), STDERR)
