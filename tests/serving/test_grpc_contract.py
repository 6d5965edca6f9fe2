"""The gRPC contract through the official stubs."""

from types import SimpleNamespace

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from tfllm.serving.tensors import FIELDS, from_proto, to_proto

SECONDS = 30
INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture(scope="module")
def channel(running):
    with grpc.insecure_channel(running.address) as channel:
        yield channel


@pytest.fixture(scope="module")
def predictions(channel):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture(scope="module")
def models(channel):
    return model_service_pb2_grpc.ModelServiceStub(channel)


def request(model="toy", signature="", version=None, label=None, outputs=(), **inputs):
    made = predict_pb2.PredictRequest(output_filter=outputs)
    made.model_spec.name, made.model_spec.signature_name = model, signature
    if version is not None:
        made.model_spec.version.value = version
    if label is not None:
        made.model_spec.version_label = label
    for name, value in inputs.items():
        proto = value if hasattr(value, "tensor_shape") else tf.make_tensor_proto(value)
        made.inputs[name].CopyFrom(proto)
    return made


def refused(call, message, *, code=INVALID):
    with pytest.raises(grpc.RpcError) as error:
        call()
    assert error.value.code() == code
    assert message in error.value.details()


def test_predict(predictions):
    response = predictions.Predict(request(text=["good", "bad"]), SECONDS)
    assert response.model_spec.name == "toy"
    assert response.model_spec.signature_name == "serving_default"
    assert response.model_spec.version.value == 2
    assert set(response.outputs) == {"label", "scores", "version"}
    scores = response.outputs["scores"]
    assert not scores.tensor_content and len(scores.float_val) == 6  # typed fields
    assert tf.make_ndarray(scores).shape == (2, 3)
    assert set(response.outputs["label"].string_val) <= {b"bad", b"fine", b"good"}


@pytest.mark.parametrize(
    ("asked", "answers"), [({"version": 1}, 1), ({"label": "stable"}, 1), ({"label": "canary"}, 2)]
)
def test_versions_and_labels(predictions, asked, answers):
    response = predictions.Predict(request(text=["a"], **asked), SECONDS)
    assert list(response.outputs["version"].int64_val) == [answers]


def test_output_filter(predictions):
    response = predictions.Predict(request(text=["a"], outputs=["label"]), SECONDS)
    assert set(response.outputs) == {"label"}


@pytest.mark.parametrize(
    ("asked", "message", "code"),
    [
        ({"signature": "x"}, 'Serving signature key "x" not found.', "FAILED_PRECONDITION"),
        ({"model": ""}, "ModelSpec has no name specified.", "INVALID_ARGUMENT"),
        ({"model": "none"}, "Servable not found for request: Latest(none)", "NOT_FOUND"),
        ({"version": 9}, "Servable not found for request: Specific(toy, 9)", "NOT_FOUND"),
        ({"label": "x"}, "Unrecognized servable version label: x", "INVALID_ARGUMENT"),
        ({"outputs": ["x"]}, "output tensor alias not found in signature: x", "INVALID_ARGUMENT"),
        ({"outputs": ["label", "label"]}, "duplicate output tensor alias", "INVALID_ARGUMENT"),
        ({"more": ["a"]}, "Sent extra: {more}. Missing but required: {}.", "INVALID_ARGUMENT"),
        ({"text": [1.0]}, "is of type float, and the signature takes string", "INVALID_ARGUMENT"),
        ({"text": "a"}, "has shape [], and the signature takes [?]", "INVALID_ARGUMENT"),
        ({"text": ["a"] * 257}, "257 rows", "INVALID_ARGUMENT"),
        ({"text": ["a" * 100_001]}, "100001 characters", "INVALID_ARGUMENT"),
        ({"text": ["日" * 100_001]}, "100001 characters", "INVALID_ARGUMENT"),
    ],
)
def test_refusals(predictions, asked, message, code):
    asked = {"text": ["a"], **asked}
    refused(
        lambda: predictions.Predict(request(**asked), SECONDS),
        message,
        code=grpc.StatusCode[code],
    )


def test_missing_input(predictions):
    refused(
        lambda: predictions.Predict(request(signature="pair", text=["a"]), SECONDS),
        "Missing but required: {text_pair}.",
    )


def test_missing_spec(predictions, models):
    refused(lambda: predictions.Predict(predict_pb2.PredictRequest(), SECONDS), "Missing ModelSpec")
    status = get_model_status_pb2.GetModelStatusRequest()
    refused(lambda: models.GetModelStatus(status, SECONDS), "Missing ModelSpec")


