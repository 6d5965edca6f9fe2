"""SavedModel versions: files, weights, warm-up; other processes, languages and TensorFlows."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.export.c_program import printed
from tests.helpers.encoders import TASKS, make
from tfllm.errors import CheckFailed, SettingError
from tfllm.export import export, load_profile, op_compatibility, savedmodel, warmup_requests
from tfllm.export.verify import common
from tfllm.runtimes.checkpoint import open_checkpoint
from tfllm.runtimes.opening import open_model

TEXTS = ["the film was good", "Who built the lighthouse?", "café, naïve!", ""]
TOLERANCE = 1e-5  # the same graph in another process and order
BFLOAT16_TOLERANCE = 0.02  # of a probability: 8 bits of mantissa through two layers


@pytest.fixture(scope="module")
def version(exported):
    return exported("savedmodel").path


@pytest.fixture(scope="module")
def scores(classifier):
    """What the checkpoint says to TEXTS: float [4, 3], in the order of the labels."""
    answers = open_checkpoint(classifier).predict([{"text": text} for text in TEXTS])
    return np.array([list(answer["scores"].values()) for answer in answers])


def test_the_files_are_where_a_server_looks(exported):
    artifact = exported("savedmodel")
    assert artifact.path.name == "1"
    for name in (
        "saved_model.pb",
        "assets/labels.txt",
        "assets/vocab.txt",
        str(warmup_requests.REQUESTS_FILE),
    ):
        assert name in artifact.files
    described = json.loads((artifact.path / "assets" / "tfllm.json").read_text())
    assert described["task"]["labels"] == ["bad", "good", "neither"]
    assert all(check["passed"] for check in described["checks"])
    assert (artifact.path / "assets" / "labels.txt").read_text() == "bad\ngood\nneither\n"


def test_weights_are_stored_once(classifier, version, tmp_path):
    kept = sum(weight.numpy().size for weight in classifier.model.weights)
    numbers, size = savedmodel.stored_size(version)
    assert kept <= numbers <= kept * savedmodel.MAX_STORED_RATIO
    assert size == pytest.approx(4 * numbers, rel=0.01)
    # The check can fail: Keras' own export stores every weight twice.
    archive = tf.Module()
    archive.once = [weight._value for weight in classifier.model.weights]
    archive.twice = [tf.Variable(variable) for variable in archive.once]
    tf.saved_model.save(archive, str(tmp_path))
    assert savedmodel.stored_size(tmp_path)[0] > kept * savedmodel.MAX_STORED_RATIO


@pytest.mark.slow
def test_bfloat16_takes_half_the_room_and_gives_the_same_labels(classifier, scores, tmp_path):
    artifact = export(classifier, load_profile("savedmodel-bfloat16"), tmp_path / "half")
    assert not artifact.failed
    numbers, size = savedmodel.stored_size(artifact.path)
    assert size < 2.1 * numbers
    predictor = open_model(artifact.path)
    answers = predictor.predict([{"text": text} for text in TEXTS])
    found = np.array([list(answer["scores"].values()) for answer in answers])
    np.testing.assert_allclose(found, scores, atol=BFLOAT16_TOLERANCE)
    assert (found != scores).any()  # it was bfloat16 that multiplied


def test_a_savedmodel_has_no_integers(classifier, tmp_path):
    with pytest.raises(SettingError, match=r"float32 or bfloat16, not int8.*tflite"):
        export(classifier, load_profile("savedmodel", ["quantization=int8"]), tmp_path / "int8")
    assert not (tmp_path / "int8").exists()


def test_methods_are_those_of_tf_serving(version):
    methods = {name: one.method_name for name, one in savedmodel.signature_defs(version).items()}
    assert methods["serving_default"] == methods["tokens"] == "tensorflow/serving/predict"
    assert methods["classify"] == "tensorflow/serving/classify"


def test_warm_up_records_are_requests_of_every_signature(version):
    from tensorflow_serving.apis import prediction_log_pb2

    records = list(
        tf.data.TFRecordDataset(str(version / warmup_requests.REQUESTS_FILE)).as_numpy_iterator()
    )
    logs = [prediction_log_pb2.PredictionLog.FromString(record) for record in records]
    kinds = [log.WhichOneof("log_type") for log in logs]
    assert len(logs) == 9 and kinds.count("classify_log") == 3
    sizes = [
        log.predict_log.request.inputs["text"].tensor_shape.dim[0].size
        for log in logs
        if log.predict_log.request.model_spec.signature_name == "serving_default"
    ]
    assert sorted(sizes) == [1, 8, 32]


def test_a_fresh_process_gives_the_same_numbers(version, scores):
    requests = [{"signature": "serving_default", "inputs": {"text": TEXTS}}]
    result = common.run_savedmodel(version, requests)
    assert result["foreign"] == []
    np.testing.assert_allclose(result["outputs"][0]["scores"], scores, atol=TOLERANCE)


def test_an_input_that_a_signature_has_not_is_named(version):
    requests = [{"signature": "serving_default", "inputs": {"text": ["a"], "other": ["b"]}}]
    with pytest.raises(CheckFailed, match="serving_default has no input other, only text"):
        common.run_savedmodel(version, requests)


def test_compilation_by_xla_would_be_refused(tmp_path):
    """The switch that the fresh process turns is the server's: a compiled signature fails."""
    module = tf.Module()
    module.call = tf.function(
        lambda x: {"y": x + 1},
        jit_compile=True,
        input_signature=[tf.TensorSpec([None], tf.float32, "x")],
    )
    tf.saved_model.save(module, str(tmp_path), signatures={"serving_default": module.call})
    with pytest.raises(CheckFailed, match="XLA"):
        common.run_savedmodel(tmp_path, [{"signature": "serving_default", "inputs": {"x": [1.0]}}])


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("gcc"), reason="compiles a C program: needs gcc")
def test_a_c_program_gives_the_same_numbers(version, scores, tmp_path):
    import tensorflow_text

    operations = Path(tensorflow_text.__file__).parent / "python" / "ops"
    names = ("_fast_wordpiece_tokenizer.so", "_fast_bert_normalizer.so", "_normalize_ops.so")
    lines = printed(
        tmp_path, version, "text", "scores", [operations / name for name in names], TEXTS
    )
    found = np.array([line.split() for line in lines], float)
    np.testing.assert_allclose(found, scores, atol=TOLERANCE)


