"""`tfllm quickstart` needs no clone: its recipe and its reviews are part of the package."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tfllm.cli import quickstart
from tfllm.data import sources
from tfllm.model import recipe_of

ROOT = Path(__file__).parents[2]
REVIEWS = ROOT / "models" / "bert" / "reviews"
FILES = ("quickstart.yaml", "train.tsv", "validation.tsv", "test.tsv")


def test_the_packaged_files_are_those_of_the_recipe():
    assert sorted(path.name for path in quickstart.DATA.iterdir()) == sorted(FILES)
    for name in FILES:
        original = ROOT / "models" / "bert" / name if name.endswith("yaml") else REVIEWS / name
        assert (quickstart.DATA / name).read_bytes() == original.read_bytes(), name


def test_the_recipe_is_read_in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = recipe_of(quickstart.RECIPE, quickstart.packaged_data())
    for path in (recipe.data.train, recipe.data.validation, str(quickstart.TEST)):
        example = next(iter(sources.read(path, recipe.data)))
        assert example["label"] in recipe.task.labels
    assert not list(tmp_path.iterdir())


def test_a_wheel_has_the_files(tmp_path):
    tree = tmp_path / "tree"
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "tfllm", "setup.cfg",
         "pyproject.toml", "README.md", "LICENSE"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    for name in tracked:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():  # a link to the folder of profiles
            shutil.copytree(ROOT / name, tree / name)
        else:
            shutil.copy(ROOT / name, tree / name)
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--wheel-dir", str(tmp_path), str(tree)],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )  # fmt: skip
    if "setuptools" in built.stderr and "No module" in built.stderr:
        pytest.skip("setuptools is not installed here")
    assert built.returncode == 0, built.stderr[-2000:]
    (wheel,) = tmp_path.glob("tfllm-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in FILES if f"tfllm/cli/quickstart_data/{name}" not in names] == []
    assert "tfllm/py.typed" in names