def proto(dtype, sizes, **values):
    made = tf.make_tensor_proto(0)
    made.Clear()
    made.dtype = dtype
    for size in sizes:
        made.tensor_shape.dim.add().size = size
    for name, value in values.items():
        if name == "content":
            made.tensor_content = value
        else:
            getattr(made, name).extend(value)
    return made


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (proto(1, [3], content=b"\0" * 8), "8 bytes of tensor_content"),
        (proto(1, [1], float_val=[1, 2, 3]), "3 values do not fill"),
        (proto(1, [-1], float_val=[1]), "without negative sizes"),
        (proto(1, [2**40]), "is larger than"),
        (proto(1, [2**40, 2**40], content=b"\0"), "is larger than"),
        (proto(99, [1]), "cannot be read"),
        (proto(8, [1]), "cannot be read"),
        (proto(7, [2], content=b"\x01a"), "tensor_content"),
        (proto(1, [1] * 65, float_val=[1]), "65 dimensions; 64 is the maximum"),
        (proto(1, [1] * 300, float_val=[1]), "300 dimensions"),
        (proto(1, [0, 2**62]), "is larger than"),
        (proto(1, [2**62, 0, 2**62]), "is larger than"),
        (proto(1, [2**63 - 1] * 3), "is larger than"),
        (proto(7, [1], content=b"\x80" * 1_000_000), "more than 64 bits"),
        (proto(7, [1], content=b"\xff" * 9 + b"\x01" + b"a"), "tensor_content"),
        (proto(101, [1]), "cannot be read"),
        (proto(11, [1]), "cannot be read"),
        (proto(21, [1]), "cannot be read"),
        (proto(19, [1], half_val=[-1, 2]), "2 values do not fill"),
        (proto(19, [2], half_val=[70_000, -1]), "is of type half"),
        (proto(14, [1], half_val=[-1]), "is of type bfloat16"),
        (proto(6, [1], int_val=[300]), "is of type int8"),
    ],
)
def test_malformed_tensors(predictions, tensor, message):
    refused(lambda: predictions.Predict(request("kinds", x=tensor), SECONDS), message)


def test_a_short_tensor_repeats_its_last_value(predictions):
    response = predictions.Predict(request("kinds", x=proto(1, [3], float_val=[2.0])), SECONDS)
    assert list(response.outputs["y"].float_val) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_tensors_there_and_back(name):
    dtype = tf.dtypes.as_dtype({"float": "float32", "double": "float64"}.get(name, name))
    if name == "string":
        array = np.array([[b"a", b""], [b"\xff\0", b"b" * 300]], object)
    else:
        array = np.array([[0, 1], [2, 3]]).astype(dtype.as_numpy_dtype)
    back = from_proto(to_proto(array))
    assert back.dtype == array.dtype
    assert np.array_equal(back, array)
    assert np.array_equal(from_proto(tf.make_tensor_proto(array)), array)
    assert np.array_equal(tf.make_ndarray(to_proto(array)), array)


def test_bytes_are_no_text(predictions):
    """An image is not measured in characters."""
    image = b"\x89PNG\xff" * 60_000
    response = predictions.Predict(request("kinds", "raw", raw=[image]), SECONDS)
    assert response.outputs["same_bytes"].string_val[0] == image


def test_sparse_inputs_are_refused_by_name():
    from google.protobuf import text_format
    from tensorflow.core.protobuf import meta_graph_pb2

    from tfllm.errors import InputError
    from tfllm.serving.servable import Signature

    definition = text_format.Parse(
        """
        inputs { key: "s" value { dtype: DT_FLOAT coo_sparse { values_tensor_name: "v:0" } } }
        outputs { key: "y" value { dtype: DT_FLOAT name: "y:0" } }
        """,
        meta_graph_pb2.SignatureDef(),
    )
    runner = SimpleNamespace(handle=lambda tensor: {"y:0": "handle"}[tensor])
    signature = Signature("s", definition, runner)
    with pytest.raises(InputError, match="'s' is no dense tensor .coo_sparse."):
        signature.check({"s": np.zeros(1, np.float32)})


def test_strings_in_tensor_content():
    made = proto(7, [2], content=bytes([1, 0x80 | 44, 2]) + b"a" + b"b" * 300)
    assert from_proto(made).tolist() == [b"a", b"b" * 300]


