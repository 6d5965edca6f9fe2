"""generate and chat from the command line, with a tiny model that writes bytes."""

import functools
import io
import json
import signal
import subprocess
import sys
import time
from copy import copy

import pytest

import tfllm
from tests.helpers import byte_models
from tests.helpers.commands import run
from tfllm.checkpoints import store
from tfllm.cli import generate as verb


@functools.cache
def shared():
    return tfllm.Model(byte_models.checkpoint())


@pytest.fixture(autouse=True)
def model(monkeypatch):
    monkeypatch.setattr(verb, "open_model", lambda _: shared())
    return shared()


SHORT = ("--max-new-tokens", "6")


def test_json_lines_say_what_the_interface_says(capsys):
    code, out, err = run(capsys, "generate", "m", "Hello", "", "--json", *SHORT)
    assert (code, err) == (0, "")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [list(line) for line in lines] == [
        ["prompt", "text", "token_count", "finish_reason"]
    ] * 2
    assert [line["prompt"] for line in lines] == ["Hello", ""]
    assert [line["token_count"] for line in lines] == [6, 6]
    assert {line["finish_reason"] for line in lines} == {"length"}


def test_several_texts_per_prompt_stand_in_order(capsys):
    sampled = ("--temperature", "1", "--num-return-sequences", "2", "--seed", "3")
    _, out, _ = run(capsys, "generate", "m", "a", "b", "--json", *SHORT, *sampled)
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["prompt"] for line in lines] == ["a", "a", "b", "b"]
    assert lines[0]["text"] != lines[1]["text"]
    assert run(capsys, "generate", "m", "a", "b", "--json", *SHORT, *sampled)[1] == out


def test_streamed_text_is_the_same_text(capsys):
    _, plain, _ = run(capsys, "generate", "m", "Hello", "x", *SHORT)
    _, streamed, _ = run(capsys, "generate", "m", "Hello", "x", *SHORT, "--stream")
    assert streamed == plain
    several = ("--temperature", "1", "--num-return-sequences", "2")
    _, plain, _ = run(capsys, "generate", "m", "Hello", *several, *SHORT)
    assert run(capsys, "generate", "m", "Hello", *several, *SHORT, "--stream")[1] == plain


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("prompts.txt", "Hello\nabc\n"),
        ("prompts.jsonl", '{"prompt": "Hello"}\n{"text": "abc"}\n'),
    ],
)
def test_prompts_of_a_file(tmp_path, capsys, name, content):
    (tmp_path / name).write_text(content)
    result = tmp_path / "out.jsonl"
    arguments = ("--input", tmp_path / name, "--output", result, "--json", *SHORT)
    code, out, err = run(capsys, "generate", "m", *arguments)
    assert (code, out, err) == (0, "", "")
    _, given, _ = run(capsys, "generate", "m", "Hello", "abc", "--json", *SHORT)
    assert result.read_text() == given


def test_conversations_of_a_file(tmp_path, capsys):
    messages = [{"role": "user", "content": "Hi"}]
    (tmp_path / "in.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    arguments = ("--input", tmp_path / "in.jsonl", "--json", *SHORT)
    _, out, _ = run(capsys, "generate", "m", *arguments)
    _, same, _ = run(capsys, "generate", "m", "user: Hi\nassistant:", "--json", *SHORT)
    assert json.loads(out)["text"] == json.loads(same)["text"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "Give either prompts or --input"),
        (("a", "--input", "f"), "Give either prompts or --input"),
        (("a", "--temperature", "-1"), "--temperature"),
        (("a", "--num-beams", "2", "--temperature", "1"), "samples"),
        (("a", "--stream", "--json"), "--stream"),
        (("a", "--truncate", "right"), "--truncate left"),
        (("a", "--early-stopping", "maybe"), "never"),
        (("a", "--stop", ""), "--stop"),
        (("x" * 400,), "--truncate left"),
        (("--input", "nowhere.txt"), "no data file"),
    ],
)
def test_wrong_use_is_one_clear_line(capsys, arguments, words):
    code, out, err = run(capsys, "generate", "m", *arguments)
    assert (code, out) == (2, "")
    assert words in err and err.count("\n") == 1 and "Traceback" not in err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("short\n" + "x" * 400 + "\n", "in.txt:2: "),
        ("x" * (9 * 2**20), "longer than 8 MiB"),
    ],
)
def test_files_with_prompts_that_are_too_long(tmp_path, capsys, content, words):
    (tmp_path / "in.txt").write_text(content)
    result = tmp_path / "out.txt"
    arguments = ("--input", tmp_path / "in.txt", "--output", result)
    code, _, err = run(capsys, "generate", "m", *arguments)
    assert code == 2 and words in err
    assert not result.exists()


