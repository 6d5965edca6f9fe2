"""Every limit has its status code, and the server lives on."""

import gzip
import json
import socket
import threading
import time

import grpc
import httpx
import pytest
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from tests.helpers.servers import entries_of, serving
from tests.helpers.waiting import PATIENCE_SECONDS, wait_for
from tfllm.serving.schema import Batching, Limits

T, K = "/v1/models/toy:predict", "/v1/models/kinds:predict"
MIB = 1 << 20


def alive(client):
    assert client.post(K, json={"instances": [1]}).json() == {"predictions": [0.5]}


def body_of(size):
    frame = b'{"instances": [""]}'
    return frame[:-3] + b"a" * (size - len(frame)) + frame[-3:]


def test_a_body_of_just_the_limit(client):
    assert len(body_of(MIB)) == MIB
    response = client.post(T, content=body_of(MIB))
    assert response.status_code == 400  # the text, not the body, is too long
    assert "characters; a text may have 100000" in response.json()["error"]


def test_a_body_above_the_limit(client):
    response = client.post(T, content=body_of(MIB + 1))
    assert response.status_code == 413
    assert response.json()["error"] == f"The body is longer than {MIB} bytes."
    alive(client)


def test_a_body_above_the_limit_in_chunks(client):
    def chunks():
        for _ in range(40):
            yield b"x" * 32_768

    response = client.post(T, content=chunks())
    assert response.status_code == 413
    alive(client)


def test_an_endless_body_is_cut_off(running):
    """A sender that never stops gets its answer, or its connection closed, and no more."""
    with socket.create_connection(("127.0.0.1", running.server.rest_port), 10) as connection:
        connection.sendall(
            f"POST {T} HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n".encode()
        )
        sent = 0
        try:
            while sent < 512 * MIB:
                connection.sendall(b"x" * 65_536)
                sent += 65_536
        except OSError:
            pass
        assert sent < 160 * MIB  # MAX_DISCARDED, and what buffers hold


def test_gzip(client):
    def post(data, encoding="gzip"):
        return client.post(K, content=data, headers={"content-encoding": encoding})

    small = json.dumps({"instances": [1]}).encode()
    assert post(gzip.compress(small)).json() == {"predictions": [0.5]}
    assert post(gzip.compress(b"\0" * (100 * MIB))).status_code == 413
    assert post(b"no gzip").status_code == 400
    assert post(small, "br").status_code == 415
    alive(client)


@pytest.mark.parametrize("depth", [65, 10_000, 500_000])
def test_deep_json(client, depth):
    response = client.post(K, content=b'{"instances":' + b"[" * depth + b"]" * depth + b"}")
    assert response.status_code == 400
    alive(client)


def test_rows(client):
    ask = {"instances": [2] * 256}
    assert client.post(K, json=ask).json() == {"predictions": [1.0] * 256}
    response = client.post(K, json={"instances": [2] * 257})
    assert response.status_code == 400
    assert "257 rows; a request may have 256" in response.json()["error"]


def test_characters_are_counted_not_bytes(client):
    assert client.post(T, json={"instances": ["日" * 50_000]}).status_code == 200
    assert client.post(T, json={"instances": ["a" * 100_001]}).status_code == 400


def test_bytes_are_no_text(client):
    """An image as b64 is measured by the body's limit alone."""
    import base64

    image = base64.b64encode(b"\x89PNG\xff" * 60_000).decode()
    body = {"signature_name": "raw", "instances": [{"b64": image}]}
    answer = client.post(K, json=body)
    assert answer.status_code == 200
    assert answer.json()["predictions"][0]["same_bytes"]["b64"] == image


@pytest.fixture(scope="module")
def tight(models_root):
    """One thread, a queue of four rows, half a second."""
    limits = Limits(queue_rows=4, timeout_seconds=0.5, header_seconds=1.0)
    with serving(
        entries_of(models_root),
        limits=limits,
        batching=Batching(num_batch_threads=1, max_batch_size=1, allowed_batch_sizes=(1,)),
    ) as running:
        url = running.url
        httpx.post(f"{url}{K}", json={"instances": [1]})
        for _ in range(100):  # the first runs are slower
            warm = httpx.post(f"{url}{K}", json={"signature_name": "slow", "instances": ["x"]})
            if warm.status_code == 200:
                break
        yield running


