"""Texts to a corpus: what is in it, what is left out, the same bytes after every interruption."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers.vocabularies import SPELLING
from tfllm.data.corpora import lengths, preparation, shards
from tfllm.data.corpora.corpus import open_corpus
from tfllm.data.corpora.document_encoding import BulkEncoder
from tfllm.data.corpora.preparation import CorpusJob, build_corpus, validation_job
from tfllm.data.corpora.settings import PrepareSettings
from tfllm.data.read_settings import ReadSettings
from tfllm.errors import DataError, SettingError, StorageError
from tfllm.tokenizers.train import TrainerOptions, train_tokenizer
from tfllm.tokenizers.wordpiece import WordPiece

TOKENIZER = WordPiece.from_vocabulary(SPELLING)


@pytest.fixture(autouse=True)
def no_picture(request, monkeypatch):
    """Drawing takes longer than all else."""
    if "lengths" not in request.node.name:
        monkeypatch.setattr(lengths, "draw", lambda counted, path: path.write_bytes(b"drawn"))


def job(*paths, reading=None, cut="punctuation", limit=None, share=None, **settings):
    paths = tuple(map(str, paths))
    prepare = PrepareSettings(**settings)
    return CorpusJob(paths, reading or ReadSettings(), prepare, cut, limit, share)


def made(given, output, workers=1, validation=None, tokenizer=TOKENIZER):
    build_corpus(given, validation, output, lambda _: tokenizer, {"kind": "tiny"}, workers=workers)
    return open_corpus(output)


def read(corpus, tokenizer=TOKENIZER):
    """The corpus as documents of sentences of text."""
    found = []
    for first, last in zip(corpus.document_starts, corpus.document_starts[1:], strict=False):
        places = corpus.token_starts[first : last + 1]
        found.append([
            tokenizer.decode(corpus.tokens(a, b)) for a, b in zip(places, places[1:], strict=False)
        ])  # fmt: skip
    return found


def write(tmp_path, name, content):
    path = tmp_path / name
    raw = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return path


@pytest.fixture
def many(tmp_path):
    """Enough documents for several shards of a tiny size."""
    lines = [f"text number {n}. it has two sentences! Really." for n in range(3000)]
    return write(tmp_path, "many.txt", "\n".join(lines))


SHAPES = {
    "a line": ("a.txt", "One two. Three.\nfour\n\n", {}, [["one two.", "three."], ["four"]]),
    "blank lines": (
        "a.txt", "One\nTwo. Three\n\n \nfour\n", {"format": "paragraphs"},
        [["one", "two.", "three"], ["four"]],
    ),
    "a file": ("a.txt.gz", "one\n\ntwo\n", {"format": "document"}, [["one", "two"]]),
    "headings": (
        "a.txt", "= A =\n\none.\n= B =\ntwo.\n", {"document_start": "^= .* =$"},
        [["= a =", "one."], ["= b =", "two."]],
    ),
    "JSON lines": (
        "a.jsonl.gz", '{"poem": ["one", "two"]}\n{"poem": "three"}\n',
        {"columns": {"text": "poem"}}, [["one", "two"], ["three"]],
    ),
    "TSV": ("a.tsv", "label\ttext\n1\tone. Two.\n", {}, [["one.", "two."]]),
    "lines": ("a.txt", "One. Two.\n\nB.", {"format": "document", "cut": "lines"},
              [["one. two.", "b."]]),
    "none": ("a.txt", "One. Two.\nB.\n", {"cut": "none"}, [["one. two."], ["b."]]),
    "wrapped": (
        "a.txt", "One\ntwo. Three\nfour\n", {"format": "document", "join_lines": True},
        [["one two.", "three four"]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_documents_and_sentences(name, tmp_path):
    file, content, options, expected = SHAPES[name]
    options = dict(options)
    reading = ReadSettings(**{k: options.pop(k) for k in ("format", "columns") if k in options})
    given = job(write(tmp_path, file, content), reading=reading, **options)
    spaced = [[" ".join(TOKENIZER.decode(TOKENIZER.encode(s).ids).split()) for s in document]
              for document in expected]  # fmt: skip
    if name == "lines":
        spaced = [[TOKENIZER.decode(TOKENIZER.encode(s).ids) for s in ("One. Two.", "B.")]]
    assert read(made(given, tmp_path / "out")) == spaced


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"body": ["one", None, "two"], "x": [1, 2, 3]}), path)
    given = job(path, reading=ReadSettings(columns={"text": "body"}))
    assert read(made(given, tmp_path / "out")) == [["one"], ["two"]]
    bad = json.loads((tmp_path / "out" / "rejected.jsonl").read_text())
    assert bad["line"] == "row 2" and "NoneType" in bad["why"]


def test_long_documents_are_divided_and_short_ones_left_out(tmp_path):
    path = write(tmp_path, "a.txt", "ab " * 2000 + "\nshort\n" + "x" * 2500)
    given = job(
        path, cut="none", longest_characters=1000, shortest_characters=10, duplicates="keep"
    )
    corpus = made(given, tmp_path / "out")
    documents = read(corpus)
    assert len(documents) == 6 + 3 and max(len(d[0]) for d in documents) <= 1000
    words = " ".join(d[0] for d in documents[:6]).split()
    assert set(words) == {"ab"} and 2000 - 3 <= len(words) < 2000  # the last part is short, too
    assert corpus.manifest["read"]["short"] == 2


def test_bad_lines_are_listed(tmp_path):
    a = write(tmp_path, "a.jsonl", '{"text": "one"}\n{"text"\n\xff\n{"text": 5}\n{"text": "two"}\n'
              .encode("latin-1"))  # fmt: skip
    b = write(tmp_path, "b.jsonl", "")
    corpus = made(job(a, b, max_bad_lines=4), tmp_path / "out")
    assert len(read(corpus)) == 2 and corpus.manifest["read"]["bad_lines"] == 4
    rows = [json.loads(row) for row in (tmp_path / "out" / "rejected.jsonl").open()]
    assert [(row["file"], row["line"]) for row in rows] == [
        (str(a), 2), (str(a), 3), (str(a), 4), (str(b), None),
    ]  # fmt: skip
    assert "not JSON" in rows[0]["why"] and "empty" in rows[3]["why"]
    with pytest.raises(
        DataError, match="a.jsonl:4.*bad line 3, and data.prepare.max_bad_lines is 2"
    ):
        made(job(a, b, max_bad_lines=2), tmp_path / "two")
    with pytest.raises(DataError, match="a.jsonl:2: not JSON"):
        made(job(a, b, max_bad_lines=0), tmp_path / "three")
    assert not list(tmp_path.glob("t*"))


def test_nothing_left_is_an_error(tmp_path):
    path = write(tmp_path, "a.jsonl", "x\ny\n")
    with pytest.raises(DataError, match="no documents are left .2 bad lines.*a.jsonl:1: not JSON"):
        made(job(path), tmp_path / "out")
    with pytest.raises(DataError, match="There is no data file"):
        made(job(tmp_path / "none.txt"), tmp_path / "out")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.jsonl"]


def test_held_out_documents_are_a_corpus_of_their_own(tmp_path, many):
    train = job(many, share=0.1, duplicates="near")
    corpus = made(train, tmp_path / "out", validation=validation_job(train, None))
    other = open_corpus(tmp_path / "out" / "validation")
    count = len(other.document_starts) - 1
    assert 0 < count < 600
    assert corpus.manifest["read"]["held_out"] == other.manifest["documents"] == count
    assert {d[0] for d in read(other)} & {d[0] for d in read(corpus)} == set()
    assert other.manifest["tokenizer"]["digest"] == corpus.manifest["tokenizer"]["digest"]


def content(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*")) if path.is_file()
    }  # fmt: skip


@pytest.fixture
def small_steps(monkeypatch):
    """Small batches, parts and shards, so that a small corpus has many of them."""
    monkeypatch.setattr(preparation, "BATCH_CHARACTERS", 2000)
    monkeypatch.setattr(preparation, "ShardWriter", lambda work, _: shards.ShardWriter(work, 9000))
    monkeypatch.setattr(preparation.deduplication, "PART_DOCUMENTS", 300)


class Killed(BaseException):
    pass


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(tmp_path, many, small_steps, monkeypatch):
    """Stopped before a file gets its name, at places in every stage."""
    given = job(many, duplicates="near", similarity=0.95, limit=1500)
    real = os.replace
    replaced, last = [], [None]

    def stopping(source, target):
        if len(replaced) == last[0]:
            raise Killed
        replaced.append(target)
        real(source, target)

    monkeypatch.setattr(os, "replace", stopping)
    whole = made(given, tmp_path / "whole")
    assert len(whole.manifest["shards"]) > 8
    count = len(replaced)
    for last[0] in (1, count // 4, count // 2, count - 9, count - 1):
        replaced.clear()
        output = tmp_path / f"stopped-{last[0]}"
        with pytest.raises(Killed):
            made(given, output)
        assert not output.exists()
        replaced.clear()
        last[0] = None
        made(given, output)
        assert content(output) == content(tmp_path / "whole")


def test_other_settings_do_not_go_on(tmp_path, many, monkeypatch):
    monkeypatch.setattr(preparation, "finish", lambda *_, **__: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        made(job(many), tmp_path / "out")
    with pytest.raises(StorageError, match="train.shortest_characters is 5, but .* begun with 1"):
        made(job(many, shortest_characters=5), tmp_path / "out")
    many.write_text("changed\n")
    with pytest.raises(StorageError, match="sources.*many.txt is '8 bytes"):
        made(job(many), tmp_path / "out")


def test_an_output_that_stands_is_kept(tmp_path, many):
    made(job(many, limit=5), tmp_path / "out")
    with pytest.raises(StorageError, match="is a prepared corpus already"):
        made(job(many), tmp_path / "out")
    (tmp_path / "full").mkdir()
    write(tmp_path / "full", "x", "y")
    with pytest.raises(StorageError, match="exists"):
        made(job(many), tmp_path / "full")


def test_a_full_disk_keeps_what_is_finished(tmp_path, many, small_steps, monkeypatch):
    real = shards.ShardWriter._write

    def full(self, records):
        if len(self.finished) == 3:
            raise OSError(28, "No space left on device", str(tmp_path / "out"))
        real(self, records)

    monkeypatch.setattr(shards.ShardWriter, "_write", full)
    with pytest.raises(StorageError, match="No space left on device.*run the same command again"):
        made(job(many), tmp_path / "out")
    left = sorted(path.name for path in (tmp_path / "out.unfinished").glob("*shard*.tfrecord*"))
    assert left == [f"shard-0000{n}.tfrecord" for n in range(3)]


def test_processes_give_the_same_and_end_with_their_parent(tmp_path, many):
    """Two runs in a script: one with three workers, and one that is killed while they work."""
    script = write(tmp_path, "script.py", SCRIPT)
    run = [sys.executable, str(script), str(many), str(tmp_path)]
    subprocess.run([*run, "whole"], check=True, timeout=120)
    made(job(many), tmp_path / "alone")
    assert content(tmp_path / "whole") == content(tmp_path / "alone")
    process = subprocess.Popen([*run, "hang"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
    assert len(set(pids)) == 3
    deadline = time.monotonic() + 30
    while any(os.path.exists(f"/proc/{pid}/exe") for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}/exe")]


SCRIPT = """
import os, sys, time
from pathlib import Path

