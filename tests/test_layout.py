"""The tree keeps its shape: no code in the folders that users edit, no file that grew too long."""

import subprocess
import warnings
from pathlib import Path

ROOT = Path(__file__).parent.parent
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