def examples(made, *texts, signature):
    made.model_spec.name, made.model_spec.signature_name = "toy", signature
    for text in texts:
        example = made.input.example_list.examples.add()
        example.features.feature["text"].bytes_list.value.append(text)
    return made


def test_classify_and_regress(predictions):
    asked = examples(classification_pb2.ClassificationRequest(), b"x", b"y", signature="classify")
    response = predictions.Classify(asked, SECONDS)
    assert response.model_spec.version.value == 2
    rows = response.result.classifications
    assert [[c.label for c in row.classes] for row in rows] == [["bad", "fine", "good"]] * 2
    assert all(abs(sum(c.score for c in row.classes) - 1) < 1e-6 for row in rows)
    asked = examples(regression_pb2.RegressionRequest(), b"abc", b"", signature="regress")
    assert [r.value for r in predictions.Regress(asked, SECONDS).result.regressions] == [3.0, 0.0]


def test_examples_with_context(predictions):
    asked = examples(regression_pb2.RegressionRequest(), signature="regress")
    listed = asked.input.example_list_with_context
    listed.context.features.feature["text"].bytes_list.value.append(b"abcdef")
    listed.examples.add()
    assert [r.value for r in predictions.Regress(asked, SECONDS).result.regressions] == [6.0]


def test_empty_input(predictions):
    asked = examples(classification_pb2.ClassificationRequest(), signature="classify")
    refused(lambda: predictions.Classify(asked, SECONDS), "Input is empty.")


def several(*tasks):
    made = inference_pb2.MultiInferenceRequest()
    for model, signature, method in tasks:
        task = made.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name, task.model_spec.signature_name = model, signature
    example = made.input.example_list.examples.add()
    example.features.feature["text"].bytes_list.value.append(b"abc")
    return made


def test_multi_inference(predictions):
    asked = several(("toy", "classify", "classify"), ("toy", "regress", "regress"))
    response = predictions.MultiInference(asked, SECONDS)
    first, second = response.results
    assert len(first.classification_result.classifications[0].classes) == 3
    assert second.regression_result.regressions[0].value == 3.0
    assert second.model_spec.signature_name == "regress"


@pytest.mark.parametrize(
    ("tasks", "message", "code"),
    [
        ([("toy", "regress", "regress"), ("kinds", "x", "regress")], "same model name", INVALID),
        ([("toy", "regress", "regress")] * 2, "Duplicate evaluation of signature", INVALID),
        ([("toy", "regress", "predict")], "Unsupported signature", grpc.StatusCode.UNIMPLEMENTED),
        ([], "ModelSpec has no name", INVALID),
    ],
)
def test_multi_inference_refusals(predictions, tasks, message, code):
    refused(lambda: predictions.MultiInference(several(*tasks), SECONDS), message, code=code)


def test_metadata(predictions):
    asked = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    asked.model_spec.name = "toy"
    response = predictions.GetModelMetadata(asked, SECONDS)
    assert response.model_spec.version.value == 2
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert signatures.signature_def["serving_default"].inputs["text"].dtype == 7
    asked.metadata_field[:] = ["other"]
    refused(lambda: predictions.GetModelMetadata(asked, SECONDS), "other is not supported")
    asked.metadata_field[:] = []
    refused(lambda: predictions.GetModelMetadata(asked, SECONDS), "at least one metadata_field")


def test_status(models):
    asked = get_model_status_pb2.GetModelStatusRequest()
    asked.model_spec.name = "toy"
    response = models.GetModelStatus(asked, SECONDS)
    states = [(one.version, one.state) for one in response.model_version_status]
    assert states == [(2, 30), (1, 30)]
    asked.model_spec.version.value = 7
    refused(
        lambda: models.GetModelStatus(asked, SECONDS),
        "Could not find version 7",
        code=grpc.StatusCode.NOT_FOUND,
    )


def test_a_message_above_the_limit(predictions):
    large = request(text=["a" * (5 << 20)])
    refused(
        lambda: predictions.Predict(large, SECONDS),
        "larger than max",
        code=grpc.StatusCode.RESOURCE_EXHAUSTED,
    )


def test_only_a_list_of_models_can_be_loaded(models):
    empty = model_management_pb2.ReloadConfigRequest()
    refused(
        lambda: models.HandleReloadConfigRequest(empty, SECONDS),
        "Only ModelConfigList is currently supported",
    )


def test_health(channel):
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", "PredictionService", "ModelService"):
        asked = health_pb2.HealthCheckRequest(service=service)
        assert stub.Check(asked, timeout=SECONDS).status == 1
