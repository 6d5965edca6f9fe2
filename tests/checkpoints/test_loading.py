"""Loading takes what it needs: nothing is drawn, every tensor is read once, no memory is shared."""

import keras
import numpy as np
import pytest

from tests.helpers import byte_models, encoders
from tfllm import keras_internals, tasks
from tfllm.checkpoints import files, huggingface, store, weights
from tfllm.checkpoints.lazy_tensors import LazyTensors, aligned_empty, in_memory, is_aligned
from tfllm.errors import CheckpointError
from tfllm.models.weight_map import TensorLayout


def values(model):
    return {weight.path: np.asarray(weight) for weight in model.weights}


def write(form, checkpoint, directory):
    return (store.save if form == "own" else huggingface.write)(checkpoint, directory)


def refuse_to_draw(*args, **kwargs):
    raise AssertionError("random numbers were drawn")


@pytest.mark.parametrize("form", ["own", "hugging face"])
def test_nothing_is_drawn_for_a_complete_checkpoint(form, tmp_path, monkeypatch):
    checkpoint = byte_models.checkpoint()
    write(form, checkpoint, tmp_path / "model")
    for name in ("normal", "truncated_normal", "uniform"):
        monkeypatch.setattr(f"tensorflow.random.stateless_{name}", refuse_to_draw)
    with pytest.raises(AssertionError, match="were drawn"):
        store.create(checkpoint.family, checkpoint.config, checkpoint.tokenizer, checkpoint.task)
    again = store.load(tmp_path / "model")
    expected = values(checkpoint.model)
    assert {path: value.shape for path, value in values(again.model).items()} == {
        path: value.shape for path, value in expected.items()
    }
    for path, value in values(again.model).items():
        np.testing.assert_array_equal(value, expected[path])


@pytest.mark.parametrize("form", ["own", "hugging face"])
def test_a_new_head_is_drawn_as_in_a_new_model(form, tmp_path):
    """What a source lacks has the values that it would have without a source, by its seed."""
    masked = encoders.make("masked_lm")
    write(form, masked, tmp_path / "masked")
    task = tasks.build({"kind": "classification", "labels": ["a", "b"], "max_length": 16})
    loaded = store.load(tmp_path / "masked", task=task, seed=11)
    new = store.create(masked.family, masked.config, masked.tokenizer, task, seed=11)
    head, drawn, kept = values(loaded.model), values(new.model), values(masked.model)
    assert [path for path in head if path not in kept]
    for path, value in head.items():
        np.testing.assert_array_equal(value, kept[path] if path in kept else drawn[path])
    seeds = [generator.state.numpy() for generator in keras_internals.seed_generators(loaded.model)]
    others = [generator.state.numpy() for generator in keras_internals.seed_generators(new.model)]
    np.testing.assert_array_equal(seeds, others)


@pytest.mark.parametrize("form", ["own", "hugging face"])
def test_every_tensor_is_read_once(form, tmp_path, monkeypatch):
    write(form, byte_models.checkpoint(), tmp_path / "model")
    reads = []
    opened = files.open_tensors

    def counted(path):
        tensors = opened(path)
        return LazyTensors(
            tensors.shapes, tensors.dtypes, lambda name: (reads.append(name), tensors[name])[1]
        )

    module = store if form == "own" else huggingface
    monkeypatch.setattr(module, "open_tensors", counted)
    store.load(tmp_path / "model")
    assert len(reads) == len(set(reads)) > 0


def test_variables_of_one_tensor_share_no_memory():
    """An update of a weight changes neither its source nor another weight of the same tensor."""
    fused = aligned_empty((8, 4), np.float32)
    fused[...] = np.arange(32).reshape(8, 4)
    source = {"fused": fused, "table": fused.copy()}
    for tensors in (source, in_memory(source)):
        variables = {
            "a": keras.Variable(np.zeros((4, 4), np.float32)),
            "b": keras.Variable(np.zeros((4, 4), np.float32)),
            "c": keras.Variable(np.zeros((8, 4), np.float32)),
        }
        rows = {
            "a": TensorLayout("fused", inputs=1, part=0, parts=2),
            "b": TensorLayout("fused", inputs=1, part=1, parts=2),
            "c": TensorLayout("table", inputs=-1),
        }
        weights.to_variables(rows, variables, tensors)
        for name in ("a", "c"):
            variables[name].assign_add(np.full(variables[name].shape, 100, np.float32))
        expected = np.arange(32, dtype=np.float32).reshape(8, 4)
        np.testing.assert_array_equal(variables["a"], expected[:4].T + 100)
        np.testing.assert_array_equal(variables["b"], expected[4:].T)
        np.testing.assert_array_equal(variables["c"], expected + 100)
        np.testing.assert_array_equal(source["fused"], expected)
        np.testing.assert_array_equal(source["table"], expected)


def test_a_weight_takes_over_the_memory_that_was_read():
    read = []

    def fresh(name):
        read.append(aligned_empty((4, 4), np.float32))
        read[-1][...] = 1
        return read[-1]

    with keras_internals.deferred_values() as new:
        layer = keras.layers.Dense(4, use_bias=False)
        layer.build((None, 4))
    assert [variable.path for variable in new] == [layer.kernel.path]
    rows = {"kernel": TensorLayout("kernel", inputs=-1)}
    tensors = LazyTensors({"kernel": (4, 4)}, {"kernel": "float32"}, fresh)
    weights.to_variables(rows, {"kernel": layer.kernel}, tensors)
    assert is_aligned(read[0])
    read[0][0, 0] = 7  # nobody does this; it shows that there is no copy
    assert float(layer.kernel[0, 0]) == 7


def test_numbers_of_every_kind_are_read_as_the_package_reads_them(tmp_path):
    import ml_dtypes
    from safetensors import safe_open

    draw = np.random.default_rng(0)
    dtypes = ["float32", "float16", "float64", "int8", "uint16", "int64", "bool", "complex64"]
    arrays = {name: draw.normal(0, 9, (3, 5)).astype(name) for name in dtypes}
    arrays["bfloat16"] = draw.normal(0, 9, (2, 3, 4)).astype(ml_dtypes.bfloat16)
    arrays["empty"] = np.zeros((0, 4), np.float32)
    path = tmp_path / "model.safetensors"
    files.write_tensors(path, arrays)
    tensors = files.open_tensors(path)
    assert set(tensors) == set(arrays)
    with safe_open(path, framework="np") as file:
        for name in arrays:
            assert tensors.dtypes[name] == arrays[name].dtype.name
            assert tensors.shapes[name] == arrays[name].shape
            np.testing.assert_array_equal(tensors[name], file.get_tensor(name), strict=True)


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    files.write_tensors(path, {"a": np.ones(1000, np.float32)})
    tensors = files.open_tensors(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="cut off while it was read"):
        tensors["a"]
