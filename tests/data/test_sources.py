"""Files to examples: every format, and every fault with its line and next step."""

import gzip
import json

import pytest

from tfllm.data import lines
from tfllm.data.read_settings import ReadSettings
from tfllm.data.sources import read
from tfllm.errors import DataError, MissingExtra, SettingError


def write(tmp_path, name, content):
    path = tmp_path / name
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def rows(path, **options):
    return [
        {k: v for k, v in row.items() if k != "_where"} for row in read(path, **options)
    ]  # fmt: skip


def test_tsv_with_header_columns_and_gzip(tmp_path):
    path = write(tmp_path, "a.tsv.gz", "\ufeffsentence\tlabel\r\ngood \"x\r\n\nbad\n".replace(
        'good "x', 'good "x\t1').replace("bad", "bad\t0"))  # fmt: skip
    got = rows(
        path, columns={"text": "sentence", "label": "label"}, labels={"0": "neg", "1": "pos"}
    )
    assert got == [{"text": 'good "x', "label": "pos"}, {"text": "bad", "label": "neg"}]


def test_where_names_file_and_line(tmp_path):
    path = write(tmp_path, "a.tsv", "text\tlabel\na\t1\n\nb\t0\n")
    assert [row["_where"] for row in read(path)] == [f"{path}:2", f"{path}:4"]


def test_columns_by_index_may_differ_in_number(tmp_path):
    path = write(tmp_path, "sts.csv", "g\t5.0\tA\tB\ng\t3.8\tC\tD\textra\n")
    columns = {"label": 1, "text": 2, "text_pair": 3}
    got = rows(path, format="tsv", columns=columns, header=False)
    assert got[1] == {"label": "3.8", "text": "C", "text_pair": "D"}


def test_csv_with_quotes_and_line_ends_inside(tmp_path):
    path = write(tmp_path, "a.csv", 'text,label\n"a, ""b""\nc",1\nd,0\n')
    assert rows(path)[0]["text"] == 'a, "b"\nc'
    assert [row["_where"].rsplit(":")[-1] for row in read(path)] == ["2", "4"]


def test_jsonl_text_squad_conll(tmp_path):
    assert rows(write(tmp_path, "a.txt", "one\n\ntwo")) == [{"text": "one"}, {"text": "two"}]
    path = write(tmp_path, "a.jsonl", '{"s": "x", "n": 1}\n')
    assert rows(path, columns={"text": "s", "label": "n"}) == [{"text": "x", "label": 1}]
    squad = {"data": [{"paragraphs": [{"context": "C", "qas": [
        {"id": "q1", "question": "Q", "answers": [{"text": "C", "answer_start": 0}]},
        {"id": "q2", "question": "R", "answers": []},
    ]}]}]}  # fmt: skip
    got = rows(write(tmp_path, "a.json", json.dumps(squad)))
    assert got[0]["answers"] == {"text": ["C"], "start": [0]}
    assert got[1]["answers"] == {"text": [], "start": []}
    path = write(tmp_path, "a.conll", "-DOCSTART- X O\n\nAda NNP B-PER\nran VBD O\n\nHi UH O\n")
    assert rows(path) == [
        {"words": ["Ada", "ran"], "tags": ["B-PER", "O"]},
        {"words": ["Hi"], "tags": ["O"]},
    ]
    assert rows(path, columns={"words": 0, "tags": 1})[0]["tags"] == ["NNP", "VBD"]


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["x", "y"], "label": [0, 1]}), path)
    assert rows(path) == [{"text": "x", "label": 0}, {"text": "y", "label": 1}]
    with pytest.raises(DataError, match="not a readable Parquet file"):
        rows(write(tmp_path, "b.parquet", "text"))


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtra, match=r"tfllm\[parquet\]"):
        rows(tmp_path / "a.parquet")


def test_several_labels_in_one_field(tmp_path):
    path = write(tmp_path, "a.tsv", "text\tlabel\nx\ta, b\ny\t\n")
    assert [row["label"] for row in rows(path, label_separator=",")] == [["a", "b"], []]


def test_environment_variables_in_paths(tmp_path, monkeypatch):
    write(tmp_path, "a.txt", "x")
    monkeypatch.setenv("SOME_DATA", str(tmp_path))
    assert rows("${SOME_DATA}/a.txt") == [{"text": "x"}]
    monkeypatch.delenv("SOME_DATA")
    with pytest.raises(DataError, match="export SOME_DATA="):
        rows("${SOME_DATA}/a.txt")


MB10 = b"x" * 10_000_000

