"""The command answers before TensorFlow could be loaded."""

import subprocess
import sys

import pytest

from tfllm.cli import VERBS

HEAVY = ("tensorflow", "keras", "numpy", "sklearn")


def run(*arguments: str, code: str | None = None):
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "tfllm"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120)


def test_help_loads_nothing_heavy():
    code = (
        "import sys\nfrom tfllm.cli import main\ntry:\n    main(['--help'])\n"
        f"except SystemExit:\n    print([m for m in {HEAVY} if m in sys.modules])"
    )
    assert run(code=code).stdout.strip().endswith("[]")


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_has_examples(verb):
    code = (
        f"import sys\nfrom tfllm.cli import main\ntry:\n    main(['{verb}', '--help'])\n"
        f"except SystemExit as s:\n    print(s.code, [m for m in {HEAVY} if m in sys.modules])"
    )
    done = run(code=code)
    assert done.stdout.strip().endswith("0 []"), done.stdout + done.stderr
    assert f"tfllm {verb}" in done.stdout.split("Usage", 1)[1].split("\n", 1)[1], "no example"


def test_an_unknown_verb_is_named():
    done = run("trian")
    assert done.returncode == 2
    assert "Did you mean 'train'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_tensorflow_starts_quietly(tiny_checkpoint):
    done = run("inspect", str(tiny_checkpoint))
    assert done.returncode == 0
    assert "parameters" in done.stdout
    assert done.stderr == ""


def test_a_failing_import_is_not_hidden(tmp_path):
    (tmp_path / "tensorflow.py").write_text(
        "import os\nos.write(2, b'native notice\\n')\nraise ImportError('broken')\n"
    )
    code = (
        f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n"
        "from tfllm.runtimes import quiet\nquiet.quiet_tensorflow_import()\nimport tensorflow"
    )
    done = run(code=code)
    assert "native notice" in done.stderr
    assert "ImportError: broken" in done.stderr