def test_truncation_takes_long_prompts(capsys):
    code, out, _ = run(capsys, "generate", "m", "x" * 400, "--truncate", "left", *SHORT, "--json")
    assert code == 0 and json.loads(out)["token_count"] == 6


def test_chat_answers_line_by_line(capsys, monkeypatch):
    said = "Hi\n\nagain\n/reset\nHi\n/exit\nnot read\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(said))
    code, out, err = run(capsys, "chat", "m", *SHORT, "--temperature", "0")
    assert (code, err) == (0, "")
    answers = out.split("\n")
    assert out.startswith(answers[0])
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n"))
    _, alone, _ = run(capsys, "chat", "m", *SHORT, "--temperature", "0")
    assert out.startswith(alone) and out.endswith(alone)


def test_chat_needs_a_template(capsys, monkeypatch, model):
    plain = copy(model.tokenizer)
    object.__setattr__(plain, "chat_template", None)
    monkeypatch.setattr(model.generator(), "tokenizer", plain)
    code, _, err = run(capsys, "chat", "m")
    assert code == 2 and "chat template" in err


def test_a_model_for_another_task_cannot_write(capsys, monkeypatch, tiny_checkpoint):
    monkeypatch.undo()
    code, _, err = run(capsys, "generate", tiny_checkpoint, "a")
    assert code == 2 and "classification" in err and "tfllm predict" in err


@pytest.mark.parametrize("verb", ["generate", "chat"])
def test_help_shows_examples_and_loads_nothing_heavy(verb):
    script = (
        "import sys\nfrom tfllm.cli import main\ntry:\n    main([sys.argv[1], '--help'])\n"
        "finally:\n    assert not {'tensorflow', 'keras', 'numpy'} & set(sys.modules)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", script, verb], capture_output=True, text=True, check=True
    )
    assert f"tfllm {verb} " in shown.stdout and "Examples" in shown.stdout


@pytest.mark.slow
def test_ctrl_c_while_streaming_keeps_what_is_printed(tmp_path):
    store.save(byte_models.checkpoint(), tmp_path / "m")
    options = ("--stream", "--max-new-tokens", "100", "--temperature", "1")
    command = [sys.executable, "-c", SLOWLY, "generate", str(tmp_path / "m"), "Hello", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first = process.stdout.read(3)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(first) == 3 and rest.endswith("\n")
    assert "Traceback" not in errors


@pytest.mark.slow
def test_a_terminated_command_leaves_no_file_under_a_temporary_name(tmp_path):
    store.save(byte_models.checkpoint(), tmp_path / "m")
    (tmp_path / "prompts.txt").write_text("Hello\n" * 1000)
    (tmp_path / "out").mkdir()
    options = ("--input", str(tmp_path / "prompts.txt"), "--output", str(tmp_path / "out/texts"))
    command = [sys.executable, "-c", SLOWLY, "generate", str(tmp_path / "m"), *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out").iterdir()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert list((tmp_path / "out").iterdir())
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "Traceback" not in errors
    assert not list((tmp_path / "out").iterdir())


# The command with a pause after every step, so that there is time to stop it.
SLOWLY = """
import sys, time
from tfllm.generation import scheduler
step = scheduler.Scheduler.step
def slow(self, steps=1):
    time.sleep(0.1)
    return step(self, steps)
scheduler.Scheduler.step = slow
from tfllm.cli import main
main(sys.argv[1:])
"""
