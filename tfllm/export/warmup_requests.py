"""Warm-up requests, which TF Serving sends to a new version before it goes live.

The first request of a shape is slow (the graph is optimized then). A TFRecord file of PredictionLog
in `assets.extra/` makes the server pay for that while it still serves the old version. The server
takes at most 1000 records and refuses the version when one of them fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2

from tfllm.errors import MissingExtra
from tfllm.export.verify.sample_texts import SENTENCES

if TYPE_CHECKING:
    from tensorflow_serving.apis import prediction_log_pb2

REQUESTS_FILE = Path("assets.extra") / "tf_serving_warmup_requests"
MAX_RECORDS = 1000
# Inputs whose value is not 1: a second token is what warms the generation loop up.
FILL_VALUES = {"segment_ids": 0, "max_new_tokens": 4}
TOKEN_LENGTH = 16  # of rows for signatures that take token ids

Arrays = dict[str, np.ndarray]
SignatureDefs = Mapping[str, meta_graph_pb2.SignatureDef]


@dataclass(frozen=True)
class Request:
    """One call of a signature: its name, TF Serving's method, and the arrays to feed."""

    signature: str
    method: str  # "predict", "classify" or "regress"
    inputs: Arrays
    texts: Arrays  # the texts in `inputs`, where these are serialized tf.Examples


def build_requests(signatures: SignatureDefs, batch_sizes: Sequence[int]) -> Iterator[Request]:
    """Yield one request per signature and batch size."""
    for name, signature in sorted(signatures.items()):
        if name.startswith("__"):
            continue  # TensorFlow's own initializer
        method = signature.method_name.rpartition("/")[2]
        for batch_size in batch_sizes:
            if method in ("classify", "regress"):
                texts = {key: _texts(key, batch_size) for key in _text_features(signatures)}
                inputs = {"inputs": serialized_examples(texts)}
                yield Request(name, method, inputs, texts)
            else:
                inputs = {
                    key: _input(key, info, batch_size) for key, info in signature.inputs.items()
                }
                yield Request(name, method, inputs, {})


def write(version_directory: Path, requests: Sequence[Request]) -> None:
    """Write the requests of one SavedModel version. Needs the extra [serve]."""
    records = [_prediction_log(request).SerializeToString() for request in requests[:MAX_RECORDS]]
    path = version_directory / REQUESTS_FILE
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)


def serialized_examples(texts: Arrays) -> np.ndarray:
    """Return serialized tf.Examples of texts, one feature per key: object [B] of bytes."""
    rows = zip(*texts.values(), strict=True)
    return np.array([_example(texts, row).SerializeToString() for row in rows], object)


def _example(names: Arrays, row: Sequence[bytes]) -> tf.train.Example:
    example = tf.train.Example()
    for name, text in zip(names, row, strict=True):
        example.features.feature[name].bytes_list.value.append(text)
    return example


def _text_features(signatures: SignatureDefs) -> list[str]:
    """Return the names of the text features: the text inputs of `serving_default`."""
    return sorted(signatures["serving_default"].inputs)


def _texts(name: str, batch_size: int) -> np.ndarray:
    """Return varied texts for an input, rotated differently for each name."""
    start = len(name)
    rows = [SENTENCES[(start + i) % len(SENTENCES)] for i in range(batch_size)]
    return np.array([row.encode() for row in rows], object)


def _input(name: str, info: meta_graph_pb2.TensorInfo, batch_size: int) -> np.ndarray:
    """Return an array of the dtype and rank of a signature's input."""
    dtype = tf.dtypes.as_dtype(info.dtype)
    if dtype == tf.string:
        return _texts(name, batch_size)
    shape = [dim.size if dim.size > 0 else TOKEN_LENGTH for dim in info.tensor_shape.dim]
    return np.full([batch_size, *shape[1:]], FILL_VALUES.get(name, 1), dtype.as_numpy_dtype)


def _prediction_log(request: Request) -> prediction_log_pb2.PredictionLog:
    """Return the PredictionLog of a request."""
    try:
        from tensorflow_serving.apis import prediction_log_pb2
    except ImportError:
        raise MissingExtra("tensorflow-serving-api", "serve") from None
    log = prediction_log_pb2.PredictionLog()
    message = getattr(log, f"{request.method}_log").request
    message.model_spec.name = "model"  # the server does not compare it
    message.model_spec.signature_name = request.signature
    if request.method == "predict":
        for name, value in request.inputs.items():
            message.inputs[name].CopyFrom(tf.make_tensor_proto(value))
        return log
    for row in zip(*request.texts.values(), strict=True):
        message.input.example_list.examples.append(_example(request.texts, row))
    return log
