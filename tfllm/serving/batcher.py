"""Requests that arrive while TensorFlow is busy run in one batch; none waits for others to arrive.

One queue per signature of a loaded version. When a thread is free the queue that has waited longest
gives up to `max_batch_size` rows of equal shape and, for texts, of similar length: a model pads
every row to the longest of its batch. The threads are shared, but a signature of which nothing is
running never waits for one: slow calls of a model hold up nobody else. A run is cancelled when the
last of its requests has reached its deadline.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from tfllm.serving.schema import Batching, Code, Limits, RequestError
from tfllm.serving.servable import CANCEL_SECONDS, Signature

Arrays = dict[str, np.ndarray]

MAX_LENGTH_RATIO = 1.5  # the longest text of a batch may be so many times the shortest
MAX_THREADS = 1024  # none is made before it is needed
# Errors that no row is to blame for: halves of the batch would fail alike.
BATCH_WIDE_CODES = (Code.DEADLINE_EXCEEDED, Code.CANCELLED, Code.UNAVAILABLE)
ROW_BYTES = 32  # a row's fixed cost, as bytes of text: below it lengths hardly matter


@dataclass(frozen=True)
class BatchReport:
    """What one batch cost, for the metrics."""

    rows: int
    padding: int
    requests: int
    run_seconds: tuple[float, ...]
    """Of each run: a batch that fails is run again in halves."""
    queue_seconds: tuple[float, ...]


@dataclass(eq=False)
class Item:
    """One request's share of a batch. Items run together only if their `key`s are equal."""

    inputs: Arrays
    rows: int
    key: tuple | None
    bytes: int
    length: int
    deadline: float
    future: asyncio.Future
    arrived: float = field(default_factory=time.monotonic)