FAULTS = {
    "empty": ("a.txt", b"", {}, "the file is empty"),
    "empty gzip": ("a.txt.gz", b"", {}, "the file is empty"),
    "blank lines only": ("a.txt", b"\n\n", {}, "no examples"),
    "header only": ("a.tsv", b"text\tlabel\n", {}, "only a header line"),
    "binary junk": ("a.txt", b"good\n\x00\x01\x02", {}, ":2: this is binary data"),
    "binary without zero": ("a.tsv", b"\x93\xff\xfe", {}, ":1: byte 1 of the line is not UTF-8"),
    "invalid UTF-8": ("a.tsv", b"text\nok\ncaf\xe9\n", {}, ":3: byte 4 of the line is not UTF-8"),
    "10 MB line": ("a.txt", b"short\n" + MB10, {}, ":2: the line is longer than 8 MiB"),
    "10 MB JSON line": ("a.jsonl", b'{"text": "' + MB10 + b'"}', {}, ":1: the line is longer"),
    "10 MB CSV field": ("a.csv", b'text\n"' + MB10 + b'"', {}, ":2: the line is longer"),
    "broken JSON": ("a.jsonl", b'{"text": "a"}\n{"text": "b"', {}, ":2: not JSON"),
    "JSON list": ("a.jsonl", b"[1]\n", {}, ":1: expected an object"),
    "deep JSON": ("a.jsonl", b"[" * 200_000, {}, ":1: the JSON is nested too deeply"),
    "fields": ("a.tsv", b"text\tlabel\na\t1\nb\n", {}, ":3: 1 field, but the header names 2"),
    "open quote": ("a.csv", b'text,label\n"a,1\nb,2\n', {}, ":2: not a row of a quoted table"),
    "twice in header": ("a.tsv", b"text\ttext\na\tb\n", {}, "stands twice"),
    "column": (
        "a.tsv", b"sentence\tlabel\nx\t1\n", {"columns": {"text": "sentense"}},
        ":2: no column 'sentense' for data.columns.text. Did you mean 'sentence'?",
    ),
    "index": ("a.tsv", b"x\t1\n", {"columns": {"text": 5}, "header": False}, ":1: no column '5'"),
    "index with header": ("a.tsv", b"x\ty\na\tb\n", {"columns": {"text": 0}}, "header: false"),
    "no known column": ("a.tsv", b"foo\tbar\nx\t1\n", {}, "Set data.columns"),
    "key": ("a.jsonl", b'{"txt": "a"}', {"columns": {"text": "text"}}, "Did you mean 'txt'?"),
    "label": (
        "a.tsv", b"text\tlabel\nx\t2\n", {"labels": {"0": "no", "1": "yes"}},
        ":2: the label '2' is not in data.labels",
    ),
    "ending": ("a.xyz", b"x", {}, "Set data.format to one of"),
    "squad": ("a.json", b'{"rows": []}', {}, "not SQuAD's JSON"),
    "conll": ("a.conll", b"a B\nc\n", {}, ":2: 1 columns, but the lines before have 2"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_name_file_line_and_next_step(tmp_path, fault):
    name, content, options, message = FAULTS[fault]
    path = write(tmp_path, name, content)
    if fault == "empty gzip":
        assert path.stat().st_size > 0
    with pytest.raises(DataError) as raised:
        rows(path, **options)
    assert message in str(raised.value)
    assert name in str(raised.value)
    assert len(str(raised.value)) < 400


def test_a_missing_file_names_its_neighbours(tmp_path):
    write(tmp_path, "train.tsv", "x")
    with pytest.raises(DataError, match="Did you mean '.*train.tsv'"):
        rows(tmp_path / "trian.tsv")
    with pytest.raises(DataError, match="folder .* does not exist"):
        rows(tmp_path / "no" / "train.tsv")
    with pytest.raises(DataError, match="is a directory"):
        rows(tmp_path, format="text")


def test_broken_gzip(tmp_path):
    whole = gzip.compress(b"some text\n" * 1000)
    for content in (b"plain text", whole[:-20], whole[:20]):
        path = tmp_path / "a.txt.gz"
        path.write_bytes(content)
        with pytest.raises(DataError, match="not a complete gzip file"):
            rows(path)


def test_an_unknown_field_is_a_wrong_setting(tmp_path):
    path = write(tmp_path, "a.tsv", "text\nx\n")
    with pytest.raises(SettingError, match="Did you mean 'text_pair'"):
        rows(path, columns={"text_pairs": "text"})


def test_reading_streams(tmp_path, monkeypatch):
    path = write(tmp_path, "a.txt", "first\n" + "x" * 100 + "\n" + "bad\x00\n")
    monkeypatch.setattr(lines, "LONGEST_LINE_BYTES", 1000)
    assert next(iter(read(path, ReadSettings())))["text"] == "first"


def test_real_files(data):
    sst2 = rows(data / "sst2" / "train.tsv.gz", columns={"text": "sentence", "label": "label"})
    assert len(sst2) == 67349
    columns = {"label": 4, "text": 5, "text_pair": 6}
    sts = rows(data / "stsb" / "sts-train.csv.gz", format="tsv", columns=columns, header=False)
    assert len(sts) == 5749
    mrpc = {"label": "Quality", "text": "#1 String", "text_pair": "#2 String"}
    assert len(rows(data / "mrpc" / "msr_paraphrase_train.tsv.gz", columns=mrpc)) == 4076
    assert len(rows(data / "squad" / "squad_v1_train_17titles.json.gz")) == 3939


def test_plain_text_by_line_paragraph_and_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("one\ntwo\n\n \nthree\n", encoding="utf-8")

    def texts(format):
        return [(e["text"], e["_where"].rpartition(":")[2]) for e in read(path, format=format)]

    assert texts("text") == [("one", "1"), ("two", "2"), ("three", "5")]
    assert texts("paragraphs") == [("one\ntwo", "1"), ("three", "5")]
    assert texts("document") == [("one\ntwo\n\n \nthree\n", "1")]


def test_dialogues(tmp_path):
    path = tmp_path / "d.txt"
    path.write_text("Hi . __eou__ Hello ! __eou__ Bye . __eou__\t1\t2 2\n\n")
    (example,) = read(path, format="dialogues")
    assert [m["role"] for m in example["messages"]] == ["user", "assistant", "user"]
    assert [m["content"] for m in example["messages"]] == ["Hi .", "Hello !", "Bye ."]


class Noting(lines.ReadErrorPolicy):
    """Goes on after faults and keeps them."""

    def __init__(self):
        self.faults = []

    def report(self, error):
        self.faults.append(str(error))


LONG = b"y" * (lines.LONGEST_LINE_BYTES * 2 + 5)
BAD_LINES = {
    "text": ("a.txt", b"one\n\xff\ntwo\n\x00\n" + LONG + b"\nthree\n", [2, 4, 5]),
    "jsonl": (
        "a.jsonl",
        b'{"text": "one"}\n{"text"\n{"text": "two"}\n[]\n{"txt": "x"}\n{"text": "three"}\n',
        [2, 4, 5],
    ),
    "tsv": ("a.tsv", b"text\tlabel\none\t1\nx\ntwo\t1\n\xff\t1\nthree\t1", [3, 5]),
    "csv": (
        "a.csv.gz", b'text,label\none,1\nx\n"two",1\n\xff,1\n"a"b,1\nthree,1\n"open,1\nx,2\n',
        [3, 5, 6, 8],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_watch_goes_on_after_lines_that_cannot_be_used(name, tmp_path):
    file, content, numbers = BAD_LINES[name]
    path, errors = write(tmp_path, file, content), Noting()
    assert [row["text"] for row in read(path, errors=errors)] == ["one", "two", "three"]
    assert [fault.split(": ")[0] for fault in errors.faults] == [f"{path}:{n}" for n in numbers]


def test_the_file_under_an_archive_says_how_far_the_reading_is(tmp_path):
    path = write(tmp_path, "a.txt.gz", "x\n" * 100_000)
    opened = {}
    errors = Noting()
    errors.on_open = lambda path, file: opened.update({path: file})
    reading = read(path, errors=errors)
    next(reading)
    assert 0 < opened[path].tell() <= path.stat().st_size


def test_a_field_inside_a_field(tmp_path):
    path = write(
        tmp_path, "a.jsonl", '{"translation": {"en": "x", "hau": "y"}}\n{"translation": 1}'
    )
    errors = Noting()
    assert rows(path, columns={"text": "translation.hau"}, errors=errors) == [{"text": "y"}]
    assert "no column 'translation.hau'" in errors.faults[0]


def test_rows_without_content_are_skipped_and_counted(tmp_path, caplog):
    path = write(tmp_path, "a.csv", "text,label\ngood,pos\n,\nbad,neg\n, ,\n,\n")
    assert [row["label"] for row in rows(path)] == ["pos", "neg"]
    assert f"{path}: skipped 3 rows without content, the first in line 3." in caplog.text
    path = write(tmp_path, "b.csv", "good,pos\n,\n")
    assert len(rows(path, columns={"text": 0, "label": 1}, header=False)) == 1
    with pytest.raises(DataError, match="no examples"):
        rows(write(tmp_path, "c.csv", "text,label\n,\n,\n"))


def test_blanks_around_header_names_are_around_fields_too(tmp_path):
    path = write(tmp_path, "a.csv", 'text, label\n"a, b", pos\nc, "neg, or so"\n')
    assert rows(path) == [{"text": "a, b", "label": "pos"}, {"text": "c", "label": "neg, or so"}]
    path = write(tmp_path, "a.tsv", "text \tlabel\n a \tpos\n")
    assert rows(path) == [{"text": "a", "label": "pos"}]
    path = write(tmp_path, "b.tsv", "text\tlabel\n a \tpos\n")  # the header has none: text
    assert rows(path) == [{"text": " a ", "label": "pos"}]


def test_columns_without_a_name_are_left_out(tmp_path):
    path = write(tmp_path, "a.csv", ",text,label,,\n0,a,pos,,\n1,b,neg,,\n")
    assert rows(path) == [{"text": "a", "label": "pos"}, {"text": "b", "label": "neg"}]


REPEATED = {
    "csv": "text,label,text\na,pos,b\n",
    "tsv": "text\tlabel\ttext\na\tpos\tb\n",
    "jsonl": '{"text": "a", "label": "pos", "text": "b"}\n',
}


@pytest.mark.parametrize("format", REPEATED)
def test_a_column_that_stands_twice_is_a_fault_in_every_format(format, tmp_path):
    with pytest.raises(DataError, match="'text' stands twice"):
        rows(write(tmp_path, f"a.{format}", REPEATED[format]))


def test_a_column_that_stands_twice_in_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, names=["text", "text"])
    parquet.write_table(table, path)
    with pytest.raises(DataError, match="'text' stands twice"):
        rows(path)


ANSWERS = {
    "Hugging Face": {"text": ["C", "C"], "answer_start": [0, 4]},
    "ours": {"text": ["C", "C"], "start": [0, 4]},
    "SQuAD": [{"text": "C", "answer_start": 0}, {"text": "C", "answer_start": 4}],
}


@pytest.mark.parametrize("layout", ANSWERS)
@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_answers_have_one_layout_whatever_the_file_has(format, layout, tmp_path):
    row = {"question": "Q", "context": "C = C", "answers": ANSWERS[layout]}
    path = tmp_path / f"a.{format}"
    if format == "jsonl":
        path.write_text(json.dumps(row))
    else:
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist([row]), path)
    assert rows(path)[0]["answers"] == {"text": ["C", "C"], "start": [0, 4]}


CHINESE = (
    "text\tlabel\n这家酒店的服务态度非常好，下次还会来住。\t1\n房间有点小，隔音也不太好。\t0\n"
)
OTHER_ENCODINGS = {
    "gb18030": (CHINESE, "GB18030"),
    "big5": ("這家飯店的服務態度非常好，下次還會來住。\n", "BIG5"),
    "shift_jis": ("このホテルはとても良かったです。また来たいと思います。\n", "CP932"),
    "euc_kr": ("이 호텔은 정말 좋았습니다. 다음에도 오고 싶어요.\n", "CP949"),
    "cp1251": ("Этот отель очень хороший, мы обязательно вернёмся сюда.\n", "WINDOWS-1251"),
    "cp1252": ("Le café était très bon, les serveurs étaient agréables.\n", "WINDOWS-1252"),
    "utf-16": (CHINESE, "UTF-16"),
    "utf-16-le": ("text\tlabel\ngood\t1\nbad\t0\n", "UTF-16LE"),
    "utf-16-be": ("text\tlabel\ngood\t1\nbad\t0\n", "UTF-16BE"),
}


@pytest.mark.parametrize("encoding", OTHER_ENCODINGS)
@pytest.mark.parametrize("name", ["a.tsv", "a.tsv.gz", "a.json", "a.txt"])
def test_another_encoding_is_named(name, encoding, tmp_path):
    text, iconv_name = OTHER_ENCODINGS[encoding]
    with pytest.raises(DataError) as error:
        rows(write(tmp_path, name, text.encode(encoding)))
    assert f"iconv -f {iconv_name} -t UTF-8 FILE > NEW" in str(error.value)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.txt", "a.jsonl"])
def test_lines_that_end_in_a_carriage_return_alone_are_named(name, tmp_path):
    with pytest.raises(DataError, match="carriage return alone"):
        rows(write(tmp_path, name, b'text,label\r"a",pos\r"b",neg\r'))


def test_a_file_of_one_column_has_words_and_no_tags(tmp_path):
    path = write(tmp_path, "a.conll", "Ada\nran\n\nHi\n")
    assert rows(path) == [{"words": ["Ada", "ran"]}, {"words": ["Hi"]}]


def test_label_names_are_known_by_the_value_of_a_number(tmp_path):
    path = write(tmp_path, "a.csv", "text,label\nx,1.0\ny,0\n")
    assert [row["label"] for row in rows(path, labels={"0": "neg", "1": "pos"})] == ["pos", "neg"]
