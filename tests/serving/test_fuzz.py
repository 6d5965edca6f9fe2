"""Seeded nonsense over REST and gRPC: refused or answered; no crash, no hang, no fault of ours.

`python -m pytest -m slow -s tests/serving/test_fuzz.py` prints how many answers had which status.
"""

import json
import random
import socket
from collections import Counter

import grpc
import httpx
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2

from tests.helpers.servers import entries_of, serving
from tests.helpers.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.slow

REST_REQUESTS = 5000  # of each kind
GRPC_REQUESTS = 2500
ASKED_FOR = (501, 505)  # 5xx that a request can ask for: CONNECT, HTTP/2, other codings
SIGNATURES = [
    "", "wide", "types", "raw", "total", "uneven", "scalar", "sixteen", "divide", "pair", "tokens",
    "length", "classify", "regress", "nothing", "__saved_model_init_op",
]  # fmt: skip
MODELS = ["toy", "kinds"]
NAMES = [
    "x",
    "text",
    "text_pair",
    "token_ids",
    "padding_mask",
    "raw",
    "divisor",
    "b64",
    "int8",
    "y",
    "",
]
INPUTS = {
    "toy": {"": ["text"], "pair": ["text", "text_pair"], "tokens": ["token_ids", "padding_mask"],
            "length": ["text"], "classify": ["inputs"]},
    "kinds": {"": ["x"], "wide": ["x"], "total": ["x"], "uneven": ["x"], "scalar": ["x"],
              "sixteen": ["x"], "divide": ["divisor"], "raw": ["raw"]},
}  # fmt: skip
HOST = "127.0.0.1"
TYPES = [*range(12), 14, 17, 19, 20, 21, 22, 23, 99, 101]


@pytest.fixture(scope="module")
def running(models_root):
    with serving(entries_of(models_root)) as running:
        yield running


@pytest.fixture
def client(running):
    with httpx.Client(base_url=running.url, timeout=PATIENCE_SECONDS) as client:
        yield client
        assert client.post("/v1/models/kinds:predict", json={"instances": [1]}).json() == {
            "predictions": [0.5]
        }


def value(chance, depth=0):
    kind = chance.randrange(9 if depth < 4 else 6)
    if kind == 0:
        return chance.choice([None, True, False])
    if kind == 1:
        return chance.choice(
            [0, 1, -1, 2**31, -(2**63), 2**64, 10**30, chance.randrange(-300, 300)]
        )
    if kind == 2:
        return chance.choice([0.5, 1e39, -1e308, 1e-320, float("nan"), float("inf")])
    if kind == 3:
        return "".join(chance.choices('aé日😀\0\u200d \\"', k=chance.randrange(9)))
    if kind in (4, 5):
        return {"b64": chance.choice(["YQ==", "YQ", "*", "", 1, None])}
    if kind in (6, 7):
        return [value(chance, depth + 1) for _ in range(chance.choice([0, 1, 2, 2, 3]))]
    return {chance.choice(NAMES): value(chance, depth + 1) for _ in range(chance.randrange(4))}


def aimed(chance):
    """A model, one of its signatures, and the names of its inputs; now and then all at random."""
    model = chance.choice(MODELS)
    if chance.random() < 0.2:
        return model, chance.choice(SIGNATURES), chance.sample(NAMES, chance.randrange(1, 3))
    signature, names = chance.choice(list(INPUTS[model].items()))
    return model, signature, names


def document(chance):
    """A model and a document for it."""
    model, signature, names = aimed(chance)
    made = {"signature_name": signature} if signature else {}
    key = chance.choice(["instances", "instances", "inputs", "examples"])
    rows = [{name: value(chance, 2) for name in names} for _ in range(chance.choice([0, 1, 1, 2]))]
    if chance.random() < 0.3:
        made[key] = value(chance)
    elif key == "inputs":
        made[key] = {name: [value(chance, 3)] * chance.randrange(3) for name in names}
    elif len(names) == 1 and chance.random() < 0.5:
        made[key] = [row[names[0]] for row in rows]
    else:
        made[key] = rows
    return model, made


def damaged(chance, data):
    data = bytearray(data)
    for _ in range(chance.randrange(1, 5)):
        place = chance.randrange(len(data) or 1)
        kind = chance.randrange(4)
        if kind == 0 and data:
            data[place] = chance.randrange(256)
        elif kind == 1:
            del data[place : place + chance.randrange(1, 9)]
        elif kind == 2:
            data[place:place] = bytes(chance.choices(b'[]{}",:0123e\\u\r\n\t ', k=3))
        else:
            data[place:place] = data[chance.randrange(len(data) or 1) :][:20]
    return bytes(data)


