"""A call past its deadline is ended and frees its thread; slow calls hold up nobody else."""

import threading

import grpc
import httpx
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

from tests.helpers.servers import serving
from tests.helpers.waiting import PATIENCE_SECONDS, wait_for
from tests.serving import savedmodels
from tfllm.serving.schema import Batching, Code, Limits, ModelEntry, RequestError
from tfllm.serving.servable import Servable

ENDLESS = 2**31 - 1
SHORT_SECONDS = 0.3
NEVER_SECONDS = 3600.0  # a deadline that no test waits for
LOOPS = ("plain", "mapped", "decode")


@pytest.fixture(scope="module")
def loops_root(models_root, tmp_path_factory):
    root = tmp_path_factory.mktemp("loops")
    savedmodels.save_loops(root / "loops" / "1")
    return root


def entries(loops_root, models_root):
    return [
        ModelEntry(name="loops", base_path=str(loops_root / "loops")),
        ModelEntry(name="kinds", base_path=str(models_root / "kinds")),
    ]


@pytest.fixture(scope="module")
def servable(loops_root):
    servable = Servable("loops", 1, loops_root / "loops" / "1")
    yield servable
    servable.close()


@pytest.mark.parametrize("name", LOOPS)
def test_a_run_ends_at_its_deadline(servable, name):
    """Inside any loop of the graph; and its thread is there for the next run."""
    signature = servable.signatures[name]
    short = {"turns": np.array([3, 5], np.int32)}
    assert signature.run(short)["turned"].max() == 5
    for _ in range(8):  # more than there are threads
        with pytest.raises(RequestError) as error:
            signature.run({"turns": np.array([1, ENDLESS], np.int32)}, SHORT_SECONDS / 3)
        assert error.value.code == Code.DEADLINE_EXCEEDED
    assert signature.run(short, NEVER_SECONDS)["turned"].max() == 5


def test_closing_ends_what_runs(loops_root):
    servable = Servable("loops", 1, loops_root / "loops" / "1")
    signature, codes = servable.signatures["decode"], []

    def run():
        try:
            signature.run({"turns": np.array([ENDLESS], np.int32)})
        except RequestError as error:
            codes.append(error.code)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    servable.close()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert codes == [Code.UNAVAILABLE] * 3


class Callers:
    """Threads that each ask once; `answers` has what came back."""

    def __init__(self, running):
        self.running, self.answers, self.threads = running, [], []

    def start(self, ask, count):
        for _ in range(count):
            thread = threading.Thread(target=lambda: self.answers.append(ask()))
            thread.start()
            self.threads.append(thread)

    def rest(self, name, turns=ENDLESS, path="/v1/models/loops:predict"):
        body = {"signature_name": name, "instances": [turns]}
        return httpx.post(f"{self.running.url}{path}", json=body, timeout=PATIENCE_SECONDS)

    def grpc(self, name, seconds, turns=ENDLESS):
        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = "loops", name
        request.inputs["turns"].CopyFrom(tf.make_tensor_proto(np.array([turns], np.int32)))
        with grpc.insecure_channel(self.running.address) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            try:
                return stub.Predict(request, seconds)
            except grpc.RpcError as error:
                return error.code()

    def join(self):
        for thread in self.threads:
            thread.join(PATIENCE_SECONDS)


def batchers(running):
    version = running.server.models.models["loops"].versions[1]
    return list(version.batchers.values())


def in_flight(running):
    return running.server.metrics.in_flight._value.get()


def test_slow_calls_hold_up_nobody_else(loops_root, models_root):
    """All threads taken by calls that never end: other models and other signatures answer."""
    with serving(
        entries(loops_root, models_root),
        limits=Limits(timeout_seconds=NEVER_SECONDS),
        batching=Batching(num_batch_threads=2, max_batch_size=1, allowed_batch_sizes=(1,)),
        drain_seconds=1.0,
    ) as running:
        callers = Callers(running)
        callers.start(lambda: callers.rest("decode").status_code, 3)
        wait_for(lambda: sum(batcher.running for batcher in batchers(running)) == 2)
        callers.start(lambda: callers.rest("plain").status_code, 3)
        wait_for(lambda: sum(batcher.running for batcher in batchers(running)) == 3)
        for _ in range(20):
            for path in ("/v1/models/kinds:predict", "/v1/models/loops:predict"):
                answer = httpx.post(f"{running.url}{path}", json={"instances": [3]}, timeout=60)
                assert answer.json() == {"predictions": [1.5]}
        assert callers.rest("mapped", 4).json() == {"predictions": [4]}
        assert in_flight(running) == 6
        assert callers.answers == []
    callers.join()  # stopping ended them all
    assert len(callers.answers) == 6 and 200 not in callers.answers


def test_deadlines_free_the_threads(loops_root, models_root):
    """The server's own (REST) and the client's (gRPC), the time in the queue counted in."""
    with serving(
        entries(loops_root, models_root),
        limits=Limits(timeout_seconds=SHORT_SECONDS),
        batching=Batching(num_batch_threads=1, max_batch_size=1, allowed_batch_sizes=(1,)),
    ) as running:
        callers = Callers(running)
        callers.start(lambda: callers.rest("decode").status_code, 4)
        callers.start(lambda: callers.grpc("decode", SHORT_SECONDS / 2), 4)
        callers.join()
        assert sorted(map(str, callers.answers)) == sorted(
            map(str, [504] * 4 + [grpc.StatusCode.DEADLINE_EXCEEDED] * 4)
        )
        wait_for(lambda: not any(batcher.running for batcher in batchers(running)))
        wait_for(lambda: callers.rest("decode", 2).status_code == 200)


def test_a_client_s_deadline_is_shorter_than_the_server_s(loops_root, models_root):
    """A call that is given up ends at its own deadline, not at the server's."""
    with serving(
        entries(loops_root, models_root), limits=Limits(timeout_seconds=NEVER_SECONDS)
    ) as running:
        callers = Callers(running)
        code = callers.grpc("plain", SHORT_SECONDS)
        assert code == grpc.StatusCode.DEADLINE_EXCEEDED
        wait_for(lambda: not any(batcher.running for batcher in batchers(running)))


def test_a_warm_up_that_never_ends_fails_the_load(tmp_path):
    log = prediction_log_pb2.PredictionLog()
    request = log.predict_log.request
    request.model_spec.name, request.model_spec.signature_name = "m", "decode"
    request.inputs["turns"].CopyFrom(tf.make_tensor_proto(np.array([ENDLESS], np.int32)))
    savedmodels.save_loops(tmp_path / "m" / "1", [log])
    limits = Limits(timeout_seconds=SHORT_SECONDS / 3)
    with serving(
        [ModelEntry(name="m", base_path=str(tmp_path / "m"))], ready=False, limits=limits
    ) as running:

        def failed():
            answer = httpx.get(f"{running.url}/v1/models/m")
            return answer.status_code == 200 and answer.json()["model_version_status"][0]["state"]

        wait_for(lambda: failed() == "END")
        status = httpx.get(f"{running.url}/v1/models/m").json()["model_version_status"][0]
        assert status["status"]["error_code"] == "DEADLINE_EXCEEDED"
        assert "warmup record 1" in status["status"]["error_message"]
