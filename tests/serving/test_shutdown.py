"""A server that stops loses nothing: what was sent is answered, or refused before it began."""

import asyncio
import os
import re
import signal
import socket
import sys
import threading
from collections import Counter

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

from tests.helpers.servers import entries_of, serving
from tests.helpers.waiting import PATIENCE_SECONDS, wait_for
from tests.serving import savedmodels
from tests.serving.test_process import Process
from tfllm.serving.sockets import refuse_connections

BODY = b'{"instances": ["a b", "c"]}'
REQUEST = (
    b"POST /v1/models/toy:predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
)
PREDICT = "/tensorflow.serving.PredictionService/Predict"
PAUSE_SECONDS = 0.02  # of a client that was refused, before it asks again
REFUSALS = 20  # after so many a gRPC client gives up

linux = pytest.mark.skipif(sys.platform != "linux", reason="the filter is Linux's")


def predict_request():
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "toy"
    request.inputs["text"].CopyFrom(tf.make_tensor_proto(["a b", "c"]))
    return request


async def ask_over_rest(port, seen):
    """One request after the other on a kept connection, until new ones are refused."""
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            return
        open_for_more = True
        while open_for_more:
            try:
                writer.write(REQUEST)
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(re.search(rb"content-length: (\d+)", head, re.IGNORECASE)[1])
                body = await reader.readexactly(length)
            except (OSError, asyncio.IncompleteReadError) as error:
                seen[f"lost: {type(error).__name__}"] += 1
                break
            right = b" 200 " in head and b'"predictions"' in body
            seen["answered" if right else f"lost: {head.split()[1].decode()}"] += 1
            open_for_more = not re.search(rb"connection: close", head, re.IGNORECASE)
        writer.close()


