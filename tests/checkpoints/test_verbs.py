"""tfllm convert and tfllm inspect."""

import json
import subprocess
import sys

import pytest

from tfllm.cli.convert import convert
from tfllm.cli.inspect import inspect
from tfllm.errors import ArtifactError, CheckpointError, StorageError


def inspected(model, capsys) -> dict:
    inspect(str(model), json=True)
    return json.loads(capsys.readouterr().out)


def test_convert_there_and_back(golden, tmp_path, capsys):
    directory, _, _ = golden("distilbert", "token_classification")
    convert(str(directory), str(tmp_path / "ours"))
    convert(str(tmp_path / "ours"), str(tmp_path / "back"), "huggingface")
    assert capsys.readouterr().out.split() == [str(tmp_path / "ours"), str(tmp_path / "back")]
    source, ours = inspected(directory, capsys), inspected(tmp_path / "ours", capsys)
    assert (source["form"], ours["form"]) == ("Hugging Face directory", "tfllm checkpoint")
    for name in ("family", "task", "shape", "parameters", "vocabulary"):
        assert source[name] == ours[name], name
    assert inspected(tmp_path / "back", capsys)["parameters"] == source["parameters"]
    assert ours["task"]["labels"] == ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    assert "model.safetensors" in ours["files"]


def test_convert_refuses_an_output_that_exists(golden, tmp_path):
    directory, _, _ = golden("bert", "embedding")
    before = {path: path.read_bytes() for path in directory.iterdir()}
    for to in ("tfllm", "huggingface"):
        with pytest.raises(StorageError, match="exists already"):
            convert(str(directory), str(directory), to)
    assert {path: path.read_bytes() for path in directory.iterdir()} == before


def test_inspect_for_people(golden, capsys):
    directory, _, _ = golden("bert", "classification")
    inspect(str(directory))
    out = capsys.readouterr().out
    assert "labels [low, middle, high]" in out
    assert "config.json: " in out


def test_inspect_of_an_artifact(tmp_path, capsys):
    import tensorflow as tf

    class Doubler(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")])
        def serve(self, text):
            return {"label": text, "scores": tf.zeros([tf.size(text), 2])}

    module = Doubler()
    for version in ("1", "10"):
        folder = str(tmp_path / version)
        tf.saved_model.save(module, folder, signatures={"serving_default": module.serve})
    facts = inspected(tmp_path, capsys)
    assert (facts["form"], facts["version"]) == ("SavedModel", "10")
    assert facts["signatures"]["serving_default"] == {
        "inputs": {"text": "string[?]"},
        "outputs": {"label": "string[?]", "scores": "float[?, 2]"},
    }
    task = {"kind": "classification", "labels": ["no", "yes"]}
    (tmp_path / "10" / "assets" / "tfllm.json").write_text(
        json.dumps({"family": "bert", "task": task})
    )
    assert inspected(tmp_path, capsys)["task"]["labels"] == ["no", "yes"]
    (tmp_path / "10" / "saved_model.pb").write_bytes(b"junk")
    with pytest.raises(ArtifactError, match="not a complete SavedModel"):
        inspected(tmp_path, capsys)


def test_inspect_of_a_tflite_file(tmp_path, capsys):
    pytest.importorskip("ai_edge_litert", reason="install the extra [edge]")
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec([1, 4], tf.float32, "x")])
    def double(x):
        return {"y": x * 2}

    module = tf.Module()
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [double.get_concrete_function()], module
    )
    (tmp_path / "model.tflite").write_bytes(converter.convert())
    facts = inspected(tmp_path, capsys)
    assert facts["form"] == "TFLite"
    assert facts["signatures"]["serving_default"] == {"inputs": ["x"], "outputs": ["y"]}
    assert "float32[1, 4]" in facts["tensors"].values()
    (tmp_path / "model.tflite").write_bytes(b"junk")
    with pytest.raises(ArtifactError, match="not a complete TFLite model"):
        inspected(tmp_path / "model.tflite", capsys)


def test_inspect_of_nothing(tmp_path, capsys):
    with pytest.raises(CheckpointError, match="There is no"):
        inspect(str(tmp_path / "none"))
    with pytest.raises(ArtifactError, match="There is no"):
        inspect(str(tmp_path / "none.tflite"))


def test_a_wrong_path_is_told_before_keras_is_loaded():
    code = (
        "import sys\nfrom tfllm.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as done:\n"
        "    assert done.code == 2, done.code\n"
        "assert not {'keras', 'tensorflow'} & set(sys.modules)\n"
    )
    for words in (["inspect", "nosuch"], ["convert", "nosuch", "--output", "nosuch-either"]):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "There is no 'nosuch'" in done.stderr
