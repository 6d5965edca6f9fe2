"""Profile "mediapipe" is MediaPipe's own algorithm: the same regular expressions, word by word."""

import functools

import pytest
import tensorflow as tf
import tensorflow_text
from hypothesis import given, settings

from tests.helpers.vocabularies import VOCABULARY
from tests.tokenizers.graph.test_wordpiece import TEXT, TRICKY
from tfllm.tokenizers.graph.wordpiece import MEDIAPIPE_ALONE
from tfllm.tokenizers.wordpiece import WordPiece

# tf-text's ops are the code that MediaPipe's BertTokenizer is built from.
SPLIT = rf"\s+|{MEDIAPIPE_ALONE}"


@functools.cache
def both():
    tokenizer = WordPiece.from_vocabulary(VOCABULARY)
    table = tf.lookup.StaticVocabularyTable(
        tf.lookup.KeyValueTensorInitializer(
            VOCABULARY, tf.range(len(VOCABULARY), dtype=tf.int64), value_dtype=tf.int64
        ),
        num_oov_buckets=1,
    )
    wordpiece = tensorflow_text.WordpieceTokenizer(
        table, max_bytes_per_word=100, token_out_type=tf.int64
    )
    return tokenizer.graph("mediapipe"), wordpiece


def ascii_lower(text):
    return "".join(c.lower() if c < "\x80" else c for c in text)


def reference(wordpiece, texts):
    words = tensorflow_text.regex_split([ascii_lower(t) for t in texts], SPLIT, MEDIAPIPE_ALONE)
    return wordpiece.tokenize(words).merge_dims(1, 2).to_list()


def assert_equal(texts):
    graph, wordpiece = both()
    texts = [text for text in texts if "\x00" not in text]  # tf-text's regex_split ends there
    assert graph.tokenize(tf.constant(texts, tf.string)).to_list() == reference(wordpiece, texts)


def test_tricky_texts():
    assert_equal([*TRICKY, "x" * 100, "x" * 101, "é" * 50, "é" * 51])


@settings(max_examples=30, deadline=None)
@given(text=TEXT)
def test_random_texts(text):
    assert_equal([text, "the cat"])


def test_only_ascii_is_lowered_and_special_tokens_are_text():
    graph, _ = both()
    ids = graph.tokenize(tf.constant(["THE [MASK] ÀÉ"])).to_list()[0]
    tokens = [VOCABULARY[i] for i in ids]
    assert tokens == ["the", "[", "m", "##a", "##s", "##k", "]", "[UNK]"]


@pytest.mark.slow
def test_every_code_point():
    points = [chr(c) for c in range(1, 0x110000) if not 0xD800 <= c < 0xE000]
    for begin in range(0, len(points), 8192):
        assert_equal([f"x{c}y" for c in points[begin : begin + 8192]])
