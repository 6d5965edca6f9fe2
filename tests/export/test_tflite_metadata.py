"""The metadata and the files inside a .tflite file, by the schema's own generated reader."""

import importlib.util
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.encoders import make
from tfllm.export import export, flatbuffer, load_profile, tflite_metadata
from tfllm.export.flatbuffer import TFLITE_FILE
from tfllm.runtimes.opening import open_model


@pytest.fixture(scope="module")
def schema():
    """`metadata_schema_py_generated` of MediaPipe's wheel, without the package around it."""
    package = importlib.util.find_spec("mediapipe")
    if package is None:
        pytest.skip("mediapipe, which has the schema's reader, is not installed")
    (folder,) = package.submodule_search_locations
    path = Path(folder) / "tasks" / "metadata" / "metadata_schema_py_generated.py"
    spec = importlib.util.spec_from_file_location("metadata_schema", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(schema, content):
    """The ModelMetadataT of bytes."""
    assert schema.ModelMetadata.ModelMetadataBufferHasIdentifier(content, 0)
    return schema.ModelMetadataT.InitFromObj(schema.ModelMetadata.GetRootAs(content, 0))


def inside(schema, path):
    """The ModelMetadataT in a file."""
    model = flatbuffer.parse(path.read_bytes())
    (entry,) = [one for one in model.metadata if one.name == flatbuffer.METADATA_ENTRY.encode()]
    return read(schema, bytes(model.buffers[entry.buffer].data))


def test_every_field_is_where_the_schema_has_it(schema):
    content = tflite_metadata.text_model(
        "Title", "About", ["padding_mask", "token_ids"], "probability", True
    )
    found = read(schema, content)
    assert (found.name, found.description) == (b"Title", b"About")
    assert found.minParserVersion == tflite_metadata.PARSER_VERSION.encode()
    (graph,) = found.subgraphMetadata
    assert [one.name for one in graph.inputTensorMetadata] == [b"mask", b"ids"]
    (output,) = graph.outputTensorMetadata
    (labels,) = output.associatedFiles
    assert (output.name, labels.name) == (b"probability", b"labels.txt")
    assert labels.type == schema.AssociatedFileType.TENSOR_AXIS_LABELS
    (unit,) = graph.inputProcessUnits
    assert unit.optionsType == schema.ProcessUnitOptions.BertTokenizerOptions
    (vocabulary,) = unit.options.vocabFile
    assert vocabulary.name == b"vocab.txt"
    assert vocabulary.type == schema.AssociatedFileType.VOCABULARY
    plain = read(
        schema, tflite_metadata.text_model("", "", ["text"], "logits", False, vocabulary=False)
    )
    assert plain.subgraphMetadata[0].inputProcessUnits is None
    assert plain.subgraphMetadata[0].outputTensorMetadata[0].associatedFiles is None


@pytest.mark.parametrize("name", ["tflite-float32", "tflite-int8-full", "mediapipe"])
def test_a_file_carries_labels_and_vocabulary(name, exported, classifier, schema):
    path = exported(name).path / TFLITE_FILE
    with zipfile.ZipFile(path) as archive:
        files = {one: archive.read(one).decode().splitlines() for one in archive.namelist()}
    assert files["labels.txt"] == list(classifier.task.labels)
    assert files["vocab.txt"] == classifier.tokenizer.vocabulary
    graph = inside(schema, path).subgraphMetadata[0]
    model = flatbuffer.parse(path.read_bytes())
    names = [tflite_metadata.INPUT_NAMES[one].encode() for one in flatbuffer.input_names(model)]
    assert [one.name for one in graph.inputTensorMetadata] == names
    output = b"probability" if name == "mediapipe" else b"logits"
    assert graph.outputTensorMetadata[0].name == output


def test_a_file_that_takes_texts_carries_labels_alone(exported, schema):
    path = exported("tflite-text").path / TFLITE_FILE
    assert list(flatbuffer.associated_files(path)) == ["labels.txt"]
    graph = inside(schema, path).subgraphMetadata[0]
    assert [one.name for one in graph.inputTensorMetadata] == [b"text"]
    assert graph.inputProcessUnits is None


@pytest.mark.slow
def test_every_signature_runs_in_a_file_with_an_archive(tmp_path):
    checkpoint = make("embedding")
    settings = load_profile("tflite-float32", ["extra_lengths=[16]", "batch_sizes=[1,4]"])
    artifact = export(checkpoint, settings, tmp_path / "out")
    assert list(flatbuffer.associated_files(artifact.path / TFLITE_FILE)) == ["vocab.txt"]
    examples = [{"text": "the film was good"}] * 6
    vectors = [one["embedding"] for one in open_model(artifact.path).predict(examples)]
    np.testing.assert_allclose(vectors, vectors[:1] * 6, atol=1e-6)
