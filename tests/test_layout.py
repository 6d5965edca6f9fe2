"""The tree keeps its shape: no code in the folders that users edit, no file that grew too long."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
LONGEST_FILE_LINES = 350  # about 90 % of files stay below; see the exceptions beside the number
MAY_BE_LONGER: set[str] = set()


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


def test_files_stay_short():
    long = {
        str(path.relative_to(ROOT)): count
        for path in tracked("tfllm/*.py")
        if (count := len(path.read_text().splitlines())) > LONGEST_FILE_LINES
    }
    assert set(long) <= MAY_BE_LONGER, long
