"""Ordered, streaming map over several processes."""

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

QUEUED = 2  # items per process beyond the one it works on, so that it never idles


def _nothing() -> None:
    pass


@contextmanager
def worker_pool(
    count: int, start: Callable[..., None] = _nothing, arguments: tuple[Any, ...] = ()
) -> Iterator[OrderedMap]:
    """Start worker processes, and yield a function that maps over items in order.

    At most a few items are processed at a time. Functions and items are pickled. With one process
    everything runs in the calling one.

    Args:
        count: Processes.
        start: Called with `arguments` first in each process.
        arguments: Of `start`.
    """
    if count == 1:
        start(*arguments)
        yield map
        return
    pool = ProcessPoolExecutor(
        count, multiprocessing.get_context("spawn"), _start_worker, (start, arguments)
    )

    def ordered(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        pending: deque[Future] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > count * QUEUED:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
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
    """Return the number of CPU cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def _start_worker(start: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Initialize a worker: it ignores Ctrl-C, and ends with the parent."""
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
