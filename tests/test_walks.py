"""How many files a reader passes from a command to its arithmetic; CONTRIBUTING lists them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MOST_FILES = 12
WALKS = (ROOT / "CONTRIBUTING.md").read_text().split("## Walks")[1].split("\n## ")[0]


def walks(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "tests.walks", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_files_of_the_written_walks_exist():
    files = re.findall(r"`(tfllm/[\w/]+\.py)`", WALKS)
    assert files
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_written_walks_are_short():
    lines = [line for line in WALKS.splitlines() if line.startswith("| `tfllm ")]
    assert len(lines) >= 4
    for line in lines:
        assert len(re.findall(r"`tfllm/[\w/]+\.py`", line)) <= MOST_FILES, line


@pytest.mark.slow
def test_walks_of_an_encoder_are_short(tmp_path):
    found = walks(
        "train", "models/bert/tiny.yaml", "--set", "train.epochs=null", "--set", "train.steps=2",
        "--output", tmp_path / "run",
    )  # fmt: skip
    found += walks("predict", tmp_path / "run", "a film")
    found += walks("export", tmp_path / "run", "--to", "savedmodel", "--output", tmp_path / "out")
    assert found
    assert [walk for walk in found if len(walk) > MOST_FILES] == []


@pytest.mark.slow
def test_walks_of_generation_are_short(tmp_path):
    found = walks(
        "train", "models/transformer/numbers.yaml", "--set", "train.steps=2", "--set",
        "evaluate.every=2", "--set", "evaluate.generate=0", "--output", tmp_path / "run",
    )  # fmt: skip
    found += walks("generate", tmp_path / "run", "zwei", "--max-new-tokens", "2")
    found += walks("generate", tmp_path / "run", "zwei", "--max-new-tokens", "2", "--num-beams", 2)
    assert found
    assert [walk for walk in found if len(walk) > MOST_FILES] == []