@pytest.mark.parametrize("kind", [kind for kind in TASKS if kind != "classification"])
@pytest.mark.slow
def test_every_task_is_served(kind, tmp_path):
    artifact = export(make(kind), load_profile("savedmodel"), tmp_path / kind)
    assert artifact.failed == []


@pytest.mark.slow
def test_it_loads_under_tf_servings_own_tensorflow(version, scores, tmp_path_factory):
    """tensorflow 2.20.0 with tensorflow-text 2.20, what TF Serving 2.20 is built with."""
    python = os.environ.get("TFLLM_TF220_PYTHON") or _environment(tmp_path_factory)
    requests = [{"signature": "serving_default", "inputs": {"text": TEXTS}}]
    warm = warmup_requests.build_requests(savedmodel.signature_defs(version), (1, 8))
    requests += [{"signature": one.signature, "inputs": common.as_json(one.inputs)} for one in warm]
    result = common.run_savedmodel(version, requests, python=python)
    assert result["versions"]["tensorflow"].startswith("2.20")
    assert result["versions"]["tensorflow_text"].startswith("2.20")
    np.testing.assert_allclose(result["outputs"][0]["scores"], scores, atol=TOLERANCE)


def _environment(tmp_path_factory):
    """A virtual environment with the two packages; a skip where they cannot be fetched."""
    folder = tmp_path_factory.getbasetemp() / "tensorflow-2.20"
    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    packages = ["tensorflow==2.20.0", "tensorflow-text==2.20.*"]
    done = subprocess.run([python, "-m", "pip", "install", "-q", *packages], capture_output=True)
    if done.returncode:
        pytest.skip("tensorflow 2.20.0 cannot be installed here; name one in TFLLM_TF220_PYTHON")
    return str(python)


def test_the_next_export_is_the_next_version(tmp_path):
    assert savedmodel.artifact_path(tmp_path / "new").name == "1"
    for name in ("2", "9", "notes", "007"):
        (tmp_path / name).mkdir()
    assert savedmodel.artifact_path(tmp_path).name == "10"


def test_the_newest_server_knows_what_is_served(version):
    assert op_compatibility.check_graph(version).first_version is not None