def path(chance, model):
    method = chance.choice(["predict"] * 8 + ["classify", "regress"])
    return f"/v1/models/{model}:{method}"


def checked(counts):
    print(dict(sorted(counts.items())))
    faults = {status for status in counts if status >= 500 and status not in ASKED_FOR}
    assert not faults and len(counts) > 1


def test_documents(client):
    chance, counts = random.Random(1), Counter()
    for _ in range(REST_REQUESTS):
        model, made = document(chance)
        body = json.dumps(made).encode()
        counts[client.post(path(chance, model), content=body).status_code] += 1
    counts.pop(501, None)  # types that have no JSON
    checked(counts)


def test_damaged_bodies(client):
    chance, counts = random.Random(2), Counter()
    for _ in range(REST_REQUESTS):
        model, made = document(chance)
        body = damaged(chance, json.dumps(made).encode())
        headers = {"content-encoding": "gzip"} if chance.random() < 0.1 else {}
        counts[client.post(path(chance, model), content=body, headers=headers).status_code] += 1
    checked(counts)


def test_damaged_requests(running, client):
    """Whole requests, several on a connection, each read until the server closes it."""
    chance, counts = random.Random(3), Counter()
    for _ in range(REST_REQUESTS):
        model, made = document(chance)
        body = json.dumps(made).encode()
        framing = chance.choice(
            [f"Content-Length: {len(body)}", "Transfer-Encoding: chunked", "Expect: 100-continue"]
        )
        extra = chance.choice(
            ["", "Upgrade: h2c\r\nConnection: Upgrade\r\n", "Connection: close\r\n"]
        )
        if "chunked" in framing:
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        head = (
            f"POST {path(chance, model)} HTTP/1.1\r\nHost: x\r\n{extra}{framing}\r\n\r\n".encode()
        )
        data = damaged(chance, (head + body) * chance.randrange(1, 3))
        with socket.create_connection((HOST, running.server.rest_port), 30) as connection:
            connection.settimeout(PATIENCE_SECONDS)  # reached: a hang
            answer = b""
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                while part := connection.recv(65_536):
                    answer += part
            except (ConnectionError, BrokenPipeError, OSError) as error:
                assert not isinstance(error, TimeoutError)
        counts[int(answer.split()[1]) if answer else 0] += 1
    counts.pop(0, None)
    checked(counts)


def tensor(chance):
    made = tf.make_tensor_proto(0)
    made.Clear()
    made.dtype = chance.choice(TYPES)
    sizes = [0, 1, 1, 2, 3, -1, 2**31, 2**62, 2**63 - 1]
    for _ in range(chance.choice([0, 1, 1, 1, 2, 2, 3, 65, 255])):
        made.tensor_shape.dim.add().size = chance.choice(sizes)
    made.tensor_shape.unknown_rank = chance.random() < 0.05
    if chance.random() < 0.4:
        made.tensor_content = chance.randbytes(chance.choice([0, 1, 4, 8, 12, 100]))
    for name in chance.sample(["float_val", "double_val", "int_val", "half_val", "int64_val"], 2):
        values = [chance.choice([0, 1, -1, 2**31 - 1]) for _ in range(chance.randrange(4))]
        getattr(made, name).extend(values)
    made.string_val.extend(
        chance.randbytes(chance.randrange(5)) for _ in range(chance.randrange(3))
    )
    made.bool_val.extend([True] * chance.randrange(2))
    return made


def plain_tensor(chance):
    array = chance.choice(
        [[1.0], [1, 0], [[1, 2]], ["a", "b"], [["a"]], 1.0, [[0.5, float("nan")]]]
    )
    return tf.make_tensor_proto(array)


def test_grpc(running, client):
    chance, counts = random.Random(4), Counter()
    with grpc.insecure_channel(running.address) as channel:
        call = channel.unary_unary(
            "/tensorflow.serving.PredictionService/Predict",
            request_serializer=lambda data: data,
            response_deserializer=predict_pb2.PredictResponse.FromString,
        )
        for _ in range(GRPC_REQUESTS):
            request = predict_pb2.PredictRequest()
            model, signature, names = aimed(chance)
            request.model_spec.name, request.model_spec.signature_name = model, signature
            plain = chance.random() < 0.3
            for name in names:
                request.inputs[name].CopyFrom(plain_tensor(chance) if plain else tensor(chance))
            try:
                call(request.SerializeToString(), timeout=PATIENCE_SECONDS)
                counts["OK"] += 1
            except grpc.RpcError as error:
                counts[error.code().name] += 1
    print(dict(sorted(counts.items())))
    assert set(counts) <= {"OK", "INVALID_ARGUMENT", "FAILED_PRECONDITION"}
