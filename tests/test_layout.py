"""The tree keeps its shape: no code in the folders that users edit, no file that grew too long."""

import ast
import subprocess
import warnings
from pathlib import Path

ROOT = Path(__file__).parent.parent
LONGEST_FUNCTION = 60  # lines; arguments and results in a docstring are not what makes one long
LONG_FILE_LINES = 350  # what nine of ten files stay below; an idea is not cut to fit


def tracked(pattern: str) -> list[Path]:
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", pattern],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    return [ROOT / name for name in names if (ROOT / name).exists()]


def test_no_code_in_the_folders_users_edit():
    for folder in ("models", "export", "serving"):
        assert tracked(f"{folder}/*.py") == []


def test_every_folder_readme_names_its_code():
    for folder in ("models", "export", "serving"):
        first = (ROOT / folder / "README.md").read_text().splitlines()[:4]
        assert any(f"tfllm/{folder}/" in line for line in first), folder


def test_most_files_stay_short():
    lengths = sorted(len(path.read_text().splitlines()) for path in tracked("tfllm/*.py"))
    percentile = lengths[len(lengths) * 9 // 10]
    if percentile > LONG_FILE_LINES:
        warnings.warn(f"a tenth of the files have over {percentile} lines", stacklevel=1)


def function_lengths(source: str):
    """(name, lines without the docstring) of every function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node) is not None:
                lines -= node.body[0].end_lineno - node.body[0].lineno + 1
            yield node.name, lines


def test_functions_stay_short():
    long = [
        (str(path.relative_to(ROOT)), name, lines)
        for path in tracked("tfllm/*.py")
        for name, lines in function_lengths(path.read_text())
        if lines > LONGEST_FUNCTION
    ]
    assert long == []


def test_a_long_function_is_found():
    source = "def f():\n" + "    pass\n" * LONGEST_FUNCTION
    assert list(function_lengths(source)) == [("f", LONGEST_FUNCTION + 1)]
    documented = 'def f():\n    """One.\n\n    Two."""\n    pass\n'
    assert list(function_lengths(documented)) == [("f", 2)]
