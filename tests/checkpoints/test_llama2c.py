"""llama2.c files: a real trained model tells its story; damaged and foreign files are refused."""

import struct

import numpy as np
import pytest

from tfllm.checkpoints import huggingface, llama2c, store
from tfllm.checkpoints.describe import describe
from tfllm.cli.convert import convert
from tfllm.errors import CheckpointError, SettingError
from tfllm.tasks.classification import Classification
from tfllm.tasks.embedding import Embedding
from tfllm.tasks.token_classification import TokenClassification

STORY = "Once upon a time, there was a little girl named Lily"
SHAPE = {"width": 8, "inner": 12, "layers": 2, "heads": 2, "shared": 1, "vocabulary": 300}
POSITIONS = 16


def write_tokenizer(path, size=300):
    """A vocabulary of the three specials, the bytes, and made-up words."""
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % byte for byte in range(256))]
    pieces += [b"w%03d" % number for number in range(size - len(pieces))]
    with path.open("wb") as file:
        file.write(struct.pack("<i", max(map(len, pieces))))
        for number, piece in enumerate(pieces):
            file.write(struct.pack("<fi", -float(number), len(piece)) + piece)


@pytest.fixture
def source(tmp_path):
    """`source(tied=False)`: a random model with its tokenizer beside it."""

    def make(tied=True, positions=POSITIONS):
        path = tmp_path / "model.bin"
        vocabulary = SHAPE["vocabulary"] * (1 if tied else -1)
        numbers = [*list(SHAPE.values())[:-1], vocabulary, positions]
        path.write_bytes(llama2c.HEADER.pack(*numbers))
        write_tokenizer(tmp_path / "tokenizer.bin")
        width, inner, layers = (SHAPE[name] for name in ("width", "inner", "layers"))
        of_layer = width * (2 + 2 * width + 2 * width // 2) + 3 * width * inner
        size = 300 * width * (1 if tied else 2) + layers * of_layer + width + POSITIONS * 4
        weights = np.random.default_rng(0).normal(0, 0.3, size).astype("<f4")
        with path.open("ab") as file:
            file.write(weights.tobytes())
        return path, weights

    return make


def test_the_real_model_tells_its_story(data, tmp_path):
    source = data / "checkpoints" / "stories260K.bin"
    checkpoint = store.load(source)
    # One pass tells what a loop would write: each token is the most probable after those before.
    row = np.array([checkpoint.tokenizer.encode(STORY).ids], np.int32)
    assert row[0, 0] == 1
    logits = np.asarray(checkpoint.model({"token_ids": row, "padding_mask": np.ones_like(row)}))
    np.testing.assert_array_equal(logits[0, :-1].argmax(-1), row[0, 1:])
    assert checkpoint.eos_token_id == (1, 2)
    facts = describe(source)
    assert (facts["form"], facts["parameters"]) == ("llama2.c file", 260032)

    huggingface.write(checkpoint, tmp_path / "theirs")
    again = store.load(tmp_path / "theirs")
    assert again.eos_token_id == (1, 2)
    for ours, theirs in zip(checkpoint.model.weights, again.model.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_names_that_belong_together(tmp_path):
    for name in ("tales260K.bin", "tales_tok300.bin", "fables1M.bin", "fables1M_tok300.bin"):
        (tmp_path / name).touch()
    for model, tokenizer in (("tales260K", "tales_tok300"), ("fables1M", "fables1M_tok300")):
        found = llama2c.find_tokenizer(tmp_path / f"{model}.bin", 300)
        assert found.stem == tokenizer
    with pytest.raises(CheckpointError, match="or several do"):
        llama2c.find_tokenizer(tmp_path / "other.bin", 300)


def test_convert_names_a_tokenizer(source, tmp_path, capsys):
    path, _ = source()
    (tmp_path / "tokenizer.bin").rename(tmp_path / "words")
    with pytest.raises(CheckpointError, match="Name it: tokenizer"):
        convert(str(path), str(tmp_path / "ours"))
    (tmp_path / "words").rename(tmp_path / "a.bin")
    convert(str(path), str(tmp_path / "ours"), tokenizer=str(tmp_path / "a.bin"))
    checkpoint = store.load(tmp_path / "ours")
    assert (checkpoint.family, checkpoint.task.kind) == ("llama", "causal_lm")
    assert checkpoint.eos_token_id == (1, 2)
    with pytest.raises(SettingError, match="brings its own"):
        convert(str(tmp_path / "ours"), str(tmp_path / "x"), tokenizer=str(tmp_path / "a.bin"))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_sign_of_the_vocabulary_says_whether_logits_are_tied(source, tied):
    path, weights = source(tied)
    checkpoint = store.load(path)
    assert checkpoint.config.tie_embeddings is tied
    embeddings = checkpoint.model.get_layer("token_embedding").embeddings
    np.testing.assert_array_equal(embeddings, weights[:2400].reshape(300, 8))
    if not tied:
        kernel = checkpoint.model.get_layer("logits").kernel
        np.testing.assert_array_equal(kernel, weights[-2400:].reshape(300, 8).T)


def test_neighbours_become_halves():
    block = np.arange(2 * 4 * 3).reshape(1, 8, 3)  # two heads of four rows
    got = llama2c._halves(block, 4)[0, :, 0] // 3
    assert got.tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_a_decoder_does_not_label_tokens(source):
    path, _ = source()
    with pytest.raises(SettingError, match="causal_lm, classification, embedding only"):
        store.load(path, task=TokenClassification(labels=("a", "b"), max_length=16))


def test_a_decoder_classifies(source):
    path, _ = source()
    model = store.load(path, task=Classification(labels=("a", "b"), max_length=16), seed=1).model
    ids = np.array([[5, 6, 7, 0], [5, 6, 7, 8]], np.int32)
    mask = np.array([[1, 1, 1, 0], [1, 1, 1, 0]], np.int32)
    scores = np.asarray(model({"token_ids": ids, "padding_mask": mask}))
    np.testing.assert_array_equal(scores[0], scores[1])  # padding is not read


def test_a_decoder_embeds(source):
    path, _ = source()
    model = store.load(path, task=Embedding(max_length=16)).model
    row = np.arange(5, dtype=np.int32)[None]
    assert model({"token_ids": row, "padding_mask": np.ones_like(row)}).shape == (1, 8)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda data: data[:-4], "was cut off"),
        (lambda data: data + b"1234", "was cut off"),
        (lambda data: b"PK\x03\x04" + data[4:], "not a model of llama2.c"),
        (lambda data: b"", "not a model of llama2.c"),
        (lambda data: struct.pack("<ii", llama2c.NEWER, 2) + data[8:], "version 2"),
    ],
    ids=["short", "long", "pickle", "empty", "newer"],
)
def test_other_files_are_refused(source, edit, said):
    path, _ = source()
    path.write_bytes(edit(path.read_bytes()))
    with pytest.raises(CheckpointError, match=said):
        store.load(path)


def test_a_vocabulary_that_is_too_large_is_refused(source, tmp_path):
    from tfllm.errors import TokenizerError

    path, _ = source()
    write_tokenizer(tmp_path / "tokenizer.bin", 310)
    with pytest.raises(TokenizerError, match="310 tokens"):
        store.load(path)
