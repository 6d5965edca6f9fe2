"""Which runtime a .tflite file needs: told, and held to what the profile names."""

import json

import pytest

pytest.importorskip("ai_edge_litert")

from tests.export.products import Factor, factors
from tests.helpers.language_models import make
from tfllm.cli import main
from tfllm.errors import CheckFailed, SettingError
from tfllm.export import export, flatbuffer, load_profile, tflite_generation
from tfllm.export.flatbuffer import TFLITE_FILE

STEPS = ["max_length=48", "prefill_lengths=[4]"]


def parsed(artifact):
    return flatbuffer.parse((artifact.path / TFLITE_FILE).read_bytes())


def versions(model):
    """Operation to the version that a file names."""
    from tensorflow.lite.python import schema_py_generated as schema

    names = {number: name for name, number in vars(schema.BuiltinOperator).items()}
    return {
        names[max(code.builtinCode, code.deprecatedBuiltinCode)]: code.version
        for code in model.operatorCodes
    }


def check_of(artifact):
    (found,) = [check for check in artifact.checks if check.name == "oldest runtime"]
    return found


def test_int8_with_a_scale_a_row_needs_what_tensorflows_converter_says(exported):
    artifact = exported("tflite-int8")
    assert versions(parsed(artifact))["FULLY_CONNECTED"] == 12
    assert flatbuffer.oldest_runtime(parsed(artifact)) == "2.17.0"
    assert check_of(artifact).value == "TensorFlow Lite 2.17.0"


def test_an_older_runtime_gets_a_scale_a_matrix(classifier, tmp_path):
    settings = load_profile("tflite-int8", ["oldest_runtime=2.16", "tolerance.agreement=0.5"])
    artifact = export(classifier, settings, tmp_path / "old")
    model = parsed(artifact)
    assert flatbuffer.version_numbers(flatbuffer.oldest_runtime(model)) <= (2, 16)
    assert versions(model)["FULLY_CONNECTED"] < 12
    for factor in factors((artifact.path / TFLITE_FILE).read_bytes()):
        assert isinstance(factor, Factor) and len(set(factor.step.ravel())) == 1
    assert "2.16" in check_of(artifact).limit


def test_a_file_that_needs_a_newer_one_is_refused(classifier, tmp_path):
    with pytest.raises(CheckFailed, match=r"oldest runtime: TensorFlow Lite 2\.\d+"):
        export(
            classifier, load_profile("tflite-float32", ["oldest_runtime='2.1'"]), tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return make(tmp_path_factory.mktemp("gpt2"), max_sequence_length=64, num_layers=1)


@pytest.mark.parametrize(("name", "matrix"), [("tflite-int8", 12), ("tflite-int4", 13)])
def test_own_weights_name_the_runtime_that_reads_them(name, matrix, decoder):
    """A runtime before these would multiply all rows by the first row's scale."""
    content = tflite_generation.convert(decoder, load_profile(name, STEPS))
    model = flatbuffer.parse(content)
    found = versions(model)
    assert (found["FULLY_CONNECTED"], found["EMBEDDING_LOOKUP"]) == (matrix, 4)
    assert flatbuffer.oldest_runtime(model) == "2.18.0"
    assert sum(entry.name == b"min_runtime_version" for entry in model.metadata) == 1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tflite-int8", STEPS, "need TensorFlow Lite 2.18"),
        ("litertlm-int8", STEPS, "need TensorFlow Lite 2.18"),
        ("savedmodel", [], "oldest_runtime is for .tflite files"),
    ],
)
def test_what_is_known_before_is_refused_before(name, options, message, decoder, tmp_path):
    with pytest.raises(SettingError, match=message):
        export(decoder, load_profile(name, [*options, "oldest_runtime=2.9"]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrong", ["two", "'2'", "2.x", "2.20", "2.1"])
def test_no_version_is_a_mistake(wrong):
    with pytest.raises(SettingError, match="oldest_runtime"):
        load_profile("tflite-int8", [f"oldest_runtime={wrong}"])


@pytest.mark.parametrize("given", ["2.16", "'2.16'", "2.16.1", "'2.20'"])
def test_versions_are_read_as_they_are_written(given):
    found = load_profile("tflite-int8", [f"oldest_runtime={given}"]).oldest_runtime
    assert found == given.strip("'")


def test_inspect_tells_it(exported, capsys):
    path = exported("tflite-int8").path / TFLITE_FILE
    with pytest.raises(SystemExit) as stopped:
        main(["inspect", str(path), "--json"])
    assert stopped.value.code == 0
    assert json.loads(capsys.readouterr().out)["runtime"] == "TensorFlow Lite 2.17.0 or newer"