sys.path.insert(0, os.getcwd())

def nothing():
    pass

def own(seconds):
    time.sleep(seconds)
    return os.getpid()

if __name__ == "__main__":
    from tests.data.corpora.test_preparation import job, made
    from tfllm.data.corpora import lengths, preparation, process_pool
    lengths.draw = lambda counted, path: path.write_bytes(b"drawn")
    many, folder, what = sys.argv[1:]
    if what == "whole":
        preparation.SMALL_BYTES = 0
        preparation.BATCH_CHARACTERS = 2000
        made(job(many), Path(folder) / "whole", workers=3)
    else:
        with process_pool.worker_pool(3, nothing, ()) as ordered:
            list(ordered(own, [0.5] * 3 + [0.2] * 9))
            print(*pids, flush=True) if (pids := {*ordered(own, [0.3] * 9)}) else None
            list(ordered(own, [60] * 9))
"""


def test_words_are_encoded_as_in_their_sentences():
    generated = [
        "a  b c", " lead", "trail ", "", "tab\there", "x\x1cy z\x1f", "é e\u0301 \u0301a",
        "[MASK] a[SEP]b",
        "中文 mixed 字 a", "it's 3.14, no?", "word " * 50, "\u00a0nbsp\u3000wide", "x" * 150,
    ]  # fmt: skip
    words = ["the", "cat", "sat", "é", "中", ".", "##ing", "3"]
    tokenizer = train_tokenizer(
        [" ".join(words)] * 5 + generated, "wordpiece", TrainerOptions(200), "texts"
    )
    encode = BulkEncoder(tokenizer)
    for _ in range(2):  # the second time from memory
        rows = [list(memoryview(row).cast("H")) for row in encode(generated)]
        assert rows == tokenizer.encode_ids(generated, add_special_tokens=False)
    assert encode._cache


def test_byte_level_tokens_keep_every_space(tmp_path):
    text = "One two.  Three?\n\nfour. Five\n"
    tokenizer = train_tokenizer([text] * 3, "bpe", TrainerOptions(300), "texts")
    path = write(tmp_path, "a.txt", text)
    given = job(path, reading=ReadSettings(format="document"))
    document = read(made(given, tmp_path / "out", tokenizer=tokenizer), tokenizer)[0]
    assert "".join(document) == text.rstrip("\n") and len(document) == 4


def test_lengths_are_counted(tmp_path):
    path = write(tmp_path, "a.txt", "a b. C\na\n" + "\n".join(f"x{n}" for n in range(8)))
    made(job(path), tmp_path / "out")
    numbers = json.loads((tmp_path / "out" / "lengths.json").read_text())
    assert numbers["sentence_tokens"]["count"] == 11
    assert numbers["document_sentences"]["largest"] == 2
    assert numbers["document_tokens"]["histogram"] == {"1-1": 1, "2-3": 8, "4-7": 1}
    assert (tmp_path / "out" / "lengths.png").read_bytes().startswith(b"\x89PNG")


def test_settings_of_lines_are_refused_for_records(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"text": "x"}\n')
    with pytest.raises(SettingError, match="document_start is for plain text"):
        made(job(path, document_start="x"), tmp_path / "out")
