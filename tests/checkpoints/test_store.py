"""tfllm's own directories: whole or not at all, and clear words for what is not one."""

import errno
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tfllm.checkpoints import files, store
from tfllm.checkpoints.base import Checkpoint
from tfllm.errors import CheckpointError, SettingError, StorageError
from tfllm.tasks.classification import Classification
from tfllm.tokenizers.loading import load_tokenizer

SHAPE = {"vocabulary_size": 32, "num_layers": 1, "num_heads": 2, "hidden_dim": 8,
         "max_sequence_length": 16}  # fmt: skip
TASK = Classification(labels=("no", "yes"), max_length=16)


@pytest.fixture
def tokenizer(tmp_path, vocabulary_text):
    (tmp_path / "vocab.txt").write_text(vocabulary_text)
    return load_tokenizer(tmp_path)


@pytest.fixture
def checkpoint(tokenizer) -> Checkpoint:
    return store.create("bert", SHAPE, tokenizer, TASK, seed=0)


def test_saved_and_loaded_again(checkpoint, tmp_path):
    path = store.save(checkpoint, tmp_path / "run" / "checkpoint")
    again = store.load(tmp_path / "run")  # a run directory means its checkpoint
    assert (again.family, again.config, again.task) == ("bert", checkpoint.config, TASK)
    assert again.tokenizer.vocabulary == checkpoint.tokenizer.vocabulary
    assert again.path == path
    for before, after in zip(checkpoint.model.weights, again.model.weights, strict=True):
        assert before.path == after.path
        np.testing.assert_array_equal(before, after)
    assert "layer_0/attention/query/kernel" in load_file(path / "model.safetensors")


def test_equal_seeds_give_equal_checkpoints(checkpoint, tokenizer):
    again = store.create("bert", SHAPE, tokenizer, TASK, seed=0)
    for before, after in zip(checkpoint.model.weights, again.model.weights, strict=True):
        np.testing.assert_array_equal(before, after)


def test_a_newer_checkpoint_replaces_an_older_one(checkpoint, tmp_path):
    store.save(checkpoint, tmp_path / "c")
    bias = checkpoint.model.get_layer("classifier").bias
    bias.assign([1.0, 2.0])
    store.save(checkpoint, tmp_path / "c")
    np.testing.assert_array_equal(store.load(tmp_path / "c").model.get_layer("classifier").bias,
                                  [1.0, 2.0])  # fmt: skip
    assert [path.name for path in tmp_path.glob(".c*")] == []


def test_other_files_are_never_replaced(checkpoint, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(StorageError, match="exists already"):
        store.save(checkpoint, tmp_path / "photos")
    assert (tmp_path / "photos" / "cat.jpg").exists()


@pytest.mark.parametrize("when", ["write_tensors", "write_json"])
def test_a_full_disk_leaves_the_old_checkpoint(checkpoint, tmp_path, monkeypatch, when):
    from safetensors import SafetensorError

    store.save(checkpoint, tmp_path / "c")
    before = load_file(tmp_path / "c" / "model.safetensors")

    def full(path, content):
        path.write_bytes(b"half a file")
        if when == "write_tensors":  # what safetensors raises
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(store, when, full)
    with pytest.raises(StorageError, match="disk is full.*unchanged"):
        store.save(checkpoint, tmp_path / "c")
    after = load_file(tmp_path / "c" / "model.safetensors")
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert {path.name for path in tmp_path.iterdir()} == {"vocab.txt", "c"}


def test_ctrl_c_leaves_nothing_half_written(checkpoint, tmp_path, monkeypatch):
    def stopped(path, content):
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "write_json", stopped)
    with pytest.raises(KeyboardInterrupt):
        store.save(checkpoint, tmp_path / "c")
    assert {path.name for path in tmp_path.iterdir()} == {"vocab.txt"}


def test_a_folder_that_cannot_be_written(checkpoint, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="Give another|give another"):
        store.save(checkpoint, tmp_path / "file" / "c")


def test_a_new_head_from_our_own_form(checkpoint, tmp_path, caplog):
    store.save(checkpoint, tmp_path / "c")
    three = Classification(labels=("a", "b", "c"), max_length=8)
    again = store.load(tmp_path / "c", task=three, seed=0)
    assert "new, to be trained: classifier/bias, classifier/kernel" in caplog.text
    assert again.model.output.shape == (None, 3)
    np.testing.assert_array_equal(
        again.model.get_layer("pooler").kernel, checkpoint.model.get_layer("pooler").kernel
    )
    same = store.load(tmp_path / "c", task=TASK.model_copy(update={"max_length": 8}))
    np.testing.assert_array_equal(
        same.model.get_layer("classifier").kernel, checkpoint.model.get_layer("classifier").kernel
    )


