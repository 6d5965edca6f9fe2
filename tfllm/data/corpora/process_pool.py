"""A function over many items on several processes; results in the items' order, few at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection
from typing import Any

from tfllm.errors import TfllmError

OrderedMap = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]

WAITING = 2  # items given out per process beyond the one it works on: it never idles


@contextmanager
def processes(
    count: int, start: Callable[..., None], arguments: tuple[Any, ...]
) -> Iterator[OrderedMap]:
    """`count` processes; what it yields maps a function over items, in order.

    `start(*arguments)` runs first in each. At most a few items are on their way at a time, however
    many there are. With one process everything runs in this one. Functions and items are pickled.
    """
    if count == 1:
        start(*arguments)
        yield map
        return
    pool = ProcessPoolExecutor(
        count, multiprocessing.get_context("spawn"), _started, (start, arguments)
    )

    def ordered(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        waiting: deque[Future] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > count * WAITING:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise TfllmError(
                "A worker process was ended, perhaps because memory ran out. What is finished is "
                "kept: run the same command again, with fewer --workers."
            ) from None

    try:
        yield ordered
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def available_cores() -> int:
    """Processor cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def _started(start: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """In a worker: Ctrl-C is the parent's to answer, and no worker outlives the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallel part
    os.environ["OMP_NUM_THREADS"] = "1"
    threading.Thread(target=_end_with_parent, daemon=True).start()
    start(*arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    connection.wait([parent.sentinel])
    os._exit(1)
