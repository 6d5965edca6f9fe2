"""Replays a version's own warm-up requests before it serves, as TF Serving does.

`assets.extra/tf_serving_warmup_requests`: a TFRecord file of PredictionLog, at most 1000 records.
A request that fails makes the load fail: a version that cannot answer its own examples is broken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import input_pb2, prediction_log_pb2

from tfllm.serving import examples
from tfllm.serving.schema import Code, RequestError, invalid
from tfllm.serving.servable import DEFAULT_SIGNATURE, Servable, Signature
from tfllm.serving.tensors import from_proto

REQUESTS_FILE = Path("assets.extra") / "tf_serving_warmup_requests"
MAX_RECORDS = 1000


def replay(servable: Servable, seconds: float = math.inf) -> int:
    """Run the recorded requests in order.

    Args:
        servable: The loaded version.
        seconds: How long each may take.

    Returns:
        How many there were.

    Raises:
        RequestError: A request failed; the message has the number of its record.
    """
    path = servable.path / REQUESTS_FILE
    if not path.exists():
        return 0
    count = 0
    for record in tf.compat.v1.io.tf_record_iterator(str(path)):
        count += 1
        if count > MAX_RECORDS:
            raise invalid(f"Number of warmup records exceeds the maximum ({MAX_RECORDS}) at {path}")
        log = prediction_log_pb2.PredictionLog()
        try:
            log.ParseFromString(record)
        except DecodeError:
            raise invalid(f"Failed to parse warmup record {count} from {path}") from None
        try:
            _run(servable, log, seconds)
        except RequestError as error:
            raise RequestError(error.code, f"warmup record {count}: {error.message}") from None
    return count


def _run(servable: Servable, log: prediction_log_pb2.PredictionLog, seconds: float) -> None:
    kind = log.WhichOneof("log_type")
    if kind is None:
        return
    if kind == "predict_log":
        request = log.predict_log.request
        _predict(servable, request.model_spec.signature_name, request.inputs, seconds)
    elif kind == "classify_log":
        request = log.classify_log.request
        signature = examples.classification_signature(servable, request.model_spec.signature_name)
        _examples(signature, request.input, examples.classification, seconds)
    elif kind == "regress_log":
        request = log.regress_log.request
        signature = examples.regression_signature(servable, request.model_spec.signature_name)
        _examples(signature, request.input, examples.regression, seconds)
    elif kind == "multi_inference_log":
        request = log.multi_inference_log.request
        for task in request.tasks:
            classify = task.method_name == examples.CLASSIFY_METHOD
            find = examples.classification_signature if classify else examples.regression_signature
            finish = examples.classification if classify else examples.regression
            signature = find(servable, task.model_spec.signature_name)
            _examples(signature, request.input, finish, seconds)
    else:
        raise RequestError(Code.UNIMPLEMENTED, f"Unsupported log_type for warmup: {kind}")


def _predict(
    servable: Servable, name: str, inputs: Mapping[str, tensor_pb2.TensorProto], seconds: float
) -> None:
    name = name or DEFAULT_SIGNATURE
    signature = servable.signatures.get(name)
    if signature is None:
        raise RequestError(Code.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
    arrays = signature.check({key: from_proto(inputs[key]) for key in inputs})
    signature.run(arrays, seconds)


def _examples(
    signature: Signature,
    input_proto: input_pb2.Input,
    finish: Callable[[dict[str, np.ndarray], int], object],
    seconds: float,
) -> None:
    rows = examples.serialize_input(input_proto)
    finish(signature.run({examples.INPUTS: rows}, seconds), len(rows))
