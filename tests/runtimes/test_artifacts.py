"""Artifacts that do not fit are named; fixed shapes and quantized numbers are met."""

import json

import numpy as np
import pytest

from tfllm.errors import ArtifactError, CheckpointError
from tfllm.runtimes.opening import open_model, version_folder
from tfllm.runtimes.tflite import Signature, call_signatures, from_stored, to_stored

FLOAT = {"dtype": np.float32, "quantization": (0.0, 0)}


def signature(batch, length, log):
    """Sums the ids of each row, and notes the shape it was called with."""

    def run(token_ids, padding_mask):
        assert token_ids.shape == padding_mask.shape == (batch, length)
        log.append((batch, length))
        return {"logits": (token_ids * padding_mask).sum(1, keepdims=True).astype(np.float32)}

    names = ("token_ids", "padding_mask")
    inputs = {name: {"dtype": np.int32, "quantization": (0.0, 0)} for name in names}
    return Signature(run, inputs, "logits", FLOAT, batch, length)


@pytest.mark.parametrize(
    ("rows", "width", "called"),
    [
        (1, 3, [(1, 4)]),
        (5, 4, [(1, 4)] * 5),
        (7, 5, [(4, 8), (1, 8), (1, 8), (1, 8)]),
        (4, 8, [(4, 8)]),
        (2, 9, [(3, 16)]),  # filled up with a copy of the last row
        (7, 16, [(3, 16)] * 3),
    ],
)
def test_rows_go_through_the_fitting_shape(rows, width, called):
    log = []
    shapes = [(3, 16), (1, 4), (1, 8), (4, 8)]
    ids = np.random.default_rng(0).integers(1, 9, (rows, width)).astype(np.int32)
    inputs = {"token_ids": ids, "segment_ids": ids * 0, "padding_mask": np.ones_like(ids)}
    output = call_signatures([signature(*shape, log) for shape in shapes], inputs)
    assert log == called
    assert output.shape == (rows, 1)
    assert output[:, 0].tolist() == ids.sum(1).tolist()


def test_quantized_numbers():
    details = {"dtype": np.int8, "quantization": (0.5, -3)}
    values = np.array([0.0, 1.0, -2.25, 1000.0], np.float32)
    stored = to_stored(values, details)
    assert (stored.dtype, stored.tolist()) == (np.int8, [-3, -1, -7, 127])
    back = from_stored(stored, details)
    assert (back.dtype, back.tolist()) == (np.float32, [0.0, 1.0, -2.0, 65.0])
    assert to_stored(np.array([7], np.int64), {**FLOAT, "dtype": np.int32}).dtype == np.int32


def described(folder, task=None):
    task = task or {"kind": "classification", "labels": ["a", "b"]}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tfllm.json").write_text(json.dumps({"family": "bert", "task": task}))


def test_a_tflite_file_alone(tmp_path):
    (tmp_path / "model.tflite").write_bytes(b"x")
    for source in (tmp_path, tmp_path / "model.tflite"):
        with pytest.raises(ArtifactError, match="There is no .*tfllm.json"):
            open_model(source)
    with pytest.raises(ArtifactError, match="There is no file"):
        open_model(tmp_path / "none.tflite")


def test_a_file_that_is_no_tflite(tmp_path):
    described(tmp_path)
    (tmp_path / "model.tflite").write_bytes(b"not a flatbuffer at all")
    with pytest.raises(ArtifactError, match="is not a TFLite file that ai-edge-litert can run"):
        open_model(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "the key 'task' is missing"),
        ('{"task": {"kind": "sorting"}}', "unknown task 'sorting'"),
        ('{"task": {"kind": "embedding", "odd": 1}}', "unknown key 'odd'"),
    ],
)
def test_a_broken_description(tmp_path, content, said):
    (tmp_path / "model.tflite").write_bytes(b"x")
    (tmp_path / "tfllm.json").write_text(content)
    with pytest.raises(ArtifactError, match=said) as error:
        open_model(tmp_path)
    assert "tfllm.json" in str(error.value) and "\n" not in str(error.value)


def test_the_highest_version_counts(tmp_path):
    assert version_folder(tmp_path) is None
    for version in ("2", "10", "next"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "saved_model.pb").write_bytes(b"")
    (tmp_path / "11").mkdir()  # not written yet
    assert version_folder(tmp_path) == tmp_path / "10"
    assert version_folder(tmp_path / "2") == tmp_path / "2"
    assert version_folder(tmp_path / "none") is None


def test_a_savedmodel_of_another_program(tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"")
    with pytest.raises(ArtifactError, match="There is no .*assets/tfllm.json"):
        open_model(tmp_path)


def test_a_broken_savedmodel(tmp_path):
    described(tmp_path / "1" / "assets")
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"\x0a\xff")
    with pytest.raises(ArtifactError, match="is not a complete SavedModel"):
        open_model(tmp_path)


def test_a_folder_with_nothing(tmp_path):
    with pytest.raises(CheckpointError):
        open_model(tmp_path)
    with pytest.raises(CheckpointError, match="There is no"):
        open_model(tmp_path / "none")
