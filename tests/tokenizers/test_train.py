"""Vocabularies learned from files: the same every time, as small as asked, read back."""

import gzip
import json
import os
import subprocess
import sys

import pytest

from tfllm.data.corpora.documents import TextLines
from tfllm.errors import DataError, SettingError
from tfllm.tokenizers import train as module
from tfllm.tokenizers.loading import load_tokenizer
from tfllm.tokenizers.train import KINDS, TrainerOptions, train_tokenizer

TEXT = "The cat sat on the mat.\nÜber den Wolken, 你好 1974.\n" * 30
SIZES = {"wordpiece": 120, "bpe": 300, "unigram": 300, "characters": 60}


def train(paths, kind, options, column=None):
    lines = TextLines([str(path) for path in paths], column, lambda *_: None)
    return train_tokenizer(lines, kind, options, "corpus")


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt.gz"
    path.write_bytes(gzip.compress(TEXT.encode()))
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_learned_is_read_back(kind, corpus, tmp_path):
    options = TrainerOptions(SIZES[kind], ("<|user|>",))
    tokenizer = train([corpus], kind, options)
    assert tokenizer.vocabulary_size <= SIZES[kind]
    assert tokenizer == train([corpus], kind, options)
    tokenizer.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert again.vocabulary == tokenizer.vocabulary
    ids = again.encode("<|user|>the cat").ids
    assert again.token_id("<|user|>") in ids
    assert tokenizer.kind == {"bpe": "bytepair", "unigram": "sentencepiece"}.get(kind, kind)


# Prints digests of vocabularies of words whose pairs have many equal counts.
TWICE = """
import hashlib, random, sys
from tfllm.tokenizers.train import TrainerOptions, train_tokenizer
random.seed(1)
letters = "abcdefghijklmnopqrstuvwxyzäöüéèñçşğ中文字符测试"
words = ["".join(random.choices(letters, k=random.randint(2, 9))) for _ in range(300)]
texts = [" ".join(random.choices(words, k=12)) for _ in range(400)]
for kind in ("wordpiece", "bpe", "unigram"):
    vocabulary = train_tokenizer(texts, kind, TrainerOptions(600), "texts").vocabulary
    print(kind, len(vocabulary), hashlib.sha256("\\n".join(vocabulary).encode()).hexdigest())
"""


def test_every_process_and_any_threads_learn_the_same():
    def printed(threads):
        environment = {**os.environ, "RAYON_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
        command = [sys.executable, "-c", TWICE]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=120
        )
        return done.stdout

    first = printed("1")
    assert first.count("\n") == 3
    assert first == printed("1") == printed("4") == printed("2")


