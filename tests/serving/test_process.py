"""The command as a process: it starts, says where, drains on SIGTERM, and leaves with 0."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading

import grpc
import httpx
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from tests.helpers.waiting import PATIENCE_SECONDS, wait_for

K = "/v1/models/kinds:predict"
SLOW = {"signature_name": "slow", "instances": ["SECRET"]}


class Process:
    """`tfllm serve` on free ports; ended by its own process id."""

    def __init__(self, *arguments):
        command = [sys.executable, "-m", "tfllm", "serve", "--rest-port", "0", "--grpc-port", "0"]
        self.process = subprocess.Popen(
            [*command, *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
        )  # fmt: skip
        self.line = self.process.stdout.readline()
        self.url = re.search(r"rest=(\S+)", self.line)[1]

    def __enter__(self):
        wait_for(lambda: self.readiness() == 200)
        return self

    def __exit__(self, *exception):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def readiness(self):
        """The status of /readyz; None where nobody listens any more."""
        try:
            return httpx.get(f"{self.url}/readyz").status_code
        except httpx.TransportError:
            return None

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def end(self):
        """Exit status and what was logged."""
        _, log = self.process.communicate(timeout=PATIENCE_SECONDS)
        return self.process.returncode, log


def test_drain(models_root):
    """In flight at SIGTERM: answered. New ones meanwhile: answered. Then status 0."""
    arguments = ("--config", models_root / "models.config", "--lame-duck", "0.5", "--access-log")
    with Process(*arguments) as server:
        assert re.fullmatch(
            r"rest=http://127\.0\.0\.1:\d+ grpc=\S+ models=toy,kinds\n", server.line
        )
        httpx.post(f"{server.url}{K}", json=SLOW, timeout=PATIENCE_SECONDS)
        answers = []

        def ask():
            with httpx.Client(base_url=server.url, timeout=PATIENCE_SECONDS) as client:
                for _ in range(2):
                    try:
                        answers.append(client.post(K, json=SLOW).status_code)
                    except httpx.TransportError:
                        return  # closed for new connections: nothing was lost

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(answers) >= 1)
        server.terminate()
        wait_for(lambda: server.readiness() in (503, None))
        for thread in threads:
            thread.join()
        status, log = server.end()
    assert status == 0
    assert len(answers) >= 8 and set(answers) == {200}
    assert "SECRET" not in log
    assert '"message": "stopped"' in log


def test_every_line_of_the_log_is_json(models_root):
    """Whoever writes it: broken requests, clients that give up, warnings, a handshake on the wrong
    port."""
    with Process(models_root / "kinds", "--lame-duck", "0", "--access-log") as server:
        host, port = re.search(r"grpc=(\S+):(\d+)", server.line).groups()
        with socket.create_connection((host, int(port)), 10) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
            connection.recv(100)
        with socket.create_connection((host, int(port)), 10) as connection:
            connection.sendall(bytes.fromhex("16030100f8010000f4030300") * 20)
            connection.recv(100)
        with grpc.insecure_channel(f"{host}:{port}") as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            request = predict_pb2.PredictRequest()
            request.model_spec.name, request.model_spec.signature_name = "kinds", "slow"
            request.inputs["text"].CopyFrom(tf.make_tensor_proto(["x"]))
            calls = [stub.Predict.future(request, timeout=0.01 * index) for index in range(1, 20)]
            for call in calls[::2]:
                call.cancel()
        httpx.post(f"{server.url}{K}", content=b"no JSON")
        httpx.post(f"{server.url}{K}", json=SLOW, timeout=PATIENCE_SECONDS)
        server.terminate()
        status, log = server.end()
    assert status == 0
    lines = [json.loads(line) for line in log.splitlines()]
    assert all({"time", "level", "message"} <= set(line) for line in lines)
    assert [line for line in lines if line["message"] == "request"]


def test_a_drain_that_runs_out(models_root, tmp_path):
    """Who still waits then is told so, in JSON; the log has no traceback."""
    one_by_one = tmp_path / "batching.txt"
    one_by_one.write_text(
        "max_batch_size { value: 1 } allowed_batch_sizes: [1] num_batch_threads { value: 1 }"
    )
    arguments = ("--lame-duck", "0", "--drain", "1", "--batching-parameters-file", one_by_one)
    with Process(models_root / "kinds", *arguments) as server:
        answers = []
        long = {"signature_name": "slow", "instances": ["x"] * 250}

        def ask():
            answers.append(httpx.post(f"{server.url}{K}", json=long, timeout=PATIENCE_SECONDS))

        thread = threading.Thread(target=ask)
        thread.start()
        metric = "tfllm_requests_in_flight 1.0"
        wait_for(lambda: metric in httpx.get(f"{server.url}/metrics").text)
        server.terminate()
        thread.join()
        status, log = server.end()
    assert status == 0
    assert [answer.status_code for answer in answers] == [503]
    assert list(answers[0].json()) == ["error"]
    assert "Traceback" not in log and "Exception in ASGI" not in log
    assert [json.loads(line) for line in log.splitlines()]


@pytest.mark.slow
def test_a_second_signal_ends_it_now(models_root):
    with Process(models_root / "kinds", "--lame-duck", "600") as server:
        server.terminate()
        wait_for(lambda: server.readiness() == 503)
        server.terminate()
        status, _ = server.end()
    assert status == 128 + signal.SIGTERM


@pytest.mark.slow
def test_ctrl_c(models_root):
    with Process(models_root / "kinds", "--lame-duck", "0") as server:
        server.process.send_signal(signal.SIGINT)
        status, _ = server.end()
    assert status == 0
