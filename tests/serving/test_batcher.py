"""Batching: together while busy, alone when idle, nobody's answer to anybody else."""

import asyncio
import threading
import time

import numpy as np
import pytest

from tfllm.serving.batcher import Batcher, ExecutorPool
from tfllm.serving.schema import Batching, Code, Limits, RequestError

SECONDS = 30


class Double:
    """Stands for a Signature: doubles `x`, refuses rows of `poison`, waits while `closed`."""

    name = "double"
    batchable = True
    splittable = True

    def __init__(self, poison=None, open=True):
        self.poison = poison
        self.batches: list[np.ndarray] = []
        self.gate = threading.Event()
        if open:
            self.gate.set()

    def run(self, inputs, seconds):
        self.batches.append(inputs["x"])
        assert self.gate.wait(SECONDS)
        if self.poison is not None and self.poison in inputs["x"]:
            raise RequestError(Code.INVALID_ARGUMENT, "poison")
        return {"y": inputs["x"] * 2}


def rows(*values):
    return {"x": np.array(values, np.int64)}


def batched(work, signature=None, limits=None, **batching):
    """Runs `work(batcher)` in an event loop; a second of patience for each await."""
    signature = signature or Double()
    reports = []

    async def inside():
        lanes = ExecutorPool(Batching(**batching))
        batcher = Batcher(signature, lanes, limits or Limits(), reports.append)
        try:
            return await asyncio.wait_for(work(batcher), SECONDS)
        finally:
            signature.gate.set()
            await lanes.close()

    return asyncio.run(inside()), signature, reports


async def busy(batcher):
    """Occupies the one thread; what is submitted now will wait."""
    first = asyncio.ensure_future(batcher.submit(rows(0)))
    while not batcher.signature.batches:
        await asyncio.sleep(0.001)
    return first


def test_a_lone_request_runs_alone():
    async def work(batcher):
        return await batcher.submit(rows(21))

    result, signature, reports = batched(work)
    assert result["y"].tolist() == [42]
    assert [len(batch) for batch in signature.batches] == [1]
    assert (reports[0].rows, reports[0].padding, reports[0].requests) == (1, 0, 1)


def test_what_waits_runs_together_and_padded():
    async def work(batcher):
        first = await busy(batcher)
        rest = [asyncio.ensure_future(batcher.submit(rows(i))) for i in range(1, 11)]
        await asyncio.sleep(0)
        batcher.signature.gate.set()
        return [(await one)["y"].tolist() for one in [first, *rest]]

    result, signature, reports = batched(work, Double(open=False), num_batch_threads=1)
    assert result == [[2 * i] for i in range(11)]
    assert [batch.tolist() for batch in signature.batches] == [[0], [*range(1, 11), 1, 1]]
    assert reports[1].padding == 2


def test_a_thousand_answers_find_their_requests():
    async def one(batcher, index):
        await asyncio.sleep((index * 7 % 13) / 1000)
        size = 1 + index % 3
        answer = await batcher.submit(rows(*range(index * 10, index * 10 + size)))
        assert answer["y"].tolist() == [2 * v for v in range(index * 10, index * 10 + size)]

    async def work(batcher):
        await asyncio.gather(*(one(batcher, index) for index in range(1000)))

    _, signature, reports = batched(work, limits=Limits(queue_rows=10_000))
    assert sum(report.rows for report in reports) == sum(1 + i % 3 for i in range(1000))
    assert max(len(batch) for batch in signature.batches) <= 32


def test_a_poisonous_row_fails_only_its_own_request():
    async def work(batcher):
        first = await busy(batcher)
        rest = [asyncio.ensure_future(batcher.submit(rows(i))) for i in range(1, 9)]
        await asyncio.sleep(0)
        batcher.signature.gate.set()
        return await asyncio.gather(first, *rest, return_exceptions=True)

    result, _, _ = batched(work, Double(poison=5, open=False), num_batch_threads=1)
    assert isinstance(result[5], RequestError)
    assert [r["y"].tolist() for i, r in enumerate(result) if i != 5] == [
        [2 * i] for i in range(9) if i != 5
    ]


def test_other_shapes_do_not_share_a_run():
    def matrix(width):
        return {"x": np.full((1, width), width)}

    async def work(batcher):
        first = await busy(batcher)
        widths = [2, 3, 2, 3, 2]
        rest = [asyncio.ensure_future(batcher.submit(matrix(width))) for width in widths]
        await asyncio.sleep(0)
        batcher.signature.gate.set()
        await first
        return [(await one)["y"].shape for one in rest]

    result, signature, _ = batched(work, Double(open=False), num_batch_threads=1)
    assert result == [(1, 2), (1, 3), (1, 2), (1, 3), (1, 2)]
    assert [batch.shape for batch in signature.batches[1:]] == [(3, 2), (2, 3)]