def test_wordpiece_has_every_letter_alone_and_inside_words(corpus):
    tokens = train([corpus], "wordpiece", TrainerOptions(120)).vocabulary
    assert tokens[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert {"t", "##t", "1", "##1", ".", "你", "u", "##u"} <= set(tokens)
    assert not {"##.", "##你", "Ü", "##Ü"} & set(tokens)


def test_room_that_is_left_goes_to_rarer_ideographs():
    text = "".join(chr(0x4E00 + n) * (1 + n % 3) for n in range(400))
    tokenizer = train_tokenizer([text], "wordpiece", TrainerOptions(300), "texts")
    assert tokenizer.vocabulary_size == 300
    assert sum(token in text for token in tokenizer.vocabulary) == 295


def test_of_too_much_text_an_even_sample_is_read(corpus, monkeypatch):
    lines = [f"line {number}" for number in range(1000)]
    counts = module.count(lines)
    assert counts.sum() == sum(len(line) + 1 for line in lines)
    monkeypatch.setitem(module.MOST_CHARACTERS, "bpe", int(counts.sum()) // 4)
    kept = list(module._Sample(lines, "bpe"))
    assert 200 < len(kept) < 300 and kept == list(module._Sample(lines, "bpe"))
    assert 40 < sum(int(line.split()[1]) < 200 for line in kept) < 60


def test_long_lines_are_cut_and_not_left_out():
    text = "word " * 3000 + "中" * 5000
    parts = list(module._split([text], {}))
    assert "".join(parts) == text and max(map(len, parts)) <= module.LONGEST_SENTENCE
    tokenizer = train_tokenizer([text, "short"], "unigram", TrainerOptions(300), "texts")
    assert any("中" in token for token in tokenizer.vocabulary)


def test_more_characters_than_a_unigram_vocabulary_holds_become_bytes():
    text = "".join(chr(0x4E00 + n) * (1 + n % 3) for n in range(600))
    tokenizer = train_tokenizer(
        [text[n : n + 40] for n in range(0, 1200, 40)], "unigram", TrainerOptions(400), ""
    )
    assert tokenizer.vocabulary_size <= 400
    assert 50 < sum(token in text for token in tokenizer.vocabulary) < 150
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize("kind", ["bpe", "unigram", "characters"])
def test_texts_come_back_whole(kind, corpus):
    tokenizer = train([corpus], kind, TrainerOptions(SIZES[kind]))
    for line in (TEXT[:60], "  cat\n\n the  ", "1974, Über"):
        assert tokenizer.decode(tokenizer.encode(line).ids) == line


def test_every_character_is_a_token(corpus):
    tokenizer = train([corpus], "characters", TrainerOptions(1000))
    assert tokenizer.vocabulary == sorted(set(TEXT))
    few = train([corpus], "characters", TrainerOptions(8))
    assert few.vocabulary_size == 8 and few.vocabulary[0] == "<unk>"
    assert few.encode("\u9999").ids == [few.unk_token_id]


def test_the_characters_of_nanogpt(data):
    tokenizer = train([data / "tinyshakespeare" / "input.txt"], "characters", TrainerOptions(100))
    assert tokenizer.vocabulary_size == 65
    assert tokenizer.encode("hii there").ids == [46, 47, 47, 1, 58, 46, 43, 56, 43]


def test_roberta_tokens_make_roberta_rows(corpus):
    tokenizer = train(
        [corpus], "bpe", TrainerOptions(300, ("<s>", "<pad>", "</s>", "<unk>", "<mask>"))
    )
    tokens = [tokenizer.vocabulary[i] for i in tokenizer.encode("cat", "mat").ids]
    assert tokens[0] == "<s>" and tokens.count("</s>") == 3


def test_a_column_of_json_lines(tmp_path):
    path = tmp_path / "poems.jsonl"
    poems = [{"title": "x", "paragraphs": ["床前明月光", "疑是地上霜"]}, {"paragraphs": "光"}]
    path.write_text("\n".join(json.dumps(poem) for poem in poems))
    tokenizer = train([path], "characters", TrainerOptions(100), "paragraphs")
    assert set(tokenizer.vocabulary) == set("床前明月光疑是地上霜\n")
    with pytest.raises(DataError, match="poems.jsonl:2: no column 'title'"):
        train([path], "bpe", TrainerOptions(300), "title")
    table = tmp_path / "poems.tsv"
    table.write_text("a\ttext\nx\t床前\n")
    assert set(train([table], "characters", TrainerOptions(100), "text").vocabulary) == set(
        "床前\n"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_what_goes_wrong_is_said(kind, tmp_path, corpus):
    broken = tmp_path / "broken.txt"
    broken.write_bytes(b"a\nb\xff\n")
    with pytest.raises(DataError, match="broken.txt:2"):
        train([broken], kind, TrainerOptions(1000))
    empty = tmp_path / "empty.txt"
    empty.write_bytes(b" \n")
    with pytest.raises(DataError, match="no text"):
        train([empty], kind, TrainerOptions(1000))
    with pytest.raises(SettingError, match="at least"):
        train([corpus], kind, TrainerOptions(1))
    if kind != "wordpiece":
        with pytest.raises(SettingError, match="lowercase"):
            train([corpus], kind, TrainerOptions(300, lowercase=True))


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_transformers_reads_what_is_learned(kind, corpus, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = train([corpus], kind, TrainerOptions(SIZES[kind], ("<|user|>",)))
    tokenizer.save(tmp_path / "saved")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert len(theirs) == tokenizer.vocabulary_size
    for text in ("The cat sat.", "Über 你好 1974", "<|user|>the cat", "unseen wörds ☃"):
        assert theirs(text)["input_ids"] == tokenizer.encode(text).ids
        assert theirs.convert_tokens_to_ids("<|user|>") == tokenizer.token_id("<|user|>")
