"""Warm-up records: the requests that TF Serving sends to a new version before it goes live.

The first request of a shape is slow (the graph is optimised then). A TFRecord file of PredictionLog
in `assets.extra/` makes the server pay for that while it still holds the old version. The server
takes at most 1000 records and refuses the version when one of them fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfllm.errors import MissingExtra
from tfllm.export.verify.sentences import SENTENCES

FILE = Path("assets.extra") / "tf_serving_warmup_requests"
MOST_RECORDS = 1000
# Numbers that are not 1 in the records: a second token is what warms a loop up.
FILL = {"segment_ids": 0, "max_new_tokens": 4}
TOKENS = 16  # length of the rows for signatures that take token ids

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Request:
    """One call of a signature: its name, TF Serving's method, and the arrays to feed."""

    signature: str
    method: str  # "predict", "classify" or "regress"
    inputs: Arrays
    texts: Arrays  # what `inputs` says as texts, where it holds serialised tf.Examples


def requests(signatures: Mapping[str, Any], batch_sizes: Sequence[int]) -> Iterator[Request]:
    """One request per signature (name to SignatureDef) and batch size."""
    for name, signature in sorted(signatures.items()):
        if name.startswith("__"):
            continue  # TensorFlow's own initialiser
        method = signature.method_name.rpartition("/")[2]
        for batch in batch_sizes:
            if method in ("classify", "regress"):
                texts = {key: _texts(key, batch) for key in _features(signatures)}
                yield Request(name, method, {"inputs": examples(texts)}, texts)
            else:
                inputs = {key: _input(key, info, batch) for key, info in signature.inputs.items()}
                yield Request(name, method, inputs, {})


def write(version_folder: Path, wanted: Sequence[Request]) -> int:
    """Writes the records of one SavedModel version; returns how many. Needs the extra [serve]."""
    import tensorflow as tf

    records = [_log(request).SerializeToString() for request in wanted[:MOST_RECORDS]]
    path = version_folder / FILE
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return len(records)


def examples(texts: Arrays) -> np.ndarray:
    """Serialised tf.Example of texts, one feature per key: object [B] of bytes."""
    rows = zip(*texts.values(), strict=True)
    return np.array([_example(texts, row).SerializeToString() for row in rows], object)


def _example(names: Any, row: Sequence[bytes]) -> Any:
    import tensorflow as tf

    example = tf.train.Example()
    for name, text in zip(names, row, strict=True):
        example.features.feature[name].bytes_list.value.append(text)
    return example


def _features(signatures: Mapping[str, Any]) -> list[str]:
    """The names of the text features, which are the text inputs of `serving_default`."""
    return sorted(signatures["serving_default"].inputs)


def _texts(name: str, batch: int) -> np.ndarray:
    """Texts for an input: varied, another rotation for each name."""
    start = len(name)
    rows = [SENTENCES[(start + i) % len(SENTENCES)] for i in range(batch)]
    return np.array([row.encode() for row in rows], object)


def _input(name: str, info: Any, batch: int) -> np.ndarray:
    """Numbers or texts of the kind that a signature's input (TensorInfo) asks for."""
    import tensorflow as tf

    kind = tf.dtypes.as_dtype(info.dtype)
    if kind == tf.string:
        return _texts(name, batch)
    shape = [dim.size if dim.size > 0 else TOKENS for dim in info.tensor_shape.dim]
    return np.full([batch, *shape[1:]], FILL.get(name, 1), kind.as_numpy_dtype)


def _log(request: Request) -> Any:
    """The PredictionLog of a request."""
    import tensorflow as tf

    try:
        from tensorflow_serving.apis import prediction_log_pb2
    except ImportError:
        raise MissingExtra("tensorflow-serving-api", "serve") from None
    log = prediction_log_pb2.PredictionLog()
    sent = getattr(log, f"{request.method}_log").request
    sent.model_spec.name = "model"  # the server does not compare it
    sent.model_spec.signature_name = request.signature
    if request.method == "predict":
        for name, value in request.inputs.items():
            sent.inputs[name].CopyFrom(tf.make_tensor_proto(value))
        return log
    for row in zip(*request.texts.values(), strict=True):
        sent.input.example_list.examples.append(_example(request.texts, row))
    return log