def test_signatures_without_rows_run_alone():
    signature = Double(open=False)
    signature.batchable = False

    async def work(batcher):
        first = await busy(batcher)
        rest = [asyncio.ensure_future(batcher.submit(rows(i))) for i in range(3)]
        await asyncio.sleep(0)
        batcher.signature.gate.set()
        await asyncio.gather(first, *rest)

    batched(work, signature, num_batch_threads=1)
    assert [len(batch) for batch in signature.batches] == [1, 1, 1, 1]


def test_a_full_queue_refuses_and_recovers():
    async def work(batcher):
        first = await busy(batcher)
        waiting = [asyncio.ensure_future(batcher.submit(rows(i))) for i in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(RequestError) as error:
            await batcher.submit(rows(9))
        batcher.signature.gate.set()
        await asyncio.gather(first, *waiting)
        return error.value, await batcher.submit(rows(9))

    (error, after), _, _ = batched(
        work, Double(open=False), Limits(queue_rows=4), num_batch_threads=1
    )
    assert (error.code, error.status) == (Code.RESOURCE_EXHAUSTED, 429)
    assert after["y"].tolist() == [18]


def test_who_gave_up_leaves_the_queue_at_once():
    async def work(batcher):
        first = await busy(batcher)
        gone = [asyncio.ensure_future(batcher.submit(rows(i))) for i in range(1, 5)]
        await asyncio.sleep(0)
        for one in gone:
            one.cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        assert (batcher.queued_rows, batcher.queued_bytes) == (0, 0)
        waiting = [asyncio.ensure_future(batcher.submit(rows(i))) for i in range(5, 9)]
        await asyncio.sleep(0)
        batcher.signature.gate.set()
        return [(await one)["y"].tolist() for one in [first, *waiting]]

    result, signature, _ = batched(
        work, Double(open=False), Limits(queue_rows=4), num_batch_threads=1
    )
    assert result == [[0], [10], [12], [14], [16]]
    assert [batch.tolist() for batch in signature.batches] == [[0], [5, 6, 7, 8]]


def test_the_bytes_of_a_queue_are_limited():
    long = np.array([b"x" * 600], object)

    async def work(batcher):
        first = await busy(batcher)
        waiting = asyncio.ensure_future(batcher.submit({"x": long}))
        await asyncio.sleep(0)
        with pytest.raises(RequestError, match="full"):
            await batcher.submit({"x": long})
        waiting.cancel()
        batcher.signature.gate.set()
        await first

    batched(work, Double(open=False), Limits(queue_bytes=1000), num_batch_threads=1)


def test_who_gave_up_while_waiting_is_never_run():
    async def work(batcher):
        first = await busy(batcher)
        gone = asyncio.ensure_future(batcher.submit(rows(7)))
        stays = asyncio.ensure_future(batcher.submit(rows(8)))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        batcher.signature.gate.set()
        await asyncio.gather(first, stays)
        assert (batcher.queued_rows, batcher.queued_bytes) == (0, 0)

    _, signature, _ = batched(work, Double(open=False), num_batch_threads=1)
    assert 7 not in np.concatenate(signature.batches)


def test_more_rows_than_a_batch_are_split_and_joined():
    async def work(batcher):
        return await batcher.submit(rows(*range(70)))

    result, signature, _ = batched(work)
    assert result["y"].tolist() == [2 * i for i in range(70)]
    assert sorted(len(batch) for batch in signature.batches) == [6, 32, 32]


def test_outputs_of_varying_width_are_not_split():
    signature = Double()
    signature.splittable = False

    async def work(batcher):
        return await batcher.submit(rows(*range(70)))

    batched(work, signature)
    assert [len(batch) for batch in signature.batches] == [70]


def test_texts_of_similar_length_run_together():
    """The oldest leads; a batch of mixed lengths would be padded to the longest."""
    lengths = [400, 5, 10, 380, 1, 420, 150, 7]

    class Echo(Double):
        def run(self, inputs, seconds):
            self.batches.append(inputs["x"])
            assert self.gate.wait(SECONDS)
            return {"y": inputs["x"]}

    def text(length):
        return {"x": np.array([b"a" * length], object)}

    async def work(batcher):
        first = await busy(batcher)
        rest = [asyncio.ensure_future(batcher.submit(text(length))) for length in lengths]
        await asyncio.sleep(0)
        batcher.signature.gate.set()
        await first
        return [len((await one)["y"][0]) for one in rest]

    result, signature, _ = batched(work, Echo(open=False), num_batch_threads=1)
    assert result == lengths
    ran = [[len(text) for text in batch] for batch in signature.batches[1:]]
    assert ran == [[400, 380, 420], [5, 10, 1, 7], [150]]


def test_one_past_its_deadline_does_not_fail_the_others():
    """A batch runs until the last of its deadlines; its own deadline is the request's affair."""
    given = []

    class Noted(Double):
        def run(self, inputs, seconds):
            given.append(seconds)
            return super().run(inputs, seconds)

    async def work(batcher):
        first = await busy(batcher)
        now = time.monotonic()
        deadlines = [now + 0.001, now + 1000, now + 100]
        rest = [
            asyncio.ensure_future(batcher.submit(rows(i), deadline))
            for i, deadline in enumerate(deadlines, 1)
        ]
        while time.monotonic() < deadlines[0]:
            await asyncio.sleep(0.001)
        batcher.signature.gate.set()
        return [(await one)["y"].tolist() for one in [first, *rest]]

    result, signature, _ = batched(work, Noted(open=False), num_batch_threads=1)
    assert result == [[0], [2], [4], [6]]
    assert [batch.tolist() for batch in signature.batches] == [[0], [1, 2, 3]]
    assert 100 < given[1] <= 1000


def test_what_waited_past_its_deadline_is_not_run():
    async def work(batcher):
        first = await busy(batcher)
        late = asyncio.ensure_future(batcher.submit(rows(7), time.monotonic()))
        await asyncio.sleep(0)
        batcher.signature.gate.set()
        await first
        with pytest.raises(RequestError) as error:
            await late
        return error.value.code

    code, signature, _ = batched(work, Double(open=False), num_batch_threads=1)
    assert code == Code.DEADLINE_EXCEEDED
    assert 7 not in np.concatenate(signature.batches)


def test_a_batch_past_its_deadline_is_not_halved():
    class Late(Double):
        def run(self, inputs, seconds):
            super().run(inputs, seconds)
            raise RequestError(Code.DEADLINE_EXCEEDED, "late")

    async def work(batcher):
        first = await busy(batcher)
        rest = [asyncio.ensure_future(batcher.submit(rows(i))) for i in range(4)]
        await asyncio.sleep(0)
        batcher.signature.gate.set()
        return await asyncio.gather(first, *rest, return_exceptions=True)

    result, signature, _ = batched(work, Late(open=False), num_batch_threads=1)
    assert [error.code for error in result] == [Code.DEADLINE_EXCEEDED] * 5
    assert [len(batch) for batch in signature.batches] == [1, 4]


def test_a_signature_of_which_nothing_runs_never_waits():
    """All threads are taken by calls of one model; another's is answered meanwhile."""

    async def inside():
        lanes = ExecutorPool(Batching(num_batch_threads=2, max_batch_size=1))
        slow, quick = Double(open=False), Double()
        held = Batcher(slow, lanes, Limits(), lambda report: None)
        stuck = [asyncio.ensure_future(held.submit(rows(i))) for i in range(5)]
        while len(slow.batches) < 2:
            await asyncio.sleep(0.001)
        other = Batcher(quick, lanes, Limits(), lambda report: None)
        for i in range(10):
            answer = await asyncio.wait_for(other.submit(rows(i)), SECONDS)
            assert answer["y"].tolist() == [2 * i]
        assert len(slow.batches) == 2
        slow.gate.set()
        assert [(await one)["y"].tolist() for one in stuck] == [[2 * i] for i in range(5)]
        await lanes.close()

    asyncio.run(inside())


def test_a_queue_with_work_always_has_a_run_of_its_own():
    """With one thread to share, the end of a run starts the next one of its own queue."""
    order = []

    class Stepwise(Double):
        def __init__(self, name):
            super().__init__()
            self.name = name
            self.steps = threading.Semaphore(0)

        def run(self, inputs, seconds):
            order.append(self.name)
            assert self.steps.acquire(timeout=SECONDS)
            return super().run(inputs, seconds)

    async def started(count):
        while len(order) < count:
            await asyncio.sleep(0.001)

    async def inside():
        lanes = ExecutorPool(Batching(num_batch_threads=1, max_batch_size=1))
        signatures = {name: Stepwise(name) for name in "ab"}
        batchers = {
            name: Batcher(signature, lanes, Limits(), lambda report: None)
            for name, signature in signatures.items()
        }
        waiting = [
            asyncio.ensure_future(batchers[name].submit(rows(i))) for name in "ab" for i in range(4)
        ]
        await asyncio.wait_for(started(2), SECONDS)
        assert sorted(order) == ["a", "b"]
        for count, name in enumerate("bbabaa", start=3):
            signatures[name].steps.release()
            await asyncio.wait_for(started(count), SECONDS)
            assert order[-1] == name
        for signature in signatures.values():
            signature.steps.release()
        answers = await asyncio.gather(*waiting)
        assert [answer["y"].tolist() for answer in answers] == [[2 * i] for i in range(4)] * 2
        await lanes.close()

    asyncio.run(inside())


@pytest.mark.parametrize(
    ("count", "padded"), [(1, 1), (5, 6), (7, 8), (13, 16), (32, 32), (40, 40)]
)
def test_sizes(count, padded):
    assert Batching().padded_size(count) == padded