async def ask_over_grpc(port, seen):
    """One request after the other, until the server has refused often enough."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    refused = 0
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        predict = channel.unary_unary(
            PREDICT,
            request_serializer=predict_pb2.PredictRequest.SerializeToString,
            response_deserializer=predict_pb2.PredictResponse.FromString,
        )
        while refused < REFUSALS:
            try:
                await predict(predict_request(), timeout=PATIENCE_SECONDS)
                seen["answered"] += 1
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE:
                    seen[f"lost: {error.code().name}"] += 1
                refused += 1
                await asyncio.sleep(PAUSE_SECONDS)


async def clients(rest_port, grpc_port, rest_count, grpc_count, stop):
    """Counts of what the clients saw; `stop` is called while they all ask."""
    rest, rpc = Counter(), Counter()
    tasks = [asyncio.create_task(ask_over_rest(rest_port, rest)) for _ in range(rest_count)]
    tasks += [asyncio.create_task(ask_over_grpc(grpc_port, rpc)) for _ in range(grpc_count)]
    while rest["answered"] < 2 * rest_count or rpc["answered"] < 2 * grpc_count:
        await asyncio.sleep(PAUSE_SECONDS)
    stop()
    await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE_SECONDS)
    return rest, rpc


def lost(*counts):
    return [key for seen in counts for key in seen if key.startswith("lost")]


STOPS = int(os.environ.get("TFLLM_STOPS", "1"))  # how often each signal is sent
REST_CLIENTS, GRPC_CLIENTS = 64, 32


@linux
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT] * STOPS)
def test_nothing_is_lost(models_root, number):
    with Process("--config", models_root / "models.config", "--lame-duck", "1") as server:
        ports = [int(port) for port in re.findall(r":(\d+)(?=\s)", server.line)]

        def stop():
            server.process.send_signal(number)

        rest, rpc = asyncio.run(clients(*ports, REST_CLIENTS, GRPC_CLIENTS, stop))
        status, _ = server.end()
    assert status == 0
    assert lost(rest, rpc) == []


@linux
def test_stop_loses_nothing(models_root):
    """In one process, without a lame duck: a client that just asks is answered or refused."""
    with serving(entries_of(models_root), lame_duck_seconds=0.0) as running:
        stopped = []

        def stop():
            work = running.server.stop(0.2)
            stopped.append(asyncio.run_coroutine_threadsafe(work, running.loop))

        ports = running.server.rest_port, running.server.grpc_port
        rest, rpc = asyncio.run(clients(*ports, 8, 4, stop))
        stopped[0].result(PATIENCE_SECONDS)
        assert lost(rest, rpc) == []


def test_what_has_begun_is_finished_and_what_has_not_is_unavailable(models_root):
    with (
        serving(entries_of(models_root)) as running,
        grpc.insecure_channel(running.address) as channel,
    ):
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = "kinds", "slow"
        request.inputs["text"].CopyFrom(tf.make_tensor_proto(["x"]))
        begun = [stub.Predict.future(request, PATIENCE_SECONDS) for _ in range(8)]
        calls = running.server._calls
        wait_for(lambda: len(calls._begun) == 8 or all(one.done() for one in begun))
        running.call(running.server.stop())
        assert [one.result().outputs["echo"].string_val[0] for one in begun] == [b"x"] * 8
        with pytest.raises(grpc.RpcError) as error:
            stub.Predict(request, PATIENCE_SECONDS)
        assert error.value.code() == grpc.StatusCode.UNAVAILABLE


def test_closing_connections_says_so(models_root):
    with serving(entries_of(models_root)) as running, httpx.Client(base_url=running.url) as client:
        assert "connection" not in client.get("/readyz").headers
        running.server._application.closing = True
        for path in ("/readyz", "/metrics", "/v1/models/toy", "/nowhere"):
            assert client.get(path).headers["connection"] == "close"
        answer = client.post("/v1/models/toy:predict", content=BODY)
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")


@linux
def test_who_is_connected_goes_on_and_who_comes_is_refused():
    """Those that the kernel has accepted are taken in before the socket closes."""

    async def inside():
        answered = []

        async def answer(reader, writer):
            answered.append(await reader.read(1))
            writer.write(b"y")
            writer.close()

        listening = socket.create_server(("127.0.0.1", 0))
        waiting = [socket.create_connection(listening.getsockname()) for _ in range(20)]
        server = await asyncio.start_server(answer, sock=listening)
        await refuse_connections([listening])
        server.close()
        for one in waiting:
            one.sendall(b"x")
        while len(answered) < len(waiting):
            await asyncio.sleep(PAUSE_SECONDS)
        for one in waiting:
            one.settimeout(PATIENCE_SECONDS)
            assert await asyncio.to_thread(one.recv, 1) == b"y"
            one.close()
        return listening.getsockname() if listening.fileno() >= 0 else None

    asyncio.run(asyncio.wait_for(inside(), PATIENCE_SECONDS))


@pytest.mark.slow
def test_a_stop_while_loading_does_not_wait(tmp_path):
    """Warm-ups that take minutes, and models behind them in the queue: gone at once, status 0."""
    log = prediction_log_pb2.PredictionLog()
    request = log.predict_log.request
    request.model_spec.name, request.model_spec.signature_name = "m", "decode"
    request.inputs["turns"].CopyFrom(tf.make_tensor_proto(np.array([2**31 - 1], np.int32)))
    models = []
    for number in range(6):
        savedmodels.save_loops(tmp_path / f"m{number}" / "1", [log])
        models.append(f"m{number}={tmp_path / f'm{number}'}")
    server = Process(*models, "--lame-duck", "0")
    try:
        lines = []
        reader = threading.Thread(target=lambda: lines.extend(server.process.stderr))
        reader.start()
        wait_for(lambda: sum("loading m" in line for line in lines) == 4)  # the loader's threads
        server.terminate()
        assert server.process.wait(PATIENCE_SECONDS) == 0
        reader.join(PATIENCE_SECONDS)
    finally:
        server.process.kill()
        server.process.wait()
    assert sum("loading m" in line for line in lines) == 4
    assert any('"message": "stopped"' in line for line in lines)