class ExecutorPool:
    """The threads that run TensorFlow, and the queues that wait for one of them, in order.

    `num_batch_threads` are for whoever comes first. One more belongs to each signature: it starts a
    batch even when others hold all threads, as long as it has no batch running.
    """

    def __init__(self, batching: Batching):
        self.batching = batching
        self._executor = ThreadPoolExecutor(MAX_THREADS, "tensorflow")
        self._free = batching.num_batch_threads
        self._running = 0
        self._waiting: list[Batcher] = []

    def wait(self, batcher: Batcher) -> None:
        """Queue `batcher`, which has work, for the next free thread."""
        if not batcher.in_line:
            batcher.in_line = True
            self._waiting.append(batcher)
        self._dispatch()

    async def close(self) -> None:
        """Refuse new work, and wait for runs, but not for an operator that cannot be cancelled."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        end = time.monotonic() + CANCEL_SECONDS
        while self._running and time.monotonic() < end:
            await asyncio.sleep(0.01)

    def _next(self) -> Batcher | None:
        for batcher in self._waiting:
            if self._free > 0 or not batcher.running:
                self._waiting.remove(batcher)
                batcher.in_line = False
                return batcher
        return None

    def _dispatch(self) -> None:
        while batcher := self._next():
            items = batcher.take()
            if not items:
                continue
            if batcher.queue:
                batcher.in_line = True
                self._waiting.append(batcher)
            self._free -= 1
            self._running += 1
            batcher.running += 1
            loop = asyncio.get_running_loop()
            running = loop.run_in_executor(self._executor, batcher.run, items)
            running.add_done_callback(partial(self._finish, batcher, items))

    def _finish(self, batcher: Batcher, items: list[Item], done: asyncio.Future) -> None:
        self._free += 1
        self._running -= 1
        batcher.running -= 1
        batcher.deliver(done, items)
        self._dispatch()


class Batcher:
    """The queue of one signature. `submit` is called in the event loop, `run` in a thread."""

    def __init__(
        self,
        signature: Signature,
        pool: ExecutorPool,
        limits: Limits,
        report: Callable[[BatchReport], None],
    ):
        self.signature = signature
        self.pool = pool
        self.limits = limits
        self.report = report
        self.queue: deque[Item] = deque()
        self.in_line = False
        self.running = 0
        self.queued_rows = self.queued_bytes = 0

    async def submit(self, inputs: Arrays, deadline: float = math.inf) -> Arrays:
        """Run the signature on inputs, in one batch with others.

        A request that is cancelled in the queue never runs.

        Args:
            inputs: All inputs of the signature.
            deadline: On `time.monotonic`'s clock; what is not done by then is cancelled.

        Returns:
            The outputs for these inputs alone.
        """
        key = batch_key(self.signature, inputs)
        rows = len(next(iter(inputs.values()))) if key else 1
        size = self.pool.batching.max_batch_size
        if rows <= size or not self.signature.splittable:
            return await self._enqueue(inputs, rows, key, deadline)
        parts = [
            self._enqueue({name: array[start : start + size] for name, array in inputs.items()},
                          min(size, rows - start), key, deadline)
            for start in range(0, rows, size)
        ]  # fmt: skip
        results = await asyncio.gather(*parts)
        return {name: np.concatenate([part[name] for part in results]) for name in results[0]}

    async def _enqueue(
        self, inputs: Arrays, rows: int, key: tuple | None, deadline: float
    ) -> Arrays:
        weight = sum(bytes_of(array) for array in inputs.values())
        too_many = self.queued_rows and self.queued_rows + rows > self.limits.queue_rows
        too_big = self.queued_bytes and self.queued_bytes + weight > self.limits.queue_bytes
        if too_many or too_big:
            raise RequestError(
                Code.RESOURCE_EXHAUSTED,
                f"The queue of signature '{self.signature.name}' is full "
                f"({self.queued_rows} rows waiting). Try again later.",
            )
        future = asyncio.get_running_loop().create_future()
        item = Item(inputs, rows, key, weight, longest_row(inputs), deadline, future)
        self.queue.append(item)
        self.queued_rows += rows
        self.queued_bytes += weight
        self.pool.wait(self)
        try:
            return await item.future
        except asyncio.CancelledError:  # its client gave up: its place is another's at once
            if item in self.queue:
                self.queue.remove(item)
                self._leave(item)
            raise

    def take(self) -> list[Item]:
        """Remove and return the oldest item, and those of its key and similar length."""
        for item in [item for item in self.queue if item.future.done()]:  # their clients gave up
            self.queue.remove(item)
            self._leave(item)
        if not self.queue:
            return []
        oldest = self.queue[0]
        batch = [oldest] if oldest.key is None else self._similar_items(oldest)
        for item in batch:
            self.queue.remove(item)
            self._leave(item)
        return batch

    def _similar_items(self, oldest: Item) -> list[Item]:
        """Return the oldest item and those of similar length, by arrival."""
        alike = sorted(
            (item for item in self.queue if item.key == oldest.key),
            key=lambda item: abs(item.length - oldest.length),
        )
        batch: list[Item] = []
        rows, shortest, longest = 0, oldest.length, oldest.length
        for item in [oldest, *(item for item in alike if item is not oldest)]:
            rows += item.rows
            shortest, longest = min(shortest, item.length), max(longest, item.length)
            similar = longest + ROW_BYTES <= MAX_LENGTH_RATIO * (shortest + ROW_BYTES)
            if batch and (rows > self.pool.batching.max_batch_size or not similar):
                break
            batch.append(item)
        return sorted(batch, key=lambda item: item.arrived)

    def run(self, items: list[Item]) -> tuple[list[Arrays | Exception], BatchReport]:
        """Run a batch in the calling thread; return a result or an error for each item."""
        started = time.monotonic()
        runs: list[float] = []
        results = self._run_halving(items, runs)
        rows = sum(item.rows for item in items)
        report = BatchReport(
            rows=rows,
            padding=self.pool.batching.padded_size(rows) - rows if items[0].key else 0,
            requests=len(items),
            run_seconds=tuple(runs),
            queue_seconds=tuple(started - item.arrived for item in items),
        )
        return results, report

    def deliver(self, done: asyncio.Future, items: list[Item]) -> None:
        """Hand the results to the requests that still wait.

        Args:
            done: The finished run of a batch.
            items: The batch's requests.
        """
        error = asyncio.CancelledError() if done.cancelled() else done.exception()
        results: list[Any] = [error] * len(items)
        if error is None:
            results, report = done.result()
            self.report(report)
        for item, result in zip(items, results, strict=True):
            if item.future.done():
                continue
            if isinstance(result, BaseException):
                item.future.set_exception(result)
            else:
                item.future.set_result(result)

    def _leave(self, item: Item) -> None:
        self.queued_rows -= item.rows
        self.queued_bytes -= item.bytes

    def _run_halving(self, items: list[Item], runs: list[float]) -> list[Arrays | Exception]:
        """Run once; where that fails, each half by itself, so that a bad row fails alone."""
        started = time.monotonic()
        seconds = max(item.deadline for item in items) - started
        if seconds <= 0:
            return [RequestError(Code.DEADLINE_EXCEEDED, "Not begun by its deadline.")] * len(items)
        try:
            return self._run_together(items, seconds)
        except Exception as error:
            if len(items) == 1 or getattr(error, "code", None) in BATCH_WIDE_CODES:
                return [error] * len(items)
        finally:
            runs.append(time.monotonic() - started)
        half = len(items) // 2
        return self._run_halving(items[:half], runs) + self._run_halving(items[half:], runs)

    def _run_together(self, items: list[Item], seconds: float) -> list[Arrays | Exception]:
        if items[0].key is None:
            return [self.signature.run(items[0].inputs, seconds)]
        rows = sum(item.rows for item in items)
        padded = self.pool.batching.padded_size(rows)
        inputs = {}
        for name in items[0].inputs:
            arrays = [item.inputs[name] for item in items]
            if padded > rows:  # with copies of the first row
                arrays.append(np.repeat(arrays[0][:1], padded - rows, axis=0))
            inputs[name] = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
        outputs = self.signature.run(inputs, seconds)
        for name, array in outputs.items():
            if array.ndim == 0 or len(array) != padded:
                if len(items) == 1 and padded == rows:
                    return [outputs]  # its own affair: it was alone
                raise RequestError(
                    Code.INTERNAL,
                    f"Output '{name}' has shape {array.shape} for a batch of {padded} rows.",
                )
        results: list[Arrays | Exception] = []
        start = 0
        for item in items:
            results.append({k: v[start : start + item.rows] for k, v in outputs.items()})
            start += item.rows
        return results


def batch_key(signature: Signature, inputs: Arrays) -> tuple | None:
    """Return a key that is equal for inputs that can be joined; None for those that must run alone.

    Args:
        signature: The signature.
        inputs: Its inputs by name.
    """
    if not signature.batchable:
        return None
    rows = {array.shape[0] if array.ndim else -1 for array in inputs.values()}
    if len(rows) != 1 or min(rows) < 1:
        return None
    return tuple((name, inputs[name].shape[1:]) for name in sorted(inputs))


def longest_row(inputs: Arrays) -> int:
    """Return the bytes of the longest string, which a batch is padded to; 0 for numbers."""
    return sum(
        max(map(len, array.ravel()), default=0)
        for array in inputs.values()
        if array.dtype.kind == "O"
    )


def bytes_of(array: np.ndarray) -> int:
    """Return the memory of an array, its strings included."""
    return sum(map(len, array.ravel())) if array.dtype.kind == "O" else array.nbytes
