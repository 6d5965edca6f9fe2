"""generate from the command line with a model that reads sources."""

import json

import pytest

import tfllm
from tests.helpers.commands import run
from tests.helpers.translators import SENTENCES, checkpoint
from tfllm.cli import generate as verb
from tfllm.generation.seq2seq_generator import Seq2SeqGenerator


@pytest.fixture(scope="module")
def shared():
    return Seq2SeqGenerator(checkpoint())


@pytest.fixture(autouse=True)
def model(monkeypatch, shared):
    opened = tfllm.Model(checkpoint())
    monkeypatch.setattr(opened, "generator", lambda *_: shared)
    monkeypatch.setattr(verb, "open_model", lambda _: opened)


def test_lines_have_the_checkpoints_texts_and_scores(capsys, shared):
    code, out, err = run(capsys, "generate", "m", *SENTENCES, "--json")
    assert (code, err) == (0, "")
    expected = [
        {
            "prompt": text.prompt,
            "text": text.text,
            "token_count": text.token_count,
            "finish_reason": text.finish_reason,
            "score": round(text.score, 6),
        }
        for text in shared.generate(SENTENCES)
    ]
    assert [json.loads(line) for line in out.splitlines()] == expected


def test_options_stand_in_the_place_of_the_checkpoints(capsys, shared):
    greedy = ("--num-beams", "1", "--max-new-tokens", "4")
    _, out, _ = run(capsys, "generate", "m", SENTENCES[0], *greedy)
    settings = shared.generation_config(num_beams=1, max_new_tokens=4)
    assert out == shared.generate(SENTENCES[:1], settings)[0].text + "\n"
    _, out, _ = run(capsys, "generate", "m", SENTENCES[0], "--num-return-sequences", "3")
    assert len(out.splitlines()) == 3  # the checkpoint's own three beams


def test_sources_of_a_file(tmp_path, capsys):
    file = tmp_path / "in.jsonl"
    file.write_text("".join(json.dumps({"source": text}) + "\n" for text in SENTENCES))
    _, out, _ = run(capsys, "generate", "m", "--input", file)
    assert out == run(capsys, "generate", "m", *SENTENCES)[1]


@pytest.mark.parametrize(
    ("content", "arguments", "words"),
    [
        (b"a\n\nb\n", (), "in.txt:2: the source is empty"),
        (b"a\n" + b"house " * 200, (), "in.txt:2: the source has"),
        (b"a\nb\xff\n", (), "in.txt"),
        (b"a\n", ("--num-beams", "9999"), "--num-beams"),
        (b"a\n", ("--num-beams", "2", "--num-return-sequences", "3"), "num_return_sequences"),
        (b"a\n", ("--num-beams", "1", "--coverage-penalty", "1"), "coverage_penalty"),
        (b"a\n", ("--truncate", "left"), "--truncate right"),
        (b'{"messages": [{"role": "user", "content": "a"}]}', (), "no conversation"),
    ],
    ids=["empty", "long", "utf8", "beams", "sequences", "coverage", "truncate", "messages"],
)
def test_what_cannot_be_done_is_one_line(tmp_path, capsys, content, arguments, words):
    file = tmp_path / ("in.jsonl" if content.startswith(b"{") else "in.txt")
    file.write_bytes(content)
    code, out, err = run(capsys, "generate", "m", "--input", file, *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.strip().splitlines()) == 1


def test_the_end_of_a_long_source_is_cut_when_asked(capsys):
    code, out, _ = run(capsys, "generate", "m", " ".join(SENTENCES * 9), "--truncate", "right")
    assert code == 0
    assert len(out.splitlines()) == 1