def test_a_carried_pooler_serves_a_new_head(golden, tmp_path):
    directory, _, _ = golden("bert", "embedding")
    store.save(store.load(directory), tmp_path / "c")
    again = store.load(tmp_path / "c", task=TASK)
    old = load_file(directory / "model.safetensors")["pooler.dense.weight"]
    np.testing.assert_array_equal(again.model.get_layer("pooler").kernel, old.T)


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda c: (c / "tfllm.json").write_text("{"), "tfllm.json:1: not JSON"),
        (lambda c: (c / "tfllm.json").write_bytes(b"\xff\xfe"), "not UTF-8"),
        (lambda c: edit_json(c / "tfllm.json", format=99), "reads up to 1"),
        (lambda c: edit_json(c / "tfllm.json", family="brt"), "Did you mean 'bert'"),
        (lambda c: edit_json(c / "tfllm.json", task={"kind": "clasification"}), "Did you mean"),
        (lambda c: edit_json(c / "tfllm.json", config={"hiden_dim": 8}), "mean 'hidden_dim'"),
        (lambda c: edit_json(c / "tfllm.json", config={"hidden_dim": "8"}), "hidden_dim is '8'"),
        (lambda c: (c / "model.safetensors").unlink(), "model.safetensors is not"),
        (lambda c: (c / "model.safetensors").write_bytes(b""), "not a whole safetensors file"),
        (
            lambda c: (c / "model.safetensors").write_bytes(
                (c / "model.safetensors").read_bytes()[:-9]
            ),
            "not a whole safetensors file",
        ),
        (
            lambda c: save_file(
                {"pooler/bias": np.zeros(3, np.float32), "odd": np.zeros(1, np.float32)},
                c / "model.safetensors",
            ),
            r"missing: .*wrong shape: pooler/bias is \[3\].*place in the model: odd",
        ),
        (lambda c: (c / "tfllm.json").unlink(), "no config.json"),
        (lambda c: shutil.rmtree(c), "There is no"),
    ],
)  # fmt: skip
def test_damage_is_named(checkpoint, tmp_path, damage, said):
    path = store.save(checkpoint, tmp_path / "c")
    damage(path)
    with pytest.raises(CheckpointError, match=said) as error:
        store.load(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "neither tfllm.json"),
        (["saved_model.pb"], "exported SavedModel"),
        (["1/saved_model.pb"], "exported SavedModel"),
        (["recipe.yaml"], "no checkpoint yet"),
        (["adapter_config.json"], "only adapters"),
        (["pytorch_model.bin"], "no config.json"),
    ],
)
def test_a_directory_that_is_no_checkpoint(tmp_path, names, said):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=said):
        store.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pytorch_model.bin", "torch pickle.*BertModel.from_pretrained.*safe_serialization=True"),
        ("tf_model.h5", "from_tf=True"),
        ("flax_model.msgpack", "from_flax=True"),
        ("readme.txt", "no model.safetensors"),
    ],
)
def test_other_forms_of_weights_are_refused_with_the_way_to_convert(tmp_path, name, said):
    config = {"model_type": "bert", "architectures": ["BertModel"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=said):
        store.load(tmp_path)


def test_a_file_is_no_checkpoint(tmp_path):
    (tmp_path / "model.tflite").touch()
    with pytest.raises(CheckpointError, match="predicted and evaluated"):
        store.load(tmp_path / "model.tflite")


def test_a_hub_id_without_its_scheme_is_recognised():
    with pytest.raises(CheckpointError, match="write hf://google-bert/bert-base-uncased"):
        store.load("google-bert/bert-base-uncased")


def test_a_shape_that_does_not_fit_is_refused(tokenizer):
    with pytest.raises(SettingError, match="32 tokens"):
        store.create("bert", {**SHAPE, "vocabulary_size": 31}, tokenizer, TASK)
    with pytest.raises(SettingError, match="positions for 16"):
        store.create("bert", SHAPE, tokenizer, Classification(labels=("a", "b"), max_length=17))


def test_written_files_are_for_everyone(tmp_path):
    files.write_tensors(tmp_path / "t.safetensors", {"a": np.zeros(2, np.float32)})
    (tmp_path / "other").touch()
    assert (tmp_path / "t.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_of_two_that_write_at_once_the_first_stays(tmp_path):
    with pytest.raises(StorageError, match="exists already and is not empty"):
        with files.atomic_directory(tmp_path / "out") as second:
            with files.atomic_directory(tmp_path / "out") as first:
                assert first != second
                (first / "a.txt").write_text("first")
            (second / "a.txt").write_text("second")
    assert (tmp_path / "out" / "a.txt").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
