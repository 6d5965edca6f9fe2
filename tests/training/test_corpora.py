"""What `tfllm prepare` takes from a recipe: files, tokenizer, how texts are cut."""

import pytest

from tfllm import config
from tfllm.data.corpora.corpus import open_corpus
from tfllm.data.settings import CorpusDocuments
from tfllm.errors import DataError, SettingError
from tfllm.tokenizers.loading import load_tokenizer
from tfllm.training import resuming
from tfllm.training.corpora import CorpusRecipe, prepare_corpus

TEXT = "One two three. Four five!\nSix seven. Eight nine ten.\n" * 20


@pytest.fixture(autouse=True)
def no_picture(monkeypatch):
    monkeypatch.setattr(
        "tfllm.data.corpora.lengths.draw", lambda counted, path: path.write_bytes(b"")
    )


@pytest.fixture
def text(tmp_path):
    (tmp_path / "a.txt").write_text(TEXT)
    return str(tmp_path / "a.txt")


def prepared(tmp_path, text, name="out", **parts):
    data = {"train": text, **parts.pop("data", {})}
    recipe = config.build({"data": data, **parts}, CorpusRecipe)
    prepare_corpus(recipe, tmp_path / name, workers=1)
    return open_corpus(tmp_path / name)


LEARNED = {"kind": "wordpiece", "vocabulary_size": 60}


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram", "characters"])
def test_a_tokenizer_is_learned_from_the_same_texts(kind, tmp_path, text):
    corpus = prepared(tmp_path, text, tokenizer={"kind": kind, "vocabulary_size": 300})
    tokenizer = load_tokenizer(corpus.tokenizer_directory)
    assert corpus.manifest["tokenizer"]["vocabulary_size"] == tokenizer.vocabulary_size <= 300
    first = tokenizer.decode(corpus.tokens(*corpus.token_starts[:2]))
    assert first.lower() == "one two three."
    assert corpus.manifest["read"]["exact_duplicates"] == 38


def test_a_tokenizer_that_is_there_is_taken(tmp_path, text):
    first = prepared(tmp_path, text, "first", tokenizer=LEARNED)
    path = str(first.tokenizer_directory)
    for number, parts in enumerate(
        ({"tokenizer": {"path": path}}, {"tokenizer": path}, {"model": {"from": path}},
         {"model": {"from": str(first.directory)}})
    ):  # fmt: skip
        corpus = prepared(tmp_path, text, f"again-{number}", **parts)
        assert corpus.digest == first.digest


def test_a_causal_model_gets_whole_documents(tmp_path, text):
    task = {"kind": "causal_lm"}
    corpus = prepared(tmp_path, text, tokenizer=LEARNED, task=task)
    assert len(corpus.sentence_lengths) == len(corpus.document_starts) - 1
    corpus = prepared(tmp_path, text, "cut", tokenizer=LEARNED, task=task,
                      data={"prepare": {"sentences": "punctuation"}})  # fmt: skip
    assert len(corpus.sentence_lengths) == 4


def test_files_to_measure_on_share_the_tokenizer(tmp_path, text):
    (tmp_path / "b.txt").write_text("Seven eight.\n")
    corpus = prepared(tmp_path, text, tokenizer=LEARNED,
                      data={"validation": str(tmp_path / "b.txt"), "limit": 3})  # fmt: skip
    other = open_corpus(corpus.directory / "validation")
    assert corpus.manifest["read"]["documents"] == 3 and other.manifest["documents"] == 1
    assert other.manifest["tokenizer"] == corpus.manifest["tokenizer"]


WRONG = {
    "no tokenizer": ({}, "tokenizer: a corpus needs one"),
    "unknown key": ({"tokenizer": LEARNED, "data": {"prepare": {"duplicate": "near"}}},
                    "Did you mean 'duplicates'"),
    "expression": ({"tokenizer": LEARNED, "data": {"prepare": {"document_start": "("}}},
                   "not a regular expression"),
    "tail": ({"tokenizer": LEARNED, "data": {"validation_tail": 0.1}}, "_tail is not for"),
    "both": ({"tokenizer": LEARNED, "data": {"validation": "x", "validation_share": 0.1}},
             "either"),
    "size": ({"tokenizer": {"kind": "bpe", "vocabulary_size": 5}}, "give at least 256"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_and_nothing_is_left(name, tmp_path, text):
    parts, message = WRONG[name]
    with pytest.raises(SettingError, match=message):
        prepared(tmp_path, text, **parts)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_corpus_is_not_prepared_again(tmp_path, text):
    corpus = prepared(tmp_path, text, tokenizer=LEARNED)
    with pytest.raises(SettingError, match="is a prepared corpus already"):
        prepared(tmp_path, str(corpus.directory), "again", tokenizer=LEARNED)


def test_shards_that_were_changed_since_the_start_are_read_whole(tmp_path, text):
    documents = CorpusDocuments(prepared(tmp_path, text, tokenizer=LEARNED))
    resuming.check_shards(documents, since=0.0)
    shard = next((tmp_path / "out").glob("shard-*"))
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    resuming.check_shards(documents, since=float("inf"))
    with pytest.raises(DataError, match="damaged"):
        resuming.check_shards(documents, since=0.0)
    resuming.check_shards([{"text": "of a file"}], since=0.0)
