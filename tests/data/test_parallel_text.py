"""Two files whose lines belong together, and their faults."""

import gzip

import pytest

from tfllm import config
from tfllm.data.parallel_text import pair_of
from tfllm.data.settings import DataSettings, train_examples, validation_examples
from tfllm.data.sources import format_of, read
from tfllm.errors import DataError


def write(folder, source="a b\nc\n", target="x\ny z\n"):
    (folder / "train.en").write_bytes(source if isinstance(source, bytes) else source.encode())
    (folder / "train.de.gz").write_bytes(gzip.compress(target.encode()))
    return str(folder / "train.{en,de.gz}")


def test_braces_name_two_files():
    assert pair_of("d/train.{en,de}.gz") == ("d/train.en.gz", "d/train.de.gz")
    assert pair_of("{a/x.txt,b/y.txt}") == ("a/x.txt", "b/y.txt")
    assert pair_of("${TFLLM_DATA}/v.{en,de}") == ("${TFLLM_DATA}/v.en", "${TFLLM_DATA}/v.de")
    for single in ("train.en", "${TFLLM_DATA}/train.en", "a{b}c", "{a,b}.{c,d}"):
        assert pair_of(single) is None
    assert format_of("train.{en,de}.gz") == "parallel"


def test_lines_belong_together(tmp_path):
    path = write(tmp_path, "a b\r\n\nc\n\n", "x\n\ny z\n-\n")
    assert list(read(path)) == [
        {"source": "a b", "target": "x", "_where": f"{path}:1"},
        {"source": "c", "target": "y z", "_where": f"{path}:3"},
        {"source": "", "target": "-", "_where": f"{path}:4"},
    ]


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("a\nb\nc\n", "x\n", r"train\.en has 3 lines and .*train\.de\.gz has 1: "),
        ("a\n", "x\ny\nz\n", r"train\.en has 1 lines and .*train\.de\.gz has 3: "),
        (b"a\n\xff\n", "x\ny\n", r"train\.en:2: byte 1 of the line is not UTF-8"),
        ("", "x\n", r"train\.en.*the file is empty"),
    ],
)
def test_files_that_do_not_fit(tmp_path, source, target, message):
    with pytest.raises(DataError, match=message):
        list(read(write(tmp_path, source, target)))


def test_one_file_is_no_pair(tmp_path):
    with pytest.raises(DataError, match=r"train\.\{en,de\}\.gz"):
        list(read(tmp_path / "train.en", format="parallel"))


def test_nested_columns_and_further_files(tmp_path):
    lines = '{"translation": {"en": "one", "hau": "ɗaya"}}\n{"translation": {"en": "two"}}\n'
    (tmp_path / "a.json").write_text(lines.splitlines()[0] + "\n")
    (tmp_path / "b.json").write_text(lines)
    main = {"source": "translation.en", "target": "translation.hau"}
    more = {"train": str(tmp_path / "a.json"), "format": "jsonl", "prefix": ">>en<< ",
            "columns": {"source": "translation.hau", "target": "translation.en"}}  # fmt: skip
    settings = config.build(
        {"train": str(tmp_path / "a.json"), "format": "jsonl", "columns": main, "more": [more],
         "validation_share": 0.0001},
        DataSettings,
    )  # fmt: skip
    first, second = train_examples(settings)
    assert (first["source"], first["target"]) == ("one", "ɗaya") and "prefix" not in first
    assert (second["source"], second["target"], second["prefix"]) == ("ɗaya", "one", ">>en<< ")
    with pytest.raises(DataError, match=r"b\.json:2: no column 'translation.hau' for .*target"):
        list(read(tmp_path / "b.json", format="jsonl", columns=main))


def test_what_is_held_out_depends_on_the_source(tmp_path):
    lines = "".join(f"{number % 50}\tw{number}\n" for number in range(100))
    (tmp_path / "a.tsv").write_text(lines)
    settings = config.build(
        {"train": str(tmp_path / "a.tsv"), "header": False, "validation_share": 0.3,
         "columns": {"source": 0, "target": 1}},
        DataSettings,
    )  # fmt: skip
    train, held = train_examples(settings), validation_examples(settings)
    assert len(train) + len(held) == 100 and train and held
    assert not {e["source"] for e in train} & {e["source"] for e in held}
