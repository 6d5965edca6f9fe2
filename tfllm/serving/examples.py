"""Classify and Regress: requests made of tf.train.Example, results made of labels and scores.

What TF Serving's classifier.cc and regressor.cc ask of a signature: one input `inputs` of
serialized Examples; outputs `classes` and/or `scores`, or `outputs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from tensorflow.core.example import example_pb2, feature_pb2
from tensorflow_serving.apis import classification_pb2, input_pb2, regression_pb2

from tfllm.serving.codec import decode_base64, encode_text, excerpt, is_base64
from tfllm.serving.schema import invalid
from tfllm.serving.servable import DEFAULT_SIGNATURE, Servable, Signature
from tfllm.serving.tensors import shape_text

INPUTS = "inputs"
CLASSES, SCORES = "classes", "scores"
OUTPUTS = "outputs"

CLASSIFY_METHOD = "tensorflow/serving/classify"
REGRESS_METHOD = "tensorflow/serving/regress"

INT64_MAX = 2**63 - 1

Arrays = Mapping[str, np.ndarray]


def classification_signature(servable: Servable, name: str) -> Signature:
    """Return a signature, checked to be one that classifies.

    Args:
        servable: The loaded version.
        name: The signature's name.

    Raises:
        RequestError: INVALID_ARGUMENT, it is not.
    """
    signature = _signature(servable, name, "classification")
    if len(signature.outputs) not in (1, 2):
        raise invalid(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    _one_examples_input(signature, "classification")
    if not {CLASSES, SCORES} & set(signature.outputs):
        raise invalid(
            "Expected classification signature outputs to contain at least one of "
            f'"{CLASSES}" or "{SCORES}". Signature was: {signature.definition}'
        )
    return signature


def regression_signature(servable: Servable, name: str) -> Signature:
    """Return a signature, checked to be one that regresses.

    Args:
        servable: The loaded version.
        name: The signature's name.

    Raises:
        RequestError: INVALID_ARGUMENT, it is not.
    """
    signature = _signature(servable, name, "regression")
    if len(signature.outputs) != 1:
        raise invalid("Expected one output Tensor.")
    _one_examples_input(signature, "regression")
    if OUTPUTS not in signature.outputs:
        raise invalid(f"No regression outputs found in SignatureDef: {signature.definition}")
    return signature


def serialize_input(input_proto: input_pb2.Input) -> np.ndarray:
    """Return an Input proto as serialized Examples, bytes [B]. Raises INVALID_ARGUMENT if empty."""
    kind = input_proto.WhichOneof("kind")
    if kind == "example_list":
        rows = [example.SerializeToString() for example in input_proto.example_list.examples]
    elif kind == "example_list_with_context":
        listed = input_proto.example_list_with_context
        context = listed.context.SerializeToString()  # protos joined end to end are merged
        rows = [context + example.SerializeToString() for example in listed.examples]
    else:
        rows = []
    if not rows:
        raise invalid("Input is empty.")
    array = np.empty(len(rows), object)
    array[:] = rows
    return array


def classification(outputs: Arrays, rows: int) -> classification_pb2.ClassificationResult:
    """Return the ClassificationResult of a signature's outputs.

    Args:
        outputs: `classes` string [B, C], `scores` float [B, C], or both.
        rows: Number of Examples in the request, which B must be.

    Raises:
        RequestError: The outputs have another shape or type.
    """
    classes, scores = outputs.get(CLASSES), outputs.get(SCORES)
    for name, array, kind in ((CLASSES, classes, "O"), (SCORES, scores, "f")):
        if array is None:
            continue
        if array.ndim != 2:
            raise invalid(
                "Expected Tensor shape: [batch_size num_classes] but got " + shape_text(array.shape)
            )
        if array.dtype.kind != kind or array.dtype.itemsize not in (4, 8):
            expected = "DT_STRING" if kind == "O" else "DT_FLOAT"
            raise invalid(f"Expected {name} Tensor of {expected}. Got: {array.dtype}")
        if array.shape[0] != rows:
            raise invalid(f"Expected {name} output batch size of {rows}. Got: {array.shape[0]}")
    if classes is not None and scores is not None and classes.shape[1] != scores.shape[1]:
        raise invalid(
            "Tensors class and score should match in dim_size(1). Got "
            f"{classes.shape[1]} vs. {scores.shape[1]}"
        )
    result = classification_pb2.ClassificationResult()
    for row in range(rows):
        labels = [] if classes is None else classes[row].tolist()
        values = [] if scores is None else scores[row].tolist()
        row_result = result.classifications.add()
        for column in range(max(len(labels), len(values))):
            entry = row_result.classes.add()
            if labels:
                entry.label = labels[column].decode("utf-8", "replace")
            if values:
                entry.score = values[column]
    return result


def regression(outputs: Arrays, rows: int) -> regression_pb2.RegressionResult:
    """Return the RegressionResult of a signature's outputs.

    Args:
        outputs: `outputs` float [B] or [B, 1].
        rows: Number of Examples in the request, which B must be.

    Raises:
        RequestError: The outputs have another shape or type.
    """
    values = outputs[OUTPUTS]
    if not (values.ndim == 1 or (values.ndim == 2 and values.shape[1] == 1)):
        raise invalid(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            + shape_text(values.shape)
        )
    if values.shape[0] != rows:
        raise invalid(
            f"Input batch size did not match output batch size: {rows} vs. {values.shape[0]}"
        )
    if values.dtype != np.float32:
        raise invalid(f"Expected output Tensor of DT_FLOAT.  Got: {values.dtype}")
    result = regression_pb2.RegressionResult()
    for value in values.ravel().tolist():
        result.regressions.add().value = value
    return result


def read_examples(document: Mapping[str, Any]) -> input_pb2.Input:
    """Return the Input proto of a REST body: `examples`, and `context` that all of them share."""
    proto = input_pb2.Input()
    has_context = "context" in document
    if has_context:
        _fill_example(document["context"], proto.example_list_with_context.context)
    start = f"JSON Value: {excerpt(document)} "
    if "examples" not in document:
        raise invalid(
            f"{start}When method is classify, key 'examples' is expected and was not found"
        )
    examples = document["examples"]
    if type(examples) is not list:
        raise invalid(f"{start}Expecting 'examples' value to be an list/array")
    if not examples:
        raise invalid(f"{start}'examples' value is an empty array")
    into = proto.example_list_with_context if has_context else proto.example_list
    for example in examples:
        _fill_example(example, into.examples.add())
    return proto


def _signature(servable: Servable, name: str, kind: str) -> Signature:
    name = name or DEFAULT_SIGNATURE
    signature = servable.signatures.get(name)
    if signature is None:
        raise invalid(f"No signature was found with the name: {name}")
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    return signature


def _one_examples_input(signature: Signature, kind: str) -> None:
    if INPUTS not in signature.inputs:
        raise invalid(f"No {kind} inputs found in SignatureDef: {signature.definition}")


def _fill_example(value: object, example: example_pb2.Example) -> None:
    if type(value) is not dict:
        kind = {list: "Array", str: "String", bool: "Bool", type(None): "Null"}
        raise invalid(f"Example must be JSON object but got JSON {kind.get(type(value), 'Number')}")
    for name, content in value.items():
        feature = example.features.feature[name]
        for item in content if type(content) is list else [content]:
            _add_value(name, item, feature)


def _add_value(name: str, value: Any, feature: feature_pb2.Feature) -> None:
    if type(value) in (bool, int):
        if type(value) is int and not -INT64_MAX - 1 <= value <= INT64_MAX:
            raise invalid(f"Feature: {name} has uint64_t element. Only int64_t is supported.")
        _same_kind(name, feature, "int64_list").value.append(int(value))
    elif type(value) is float:
        try:
            _same_kind(name, feature, "float_list").value.append(value)
        except (OverflowError, ValueError):
            raise invalid(f"Feature: {name} has a number that no float can hold.") from None
    elif type(value) is str:
        _same_kind(name, feature, "bytes_list").value.append(encode_text(value))
    elif is_base64(value):
        _same_kind(name, feature, "bytes_list").value.append(decode_base64(value))
    else:
        kind = "Array" if type(value) is list else "Object" if type(value) is dict else "Null"
        raise invalid(f"Feature: {name} has element with unexpected JSON type: {kind}")


def _same_kind(name: str, feature: feature_pb2.Feature, kind: Any) -> Any:
    present = feature.WhichOneof("kind")
    if present not in (None, kind):
        text = present.removesuffix("_list")
        raise invalid(f"Unexpected element type in feature: {name} expecting type: {text}")
    return getattr(feature, kind)
