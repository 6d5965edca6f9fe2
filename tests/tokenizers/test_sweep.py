"""Every Unicode code point, and every line of the real data: no difference at all."""

import functools
import shutil

import pytest
import tensorflow as tf
from tokenizers import normalizers, pre_tokenizers

from tests.helpers.tiny_tokenizers import graph as small_graph
from tests.helpers.tiny_tokenizers import tokenizer as small
from tfllm.tokenizers.bert_normalization import BertNormalization
from tfllm.tokenizers.graph.bert_pre_tokenizer import BertWordSplitter
from tfllm.tokenizers.graph.codepoint_tables import CODE_POINTS, SURROGATES, reference_table
from tfllm.tokenizers.loading import load_tokenizer
from tfllm.tokenizers.parity_check import check_file
from tfllm.tokenizers.wordpiece import WordPiece

KINDS = ("uncased", "cased", "chinese")
SETS = (
    "sst2",
    "imdb",
    "squad",
    "drcd",
    "cmrc2018",
    "chnsenticorp",
    "tnews",
    "lafand_mt",
    "multi30k",
)
SAMPLE = (
    "sst2/dev.tsv",
    "multi30k/val.de.gz",
    "chnsenticorp/dev_carved.tsv.gz",
    "lafand_mt/en-yor.dev.json.gz",
)
CHUNK = 8192

NORMALIZATIONS = [
    BertNormalization(),
    BertNormalization(lowercase=False),
    BertNormalization(strip_accents=False),
    BertNormalization(lowercase=False, strip_accents=True),
    BertNormalization(chinese_characters=False),
    BertNormalization(clean_text=False),
]


def differing(normalization, points, form):
    """Code points whose words differ, as the words themselves: no unknown token hides anything."""
    split = BertWordSplitter(reference_table(normalization))
    normalizer = normalizers.BertNormalizer(
        clean_text=normalization.clean_text,
        handle_chinese_chars=normalization.chinese_characters,
        strip_accents=normalization.strip_accents,
        lowercase=normalization.lowercase,
    )
    words = pre_tokenizers.BertPreTokenizer()
    found = []
    for begin in range(0, len(points), CHUNK):
        chunk = points[begin : begin + CHUNK]
        texts = [form.format(chr(point)) for point in chunk]
        result = split(tf.constant(texts))
        got = tf.RaggedTensor.from_row_splits(result.strings, result.splits).to_list()
        for point, text, row in zip(chunk, texts, got, strict=True):
            normal = normalizer.normalize_str(text)
            if [word.decode() for word in row] != [w for w, _ in words.pre_tokenize_str(normal)]:
                found.append(hex(point))
    return found


EVERY = [point for point in range(CODE_POINTS) if point not in SURROGATES]


@pytest.mark.parametrize("normalization", NORMALIZATIONS, ids=str)
def test_some_code_points(normalization):
    points = [
        *range(0x400),
        *EVERY[0x400::199],
        *range(0xFFFF0, 0x10000),
        *range(0x10FFF0, 0x110000),
    ]
    assert differing(normalization, points, "x{}y") == []


@pytest.mark.slow
@pytest.mark.parametrize("normalization", NORMALIZATIONS, ids=str)
def test_every_code_point(normalization):
    assert differing(normalization, EVERY, "x{}y") == []


@pytest.mark.slow
@pytest.mark.parametrize("form", ["{}", "{}\u0301\u0323", "\u1baa{}"])
def test_every_code_point_alone_and_among_marks(form):
    assert differing(BertNormalization(), EVERY, form) == []


def real_tokenizer(data, kind, folder):
    shutil.copy(data / "tokenizers" / f"bert_base_{kind}_vocab.txt", folder / "vocab.txt")
    tokenizer = load_tokenizer(folder)
    return (
        WordPiece.from_vocabulary(tokenizer.vocabulary, lowercase=False)
        if kind == "cased"
        else tokenizer
    )


def assert_no_difference(data, kind, folder, paths):
    tokenizer = real_tokenizer(data, kind, folder)
    graph = tokenizer.graph()
    for path in paths:
        report = check_file(path, tokenizer, graph)
        assert report.lines > 0
        assert report.examples == [], path


@pytest.mark.parametrize("kind", KINDS)
def test_lines_of_real_data(data, kind, tmp_path):
    assert_no_difference(data, kind, tmp_path, [data / name for name in SAMPLE])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_line_of_real_data(data, kind, tmp_path):
    paths = [path for name in SETS for path in sorted((data / name).iterdir())]
    assert_no_difference(data, kind, tmp_path, paths)


# Vocabulary in tokenizers/ -> code points whose ids differ between Python and graph, as `xCy`.
# NFC of newer Unicode versions in the `tokenizers` package than in tf-text.
DECODERS = {
    "gpt2_hf_tokenizer.json": 0,
    "gptneox_20B_tokenizer.json": 0,
    "t5_tokenizer_base.model": 0,
    "llama2_tokenizer.model": 0,
    "albert_v1_spiece.model": 0,
}
DECODER_SAMPLE = ("wikitext2/valid.tokens.txt.gz", "dailydialog_x/zh_dev_human.txt.gz")
DECODER_SETS = (
    "wikitext2",
    "tinyshakespeare",
    "imdb",
    "chinese_poetry",
    "tatoeba_cmn_eng",
    "kdconv",
    "dailydialog_x",
)


@functools.cache
def decoder(data, name):
    tokenizer = load_tokenizer(data / "tokenizers" / name)
    return tokenizer, tokenizer.graph()


def differing_ids(tokenizer, graph, points, form):
    found = []
    for begin in range(0, len(points), CHUNK):
        chunk = points[begin : begin + CHUNK]
        texts = [form.format(chr(point)) for point in chunk]
        rows = tokenizer.encode_ids(texts, add_special_tokens=False)
        ids = graph.tokenize(tf.constant(texts))
        written = [text.decode() for text in graph.detokenize(ids).numpy()]
        for point, expected, row, text in zip(chunk, rows, ids.to_list(), written, strict=True):
            if expected != row or text != tokenizer.decode(row):
                found.append(hex(point))
    return found


@pytest.mark.parametrize("name", ["gpt2", "llama3", "smollm2", "characters, unknown", "bpe"])
def test_some_code_points_of_decoders(name):
    points = [*range(0x400), *EVERY[0x400::499], *range(0xFFFF0, 0x10000)]
    assert differing_ids(small(name), small_graph(name), points, "x {}\u0301y") == []


@pytest.mark.slow
@pytest.mark.parametrize("form", ["x{}y", "{}", " {} 's"])
@pytest.mark.parametrize("name", DECODERS)
def test_every_code_point_of_decoders(data, name, form):
    assert len(differing_ids(*decoder(data, name), EVERY, form)) == DECODERS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2_hf_tokenizer.json", "llama2_tokenizer.model"])
def test_lines_of_real_data_with_decoders(data, name):
    for path in DECODER_SAMPLE:
        report = check_file(data / path, *decoder(data, name))
        assert report.lines > 0 and report.examples == [], path


@pytest.mark.slow
@pytest.mark.parametrize("name", DECODERS)
def test_every_line_of_real_data_with_decoders(data, name):
    for path in (path for folder in DECODER_SETS for path in sorted((data / folder).iterdir())):
        report = check_file(path, *decoder(data, name))
        assert report.lines > 0 and report.examples == [], path
