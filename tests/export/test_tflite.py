"""TFLite files: operations, weights, numbers in every quantization; MediaPipe's own package."""

import numpy as np
import pytest

from tests.helpers.encoders import make
from tfllm.export import (
    artifact,
    export,
    flatbuffer,
    load_profile,
    tflite,
    tflite_activation_scaling,
    tflite_converter,
)
from tfllm.export.flatbuffer import TFLITE_FILE
from tfllm.export.verify import sample_texts
from tfllm.runtimes.checkpoint import open_checkpoint
from tfllm.runtimes.opening import open_model

QUICK = ("tflite-float32", "tflite-int8-full", "tflite-text", "mediapipe")
NAMES = ["tflite-float16", "tflite-int8"]
NAMES = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES)]
EXAMPLES = [{"text": text} for text in sample_texts.ASCII_SENTENCES[:6]]


@pytest.mark.parametrize("name", NAMES)
def test_every_profile_passes_and_answers(name, exported, classifier):
    artifact = exported(name)
    assert artifact.failed == []
    said = {check.name: check.value for check in artifact.checks}
    assert said["fixed length"] == "32 tokens (the task's; max_length sets another)"
    assert {"model.tflite", "tfllm.json", "labels.txt", "vocab.txt"} <= set(artifact.files)
    answers = open_model(artifact.path).predict(EXAMPLES)
    expected = open_checkpoint(classifier).predict(EXAMPLES)
    largest = max(
        abs(a["scores"][label] - b["scores"][label])
        for a, b in zip(answers, expected, strict=True)
        for label in a["scores"]
    )
    assert largest < (0.2 if "int8" in name else 1e-2 if "16" in name else 1e-5)


def test_products_are_int8_in_full_int8(exported):
    content = (exported("tflite-int8-full").path / TFLITE_FILE).read_bytes()
    counts = flatbuffer.count_operations(content).builtin
    kinds = {name for name in counts if name.startswith(("FULLY_CONNECTED", "BATCH_MATMUL"))}
    assert kinds == {"FULLY_CONNECTED:INT8", "BATCH_MATMUL:INT8"}


def test_inputs_and_outputs_are_not_quantized(exported):
    graph = flatbuffer.parse(
        (exported("tflite-int8-full").path / TFLITE_FILE).read_bytes()
    ).subgraphs[0]
    from tensorflow.lite.python import schema_py_generated as schema

    assert {graph.tensors[i].type for i in graph.inputs} == {schema.TensorType.INT32}
    assert {graph.tensors[i].type for i in graph.outputs} == {schema.TensorType.FLOAT32}


@pytest.mark.slow
def test_several_shapes_share_their_weights(classifier, tmp_path):
    chosen = load_profile("tflite-float32", ["extra_lengths=[8,16]", "batch_sizes=[1,4]"])
    artifact = export(classifier, chosen, tmp_path / "many")
    content = (artifact.path / TFLITE_FILE).read_bytes()
    assert len(flatbuffer.parse(content).signatureDefs) == 6
    one = flatbuffer.weight_bytes((export_one(classifier, tmp_path) / TFLITE_FILE).read_bytes())
    assert flatbuffer.weight_bytes(content) < 1.1 * one


def export_one(checkpoint, tmp_path):
    return export(checkpoint, load_profile("tflite-float32"), tmp_path / "one").path


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["embedding", "token_classification", "question_answering"])
def test_other_tasks(kind, tmp_path):
    artifact = export(make(kind), load_profile("tflite-float32"), tmp_path / kind)
    assert artifact.failed == []


@pytest.mark.slow
def test_a_model_without_token_types_keeps_mediapipes_third_input(tmp_path):
    checkpoint = make("classification", {"num_segments": 0, "variant": "distilbert"})
    artifact = export(checkpoint, load_profile("mediapipe"), tmp_path / "phone")
    graph = flatbuffer.parse((artifact.path / TFLITE_FILE).read_bytes()).subgraphs[0]
    assert len(graph.inputs) == 3


def test_scaled_channels_are_the_same_function(classifier):
    model = classifier.model
    rows = tflite.calibration_inputs(classifier, load_profile("tflite-int8-full"), 1, 32)
    before = np.asarray(model(rows[0], training=False))
    layer = next(
        one for one in tflite_activation_scaling._linear_dense_layers(model) if one.name == "down"
    )
    kernel = layer.kernel.numpy()
    try:
        layer.kernel.assign(kernel * np.r_[np.full(31, 1.0), 50.0])  # one channel far wider
        wanted = np.asarray(model(rows[0], training=False))
        with tflite_activation_scaling.ScaledChannels(model, rows) as scaled:
            assert layer in scaled.layers
            found = np.asarray(model(rows[0], training=False))
        np.testing.assert_allclose(found, wanted, atol=1e-4)
    finally:
        layer.kernel.assign(kernel)
    np.testing.assert_array_equal(np.asarray(model(rows[0], training=False)), before)


def test_ranges_are_those_that_tensors_have(classifier):
    """The converter's own are wider wherever two tensors share their memory."""
    rows = tflite.calibration_inputs(classifier, load_profile("tflite-int8-full"), 1, 32)[:4]
    function = tflite_converter.concrete_function(classifier.model, 1, 32, "logits")
    plain = tflite_converter.convert(
        {"f": function}, artifact.variables_module(classifier.model), "float32"
    )
    model = flatbuffer.parse(plain)
    number = model.subgraphs[0].outputs[0]
    from tensorflow.lite.python import schema_py_generated as schema

    quantization = schema.QuantizationParametersT()
    quantization.min, quantization.max = [-1000.0], [1000.0]
    model.subgraphs[0].tensors[number].quantization = quantization
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    fixed = flatbuffer.parse(
        tflite_activation_scaling.measure_ranges(bytes(builder.Output()), rows)
    )
    found = fixed.subgraphs[0].tensors[number].quantization
    outputs = np.array([np.asarray(classifier.model(row, training=False)) for row in rows])
    np.testing.assert_allclose([found.min[0], found.max[0]], [outputs.min(), outputs.max()], 1e-4)


def test_labels_and_vocabulary_lie_inside_mediapipes_file(exported, classifier):
    inside = flatbuffer.associated_files(exported("mediapipe").path / TFLITE_FILE)
    assert inside["labels.txt"] == b"bad\ngood\nneither\n"
    assert inside["vocab.txt"].decode().splitlines() == classifier.tokenizer.vocabulary


def test_the_difference_on_other_than_ascii_text_is_stated(exported):
    name = "non-ASCII texts tokenized differently"
    (stated,) = [c for c in exported("mediapipe").checks if c.name == name]
    assert "sentences" in stated.value


@pytest.mark.edge
@pytest.mark.parametrize("kind", ["classification", "embedding"])
def test_mediapipes_package_gives_the_checkpoints_numbers(kind, tmp_path):
    pytest.importorskip("mediapipe")
    from tfllm.export import mediapipe as mediapipe_target
    from tfllm.export.verify import mediapipe_package

    checkpoint = make(kind)
    artifact = export(checkpoint, load_profile("mediapipe"), tmp_path / kind)
    texts = list(sample_texts.ASCII_SENTENCES)
    reference = open_checkpoint(checkpoint)
    wanted = mediapipe_package.reference_outputs(reference, texts)
    found = mediapipe_package.package_outputs(artifact.path / TFLITE_FILE, checkpoint.task, texts)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert mediapipe_target.INPUTS == ("token_ids", "padding_mask", "segment_ids")
