"""tfllm tokenizer: what it prints, its exit status, its errors."""

import gzip
import json

import pytest

from tests.helpers import commands
from tests.helpers.vocabularies import VOCABULARY
from tfllm.tokenizers.loading import load_tokenizer
from tfllm.tokenizers.wordpiece import WordPiece


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "run" / "checkpoint"
    WordPiece.from_vocabulary(VOCABULARY).save(folder)
    return str(folder.parent)


def run(capsys, *arguments):
    """(exit status, stdout, stderr)"""
    return commands.run(capsys, "tokenizer", *arguments)


def test_encode(capsys, model):
    status, out, _ = run(capsys, "encode", model, "The unwanted", "[MASK]")
    assert status == 0
    assert out.splitlines()[1::2] == ["[CLS] the un ##want ##ed [SEP]", "[CLS] [MASK] [SEP]"]
    status, out, _ = run(capsys, "encode", model, "Cat", "--json")
    assert json.loads(out)["offsets"] == [[0, 0], [0, 3], [0, 0]]


def test_decode(capsys, model):
    ids = WordPiece.from_vocabulary(VOCABULARY).encode("the cat").ids
    assert run(capsys, "decode", model, *ids)[:2] == (0, "the cat\n")
    assert run(capsys, "decode", model, *ids, "--special")[1] == "[CLS] the cat [SEP]\n"
    status, out, err = run(capsys, "decode", model, 123456)
    assert (status, out) == (2, "") and "no token 123456" in err


def test_a_savedmodel_has_its_tokenizer_in_the_newest_version(capsys, tmp_path):
    for version in ("9", "10"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "saved_model.pb").touch()
    WordPiece.from_vocabulary(VOCABULARY).save(tmp_path / "10" / "assets")
    assert run(capsys, "encode", tmp_path, "the")[0] == 0


def test_check(capsys, model, tmp_path):
    text = tmp_path / "text.txt"
    text.write_bytes(b"The cat\r\n\n\xe7\x9a\x84 \xff[MASK]\x00 x\nno end")
    packed = tmp_path / "text.txt.gz"
    packed.write_bytes(gzip.compress(text.read_bytes()))
    status, out, _ = run(capsys, "check", model, text, packed)
    assert status == 0
    assert [line.split()[1:4:2] for line in out.splitlines()[1:]] == [
        ["4", "0"], ["4", "0"], ["8", "0"]
    ]  # fmt: skip


def test_check_shows_differences(capsys, model, tmp_path, monkeypatch):
    graph = WordPiece.from_vocabulary(VOCABULARY, lowercase=False).graph()
    monkeypatch.setattr(WordPiece, "graph", lambda self: graph)
    text = tmp_path / "text.txt"
    text.write_text("the mat\nthe A mat\n")
    status, out, err = run(capsys, "check", model, text)
    assert status == 1
    assert f"{text}:2: 'the A mat'" in out
    assert "from token 1: [('a', 4, 5), ('mat', 6, 9)]" in out
    assert "1 of 2 lines differ" in err


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.txt", None, "no file"),
        ("broken.gz", gzip.compress(b"the cat\n" * 1000, mtime=0)[:40], "not a complete gzip file"),
        ("other.gz", b"the cat", "not a complete gzip file"),
    ],
)
def test_check_names_a_file_it_cannot_read(capsys, model, tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    status, _, err = run(capsys, "check", model, tmp_path / name)
    assert status == 2
    assert name in err and said in err


def test_train(capsys, tmp_path):
    corpus = tmp_path / "corpus.txt.gz"
    corpus.write_bytes(gzip.compress("Die Katze läuft. Der Hund läuft auch.\n".encode() * 20))
    output = tmp_path / "learned"
    status, out, _ = run(
        capsys, "train", corpus, "--vocabulary-size", 80, "--output", output, "--cased"
    )
    assert status == 0 and f"{output}: " in out
    learned = load_tokenizer(output)
    assert learned.vocabulary_size <= 80 and not learned.lowercase
    assert learned.decode(learned.encode("Die Katze läuft").ids) == "Die Katze läuft"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    status, _, err = run(
        capsys, "train", corpus, "--vocabulary-size", 80, "--output", output, "--cased"
    )
    assert status == 2 and "exists" in err


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        (b"a b\n", ["--kind", "bpe"], "at least 257"),
        (b"a b\n", ["--kind", "wordpeice"], "Did you mean 'wordpiece'"),
        (b"a b\n", ["--vocabulary-size", "3"], "at least 10"),
        (b"\n \n", [], "no text"),
        (b"a\nb\xff\n", [], "corpus.txt:2: byte 2 of the line is not UTF-8"),
    ],
)
def test_train_names_what_is_wrong(capsys, tmp_path, content, options, said):
    (tmp_path / "corpus.txt").write_bytes(content)
    settings = ["--vocabulary-size", "50", *options, "--output", tmp_path / "learned"]
    status, _, err = run(capsys, "train", tmp_path / "corpus.txt", *settings)
    assert status == 2
    assert said in err
    assert not (tmp_path / "learned").exists()


def test_a_tokenizer_that_another_process_has_written_meanwhile_stays(tmp_path):
    from tfllm.cli.tokenizer import _write
    from tfllm.errors import StorageError

    class Files:
        def save(self, folder):
            folder.mkdir()
            (folder / "vocab.txt").write_text("second")

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "vocab.txt").write_text("first")
    with pytest.raises(StorageError, match="exists. Name a new directory"):
        _write(Files(), tmp_path / "out")
    assert (tmp_path / "out" / "vocab.txt").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