def test_a_full_queue_is_429_and_nothing_else(tight):
    statuses, retry = [], []

    def ask():
        response = httpx.post(
            f"{tight.url}{K}", json={"signature_name": "slow", "instances": ["x"]},
            timeout=PATIENCE_SECONDS,
        )  # fmt: skip
        statuses.append(response.status_code)
        if response.status_code == 429:
            retry.append(response.headers["retry-after"])
            assert "queue of signature 'slow' is full" in response.json()["error"]

    threads = [threading.Thread(target=ask) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) <= {200, 429, 504}
    assert 429 in statuses
    assert set(retry) == {"1"}
    wait_for(lambda: httpx.post(f"{tight.url}{K}", json={"instances": [1]}).status_code == 200)


def test_a_deadline(tight):
    """What is still waiting at its deadline is answered then, and not run."""
    with grpc.insecure_channel(tight.address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = "kinds", "slow"
        request.inputs["text"].dtype = 7
        request.inputs["text"].tensor_shape.dim.add().size = 1
        request.inputs["text"].string_val.append(b"x")
        with pytest.raises(grpc.RpcError) as error:
            stub.Predict(request, 0.0001)
        assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    work = json.dumps({"signature_name": "slow", "instances": ["x"] * 250})
    response = httpx.post(f"{tight.url}{K}", content=work, timeout=PATIENCE_SECONDS)
    assert response.status_code in (429, 504)


def test_a_connection_that_says_nothing_is_closed(tight):
    with socket.create_connection(("127.0.0.1", tight.server.rest_port), 10) as connection:
        connection.settimeout(PATIENCE_SECONDS)
        assert connection.recv(1) == b""


def test_a_body_that_never_comes(tight):
    with socket.create_connection(("127.0.0.1", tight.server.rest_port), 10) as connection:
        connection.settimeout(PATIENCE_SECONDS)
        connection.sendall(f"POST {K} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{{".encode())
        answer = connection.recv(4096)
        assert answer.split()[1] in (b"408", b"504")


def test_headers_without_end(running, client):
    with socket.create_connection(("127.0.0.1", running.server.rest_port), 10) as connection:
        connection.settimeout(PATIENCE_SECONDS)
        connection.sendall(f"POST {K} HTTP/1.1\r\nHost: x\r\nX-Long: ".encode())
        try:
            for _ in range(100):
                connection.sendall(b"x" * 4096)
            assert connection.recv(100).split()[1] == b"431"
        except ConnectionError:
            pass  # closed while we were still talking
    alive(client)


def test_headers_below_the_limit(client):
    response = client.get("/v1/models/kinds", headers={"x-long": "x" * 15_000})
    assert response.status_code == 200
    assert client.get("/v1/models/kinds", headers={"x-long": "x" * 17_000}).status_code == 431
    alive(client)


def test_many_idle_connections_do_not_hinder_others(running, client):
    idle = [socket.create_connection(("127.0.0.1", running.server.rest_port)) for _ in range(100)]
    try:
        for connection in idle:
            connection.sendall(b"POST /v1/models/")
        alive(client)
    finally:
        for connection in idle:
            connection.close()


@pytest.mark.slow
def test_soak(running, client):
    """Ten thousand mixed requests: no file left open, no memory that only grows."""
    import os
    import resource

    def files():
        return len(os.listdir("/proc/self/fd"))

    def memory():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

    bodies = [{"instances": ["a b"] * n} for n in (1, 3, 40)] + [{"instances": []}, {}]
    for index in range(2000):
        client.post(T, json=bodies[index % 5])
    before = files(), memory()
    end = time.monotonic() + 300
    for index in range(10_000):
        client.post(T, json=bodies[index % 5])
        if time.monotonic() > end:
            break
    assert files() <= before[0] + 2
    assert memory() <= before[1] + 64
