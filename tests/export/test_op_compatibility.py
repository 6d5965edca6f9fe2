"""The op lint: what TF Serving knows, and what it finds foreign."""

import shutil

import pytest
import tensorflow as tf

from tfllm.errors import ArtifactError
from tfllm.export import op_compatibility, serving_ops


@pytest.fixture(scope="module")
def version(exported):
    return exported("savedmodel").path


def changed(version, tmp_path, change):
    """A copy of the version whose proto `change` has worked on."""
    folder = tmp_path / "1"
    shutil.copytree(version, folder)
    saved = op_compatibility.read_saved_model(folder)
    change(saved.meta_graphs[0].graph_def)
    (folder / "saved_model.pb").write_bytes(saved.SerializeToString())
    return folder


def test_an_export_loads_from_the_oldest_known_server(version):
    found = op_compatibility.check_graph(version)
    assert (found.problems, found.first_version) == ((), "2.12")
    assert {"FastWordpieceTokenizeWithOffsets", "MatMul"} <= set(found.operations)
    assert not any(name.startswith("Xla") for name in found.operations)


def test_a_newer_operation_needs_a_newer_server(version, tmp_path):
    folder = changed(
        version, tmp_path, lambda graph: graph.node.add(name="trim", op="TFText>RoundRobinTrim")
    )
    assert op_compatibility.check_graph(folder).first_version == "2.20"


def test_an_unknown_operation_is_named_with_its_place(version, tmp_path):
    def change(graph):
        graph.library.function[0].node_def.add(name="odd", op="FrobnicateV9")

    found = op_compatibility.check_graph(changed(version, tmp_path, change))
    assert found.first_version is None
    assert "FrobnicateV9" in found.problems[0] and "/odd" in found.problems[0]


def test_an_unknown_attribute_is_named(version, tmp_path):
    def change(graph):
        next(node for node in graph.node if node.op == "Const").attr["speed"].i = 3

    (problem,) = op_compatibility.check_graph(changed(version, tmp_path, change)).problems
    assert "'speed'" in problem


def test_python_functions_are_foreign(tmp_path):
    module = tf.Module()
    module.call = tf.function(
        lambda x: tf.py_function(lambda y: y, [x], tf.float32),
        input_signature=[tf.TensorSpec([None], tf.float32)],
    )
    tf.saved_model.save(module, str(tmp_path / "1"), signatures={"serving_default": module.call})
    assert any(
        "PyFunc" in problem for problem in op_compatibility.check_graph(tmp_path / "1").problems
    )


def test_compilation_by_xla_is_foreign(tmp_path):
    module = tf.Module()
    module.call = tf.function(
        lambda x: x + 1,
        jit_compile=True,
        input_signature=[tf.TensorSpec([None], tf.float32)],
    )
    tf.saved_model.save(module, str(tmp_path / "1"), signatures={"serving_default": module.call})
    assert any(
        "XLA" in problem for problem in op_compatibility.check_graph(tmp_path / "1").problems
    )


def test_a_damaged_graph_is_named(tmp_path):
    with pytest.raises(ArtifactError, match="no saved_model.pb"):
        op_compatibility.read_saved_model(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"\xff\xff\xff")
    with pytest.raises(ArtifactError, match="damaged"):
        op_compatibility.read_saved_model(tmp_path)


def test_the_table_gives_first_versions():
    oldest, middle = {"A": ["x"]}, {"A": ["x", "y"], "B": ["z"]}
    newest = {"A": ["x", "y"], "B": ["z"], "TFText>C": []}
    assert list(serving_ops.table(oldest, middle, newest)) == [
        "A 2.12 x y:2.19",
        "B 2.19 z",
        "TFText>C 2.20",
    ]
