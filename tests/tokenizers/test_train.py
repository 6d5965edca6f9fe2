"""Vocabularies learned from files: the same every time, as small as asked, read back."""

import gzip
import json

import pytest

from tfllm.errors import DataError, SettingError
from tfllm.tokenizers import files
from tfllm.tokenizers.train import KINDS, Options, train

TEXT = "The cat sat on the mat.\nÜber den Wolken, 你好 1974.\n" * 30
SIZES = {"wordpiece": 120, "bpe": 300, "unigram": 300, "characters": 60}


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt.gz"
    path.write_bytes(gzip.compress(TEXT.encode()))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_learned_twice_is_learned_the_same(kind, corpus, tmp_path):
    options = Options(SIZES[kind], ("<|user|>",))
    learned = train([corpus], kind, options)
    assert learned.vocabulary_size <= SIZES[kind]
    if kind != "wordpiece":  # the package numbers its letters in no certain order
        assert learned == train([corpus], kind, options)
    learned.save(tmp_path / "saved")
    again = files.load(tmp_path / "saved")
    assert again.vocabulary == learned.vocabulary
    ids = again.encode("<|user|>the cat").ids
    assert again.token_id("<|user|>") in ids
    assert learned.kind == {"bpe": "bytepair", "unigram": "sentencepiece"}.get(kind, kind)


@pytest.mark.parametrize("kind", ["bpe", "unigram", "characters"])
def test_texts_come_back_whole(kind, corpus):
    learned = train([corpus], kind, Options(SIZES[kind]))
    for line in (TEXT[:60], "  cat\n\n the  ", "1974, Über"):
        assert learned.decode(learned.encode(line).ids) == line


def test_every_character_is_a_token(corpus):
    learned = train([corpus], "characters", Options(1000))
    assert learned.vocabulary == sorted(set(TEXT))
    few = train([corpus], "characters", Options(8))
    assert few.vocabulary_size == 8 and few.vocabulary[0] == "<unk>"
    assert few.encode("\u9999").ids == [few.unknown_id]


def test_the_characters_of_nanogpt(data):
    learned = train([data / "tinyshakespeare" / "input.txt"], "characters", Options(100))
    assert learned.vocabulary_size == 65
    assert learned.encode("hii there").ids == [46, 47, 47, 1, 58, 46, 43, 56, 43]


def test_roberta_tokens_make_roberta_rows(corpus):
    learned = train([corpus], "bpe", Options(300, ("<s>", "<pad>", "</s>", "<unk>", "<mask>")))
    tokens = [learned.vocabulary[i] for i in learned.encode("cat", "mat").ids]
    assert tokens[0] == "<s>" and tokens.count("</s>") == 3


def test_a_column_of_json_lines(tmp_path):
    path = tmp_path / "poems.jsonl"
    poems = [{"title": "x", "paragraphs": ["床前明月光", "疑是地上霜"]}, {"paragraphs": "光"}]
    path.write_text("\n".join(json.dumps(poem) for poem in poems))
    learned = train([path], "characters", Options(100, column="paragraphs"))
    assert set(learned.vocabulary) == set("床前明月光疑是地上霜\n")
    with pytest.raises(DataError, match="poems.jsonl:2: there is no field 'title'"):
        train([path], "bpe", Options(300, column="title"))


@pytest.mark.parametrize("kind", KINDS)
def test_what_goes_wrong_is_said(kind, tmp_path, corpus):
    broken = tmp_path / "broken.txt"
    broken.write_bytes(b"a\nb\xff\n")
    with pytest.raises(DataError, match="broken.txt:2"):
        train([broken], kind, Options(1000))
    empty = tmp_path / "empty.txt"
    empty.write_bytes(b" \n")
    with pytest.raises(DataError, match="no text"):
        train([empty], kind, Options(1000))
    with pytest.raises(SettingError, match="at least"):
        train([corpus], kind, Options(1))
    if kind != "wordpiece":
        with pytest.raises(SettingError, match="lowercase"):
            train([corpus], kind, Options(300, lowercase=True))
