"""Requests per second and latency of `tfllm serve`, against calling the SavedModel directly.

    python benchmarks/server.py --artifact runs/quickstart/savedmodel

One text per request, over REST and gRPC, with 1, 8 and 32 connections that each wait for their
answer. The direct call runs in this process while the server idles: one text, and 32 at once
(counted as texts). Client and server share the machine's cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import workload

CONNECTIONS = (1, 8, 32)
DIRECT_BATCHES = (1, 32)
START_SECONDS = 180
MODEL = "model"
PREDICT = "/tensorflow.serving.PredictionService/Predict"


def newest(artifact: str) -> Path:
    """The newest version folder of an exported model."""
    return max(
        (path for path in Path(artifact).iterdir() if path.name.isdigit()),
        key=lambda path: int(path.name),
    )


def direct(artifact: str, texts: list[str], seconds: float):
    """Results of `serving_default`, one core, as the server calls it with its two threads."""
    import tensorflow as tf
    import tensorflow_text  # noqa: F401  (registers the tokenizer's ops)

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    signature = tf.saved_model.load(str(newest(artifact))).signatures["serving_default"]

    def call(batch):
        return {name: value.numpy() for name, value in signature(text=tf.constant(batch)).items()}

    for size in DIRECT_BATCHES:
        rates = workload.rate(call, texts, size, seconds)
        rate = rates.pop("texts_per_second")
        yield f"direct call, {size} at once", rate, {**rates, "tensorflow": tf.__version__}


@contextmanager
def server(artifact: str):
    """(REST port, gRPC port, process) of a `tfllm serve`, ready; ended by its own process id."""
    command = [sys.executable, "-m", "tfllm", "serve", f"{MODEL}={artifact}"]
    command += ["--rest-port", "0", "--grpc-port", "0", "--lame-duck", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        line = process.stdout.readline() if process.stdout else ""
        ports = re.search(r"rest=\S+:(\d+) grpc=\S+:(\d+)", line)
        if ports is None:
            sys.exit("the server did not start: run tfllm serve by hand to see why")
        wait_until_ready(int(ports[1]))
        yield int(ports[1]), int(ports[2]), process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def wait_until_ready(port: int) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        try:
            with urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            pass
        time.sleep(0.1)
    sys.exit("the server did not become ready")


async def ask_rest(port: int, texts: list[str], first: int, end: float, latencies: list[float]):
    """One keep-alive connection, request after request; the client does as little as it can."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    number = first
    while time.perf_counter() < end:
        body = json.dumps({"instances": [texts[number % len(texts)]]}).encode()
        head = f"POST /v1/models/{MODEL}:predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}"
        before = time.perf_counter()
        writer.write(head.encode() + b"\r\n\r\n" + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        size = int(re.search(rb"content-length: (\d+)", answer.lower())[1])
        await reader.readexactly(size)
        if b" 200 " not in answer[:20]:
            raise RuntimeError(answer.decode())
        latencies.append(time.perf_counter() - before)
        number += CONNECTIONS[-1]
    writer.close()


async def ask_grpc(channel, texts: list[str], first: int, end: float, latencies: list[float]):
    """One caller of a shared channel; requests are prepared, answers are left as bytes."""
    from tensorflow_serving.apis import predict_pb2

    call = channel.unary_unary(PREDICT, lambda message: message, lambda data: data)
    number = first
    while time.perf_counter() < end:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = MODEL
        tensor = request.inputs["text"]
        tensor.dtype = 7  # DT_STRING
        tensor.tensor_shape.dim.add().size = 1
        tensor.string_val.append(texts[number % len(texts)].encode())
        data = request.SerializeToString()
        before = time.perf_counter()
        await call(data)
        latencies.append(time.perf_counter() - before)
        number += CONNECTIONS[-1]


async def load(kind: str, port: int, connections: int, texts: list[str], seconds: float):
    """(requests per second, percentiles) of `connections` callers."""
    import grpc

    latencies: list[float] = []
    start = time.perf_counter()
    end = start + seconds
    if kind == "REST":
        callers = [ask_rest(port, texts, n, end, latencies) for n in range(connections)]
        await asyncio.gather(*callers)
    else:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            callers = [ask_grpc(channel, texts, n, end, latencies) for n in range(connections)]
            await asyncio.gather(*callers)
    elapsed = time.perf_counter() - start
    latencies.sort()
    return len(latencies) / elapsed, {
        "p50_milliseconds": 1000 * latencies[len(latencies) // 2],
        "p99_milliseconds": 1000 * latencies[int(len(latencies) * 0.99)],
    }


def processor_seconds(process) -> float:
    """CPU time that a process has used so far."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--artifact", required=True, help="an exported SavedModel directory")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each row")
    options = parser.parse_args()
    texts, _ = workload.sst2(2000)
    with server(options.artifact) as (rest_port, grpc_port, process):
        once = None
        for runner, rate, details in direct(options.artifact, texts, options.seconds):
            once = once or rate
            workload.report(runner=runner, requests_per_second=rate, **details)
        for kind, port in (("REST", rest_port), ("gRPC", grpc_port)):
            for connections in CONNECTIONS:
                asyncio.run(load(kind, port, connections, texts, 1.0))  # warm-up
                before = processor_seconds(process)
                rate, percentiles = asyncio.run(
                    load(kind, port, connections, texts, options.seconds)
                )
                used = processor_seconds(process) - before
                workload.report(
                    runner=f"{kind}, {connections} connections",
                    requests_per_second=rate,
                    **percentiles,
                    ratio_to_direct=rate / once,
                    server_cpu_milliseconds=1000 * used / (rate * options.seconds),
                )


if __name__ == "__main__":
    main()
