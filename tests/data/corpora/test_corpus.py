"""The corpus on disk: what is written is read, by us and by TensorFlow; damage is named."""

import json

import numpy as np
import pytest

from tests.helpers.vocabularies import SPELLING
from tfllm.data.corpora.corpus import MANIFEST, is_corpus, open_corpus
from tfllm.data.corpora.shards import ShardWriter, write_corpus
from tfllm.data.corpora.tfrecords import build_records, token_type
from tfllm.errors import DataError
from tfllm.tokenizers.wordpiece import WordPiece

SMALL_SHARD_BYTES = 2000


def documents(count=60, seed=0, largest=len(SPELLING)):
    """Documents of 1 to 5 sentences of 1 to 200 tokens, so that lengths need one and two bytes."""
    generator = np.random.default_rng(seed)
    return [
        [
            generator.integers(0, largest, generator.integers(1, 200)).tolist()
            for _ in range(generator.integers(1, 6))
        ]
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def tokenizer():
    return WordPiece.from_vocabulary(SPELLING)


@pytest.fixture
def corpus(tmp_path, tokenizer):
    return write_corpus(tmp_path / "corpus", documents(), tokenizer, shard_bytes=SMALL_SHARD_BYTES)


def test_what_is_written_is_read(corpus):
    given = documents()
    sentences = [sentence for document in given for sentence in document]
    flat = [token for sentence in sentences for token in sentence]
    assert len(corpus.manifest["shards"]) > 5
    assert corpus.sentence_lengths.tolist() == [len(sentence) for sentence in sentences]
    assert np.diff(corpus.document_starts).tolist() == [len(document) for document in given]
    assert corpus.document_starts[0] == 0 and corpus.token_starts[0] == 0
    assert corpus.token_starts[-1] == len(flat) == corpus.tokens_total
    assert corpus.tokens(0, len(flat)).tolist() == flat
    assert corpus.tokens(0, 0).dtype == np.int32 and len(corpus.tokens(5, 5)) == 0
    generator = np.random.default_rng(1)
    for begin, end in np.sort(generator.integers(0, len(flat), (50, 2)), axis=1):
        assert corpus.tokens(begin, end).tolist() == flat[begin:end]
    with pytest.raises(IndexError):
        corpus.tokens(0, len(flat) + 1)
    corpus.verify()


def test_tensorflow_reads_the_same(corpus):
    import tensorflow as tf

    names = [str(corpus.directory / shard["file"]) for shard in corpus.manifest["shards"]]
    form = {
        "tokens": tf.io.FixedLenFeature((), tf.string),
        "sentence_lengths": tf.io.RaggedFeature(tf.int64),
    }
    read = []
    for record in tf.data.TFRecordDataset(names):  # checks every checksum
        row = tf.io.parse_single_example(record, form)
        ids = tf.io.decode_raw(row["tokens"], tf.uint16).numpy()
        ends = np.cumsum(row["sentence_lengths"].numpy())
        read.append([part.tolist() for part in np.split(ids, ends[:-1])])
    assert read == documents()


def test_large_vocabularies_take_four_bytes(tmp_path):
    assert token_type(2**16) == np.dtype("<u2") and token_type(2**16 + 1) == np.dtype("<u4")
    batch = build_records([[[70_000, 3], [1]]], token_type(100_000))
    begin = int(batch.payloads[0])
    assert np.frombuffer(batch.records, "<u4", 3, begin).tolist() == [70_000, 3, 1]


def test_shards_do_not_depend_on_batches_and_go_on(tmp_path, tokenizer):
    given = documents()
    dtype = token_type(tokenizer.vocabulary_size)

    def files(directory):
        return {path.name: path.read_bytes() for path in directory.glob("*.tfrecord")}

    for name, size in (("one", 1), ("seven", 7), ("all", 60)):
        writer = ShardWriter(tmp_path / name, SMALL_SHARD_BYTES)
        for start in range(0, 60, size):
            batch = given[start : start + size]
            writer.add(build_records(batch, dtype, range(start, start + len(batch))))
        writer.close()
    assert files(tmp_path / "one") == files(tmp_path / "seven") == files(tmp_path / "all")

    broken = ShardWriter(tmp_path / "broken", SMALL_SHARD_BYTES)
    broken.add(build_records(given[:20], dtype))  # the last shard is never finished
    again = ShardWriter(tmp_path / "broken", SMALL_SHARD_BYTES)
    assert 0 < again.next_ordinal < 20
    rest = range(again.next_ordinal, 60)
    again.add(build_records([given[number] for number in rest], dtype, rest))
    again.close()
    assert files(tmp_path / "broken") == files(tmp_path / "all")


def test_words_begin_where_the_vocabulary_says(tmp_path, tokenizer):
    ids = [SPELLING.index(token) for token in ("a", "##b", "c", "##d", "##e", "##f")]
    corpus = write_corpus(tmp_path / "c", [[ids[:4], ids[4:]]], tokenizer)
    assert corpus.word_starts(0, 6).tolist() == [True, False, True, False, True, False]
    assert corpus.word_starts(1, 4).tolist() == [False, True, False]


def test_the_digest_is_of_the_content(tmp_path, tokenizer, corpus):
    same = write_corpus(tmp_path / "b", documents(), tokenizer, {"other": 1}, SMALL_SHARD_BYTES)
    other = write_corpus(tmp_path / "c", documents(seed=1), tokenizer)
    assert same.digest == corpus.digest != other.digest


def test_foreign_and_damaged_directories_are_refused(tmp_path, corpus):
    assert is_corpus(corpus.directory) and not is_corpus(tmp_path)
    assert not is_corpus(tmp_path / "none") and not is_corpus(__file__)
    with pytest.raises(DataError, match="not a prepared corpus.*tfllm prepare"):
        open_corpus(tmp_path)
    with pytest.raises(DataError, match="not a prepared corpus"):
        open_corpus(__file__)
    shard = corpus.directory / corpus.manifest["shards"][1]["file"]
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match="shard-00001.*damaged"):
        open_corpus(corpus.directory).verify()
    shard.write_bytes(content[:-1])
    with pytest.raises(DataError, match=f"{shard.name}: {len(content) - 1} bytes"):
        open_corpus(corpus.directory)
    shard.unlink()
    with pytest.raises(DataError, match="shard-00001.* missing"):
        open_corpus(corpus.directory)
    manifest = corpus.directory / MANIFEST
    for text, message in (
        (json.dumps({**corpus.manifest, "version": 99}), "version 99"),
        ("{}", "not the manifest"), ("{", "not JSON"),
    ):  # fmt: skip
        manifest.write_text(text)
        with pytest.raises(DataError, match=message):
            open_corpus(corpus.directory)
