"""Keeps what C++ libraries tell about themselves off the terminal."""

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
    """Neither Python's notices nor those of C++ are shown meanwhile."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    sys.stderr.flush()
    kept = os.dup(STDERR)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, STDERR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, STDERR)
        os.close(kept)
        os.close(nowhere)
        logger.setLevel(level)


def silence() -> None:
    """The same, for the rest of the process."""
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), STDERR)
