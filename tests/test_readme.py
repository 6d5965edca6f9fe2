"""The READMEs say what is so: commands and options exist, Python blocks run, languages agree."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tfllm.cli import VERBS

ROOT = Path(__file__).parent.parent
READMES = ("README.md", "README.zh-CN.md")
PRETRAINED = "hf://sentence-transformers/all-MiniLM-L6-v2"


def blocks(name: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / name).read_text(), re.S)


def commands(name: str) -> list[list[str]]:
    """The words of every `$ tfllm ...` line."""
    lines = "".join(blocks(name, "console")).replace("\\\n", " ").splitlines()
    return [line.split()[2:] for line in lines if line.startswith("$ tfllm ")]


def test_both_readmes_have_the_same_code():
    for language in ("console", "python"):
        first, second = (blocks(name, language) for name in READMES)
        assert first == second
        assert first


@pytest.mark.parametrize("verb", sorted({command[0] for command in commands("README.md")}))
def test_commands_and_options_exist(verb):
    assert verb in VERBS
    used = [command for command in commands("README.md") if command[0] == verb]
    options = {word.split("=")[0] for command in used for word in command if word.startswith("--")}
    if verb == "tokenizer":
        verb = f"tokenizer {used[0][1]}"
    done = subprocess.run(
        [sys.executable, "-m", "tfllm", *verb.split(), "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert [option for option in options if option not in done.stdout] == []


def test_files_named_in_links_exist():
    for name in READMES:
        links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / name).read_text())
        assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.slow
def test_python_blocks_run(tiny_checkpoint, tmp_path, monkeypatch):
    """In order, in one namespace, with a tiny checkpoint in the place of the pretrained one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").symlink_to(ROOT / "models")
    code = "\n".join(blocks("README.md", "python"))
    assert PRETRAINED in code
    exec(compile(code.replace(PRETRAINED, str(tiny_checkpoint)), "README.md", "exec"), {})
