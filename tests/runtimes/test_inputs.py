"""Inputs to answer: forms that are read, and faults that name file and line."""

import gzip
import io
import sys

import pytest

from tfllm.data.read_settings import ReadSettings
from tfllm.errors import DataError
from tfllm.runtimes.inputs import check_examples, parse_texts, read_inputs
from tfllm.tasks import Classification, Embedding, QuestionAnswering, TokenClassification


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def texts(path, **settings):
    return [example["text"] for example in read_inputs(path, ReadSettings(**settings))]


def test_plain_text_keeps_blank_lines(tmp_path):
    path = write(tmp_path, "in.txt", "\ufeffone\n\n三\r\nfour")
    assert texts(path) == ["one", "", "三", "four"]
    assert [example["_where"] for example in read_inputs(path)][-1] == f"{path}:4"


def test_json_lines_by_ending_or_by_look(tmp_path):
    line = '{"text": "a", "text_pair": "b", "label": "gold"}\n'
    for name in ("in.jsonl", "in.data", "in"):
        (example,) = read_inputs(write(tmp_path, name, line))
        assert {k: v for k, v in example.items() if k != "_where"} == {
            "text": "a",
            "text_pair": "b",
        }
    path = tmp_path / "in.jsonl.gz"
    path.write_bytes(gzip.compress(line.encode()))
    assert texts(str(path)) == ["a"]


def test_a_table_with_named_columns(tmp_path):
    path = write(tmp_path, "in.tsv", "sentence\tlabel\ngood\t1\n")
    assert texts(path, columns={"text": "sentence"}) == ["good"]


def test_gold_columns_need_not_be_there(tmp_path):
    path = write(tmp_path, "in.tsv", "sentence\tother\ngood\t1\n")
    columns = {"text": "sentence", "label": "gold"}
    assert texts(path, columns=columns, labels={"0": "bad"}) == ["good"]


def test_format_can_be_said(tmp_path):
    path = write(tmp_path, "in.jsonl", '{"text": 1\n')
    assert texts(path, format="text") == ['{"text": 1']


@pytest.mark.parametrize(
    ("given", "expected"),
    [("a\n\nb\n", ["a", "", "b"]), ('  {"text": "x"}\n{"text": "y"}\n', ["x", "y"])],
)
def test_standard_input(monkeypatch, given, expected):
    raw = io.BufferedReader(io.BytesIO(given.encode()))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(raw))
    assert texts("-") == expected


def test_arguments():
    given = list(parse_texts(["plain", '{"question": "q", "context": "c"}', "{ not json"]))
    assert [{k: v for k, v in g.items() if k != "_where"} for g in given] == [
        {"text": "plain"}, {"question": "q", "context": "c"}, {"text": "{ not json"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("in.txt", b"", "empty"),
        ("in.txt", b"good\nb\xe9d\n", "in.txt:2: byte 2 of the line is not UTF-8"),
        ("in.txt", b"a\x00b\n", "in.txt:1: this is binary data"),
        ("in.txt", b"a" * (10 * 2**20), "in.txt:1: the line is longer than"),
        ("in.jsonl", b'{"text": "a"}\n{"text": \n', "in.jsonl:2: not JSON"),
        ("in.jsonl", b'["text"]\n', "in.jsonl:1: expected an object"),
        ("in.json.gz", b"no archive", "not a complete gzip file"),
    ],
)
def test_faults_name_file_and_line(tmp_path, name, content, said):
    with pytest.raises(DataError) as error:
        list(read_inputs(write(tmp_path, name, content)))
    assert said in str(error.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match="There is no data file"):
        list(read_inputs(str(tmp_path / "none.txt")))


@pytest.mark.parametrize(
    ("task", "example", "said"),
    [
        (Classification(labels=("a", "b")), {"words": ["x"]}, "f:1: the field 'text' is missing"),
        (Classification(labels=("a", "b")), {"text": 3}, "'text' is not a text"),
        (Classification(labels=("a", "b"), pair=True), {"text": "x"}, "'text_pair' is missing"),
        (QuestionAnswering(), {"text": "x"}, "'question' is missing.* 'question' and 'context'"),
        (TokenClassification(labels=("O",)), {"words": "x y"}, "not a list of words"),
        (Embedding(), {"text": "a\ud800"}, "half of a surrogate pair"),
        (Embedding(), {"text": None}, "'text' is missing"),
    ],
)
def test_a_missing_field_is_named(task, example, said):
    with pytest.raises(DataError, match=said):
        list(check_examples([{**example, "_where": "f:1"}], task))


def test_words_or_text_serve_a_tagger():
    examples = [{"words": ["a", "b"]}, {"text": "a b"}]
    assert list(check_examples(examples, TokenClassification(labels=("O",)))) == examples
