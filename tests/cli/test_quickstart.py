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


def test_the_packaged_files_are_links_to_those_of_the_recipe():
    assert sorted(path.name for path in quickstart.DATA.iterdir()) == sorted(FILES)
    for name in FILES:
        original = ROOT / "models" / "bert" / name if name.endswith("yaml") else REVIEWS / name
        assert (quickstart.DATA / name).read_bytes() == original.read_bytes(), name
        assert (quickstart.DATA / name).resolve() == original


def test_the_recipe_names_a_schema_that_is_there():
    first = quickstart.RECIPE.read_text(encoding="utf-8").splitlines()[0]
    schema = quickstart.RECIPE.resolve().parent / first.partition("$schema=")[2]
    assert schema.resolve() == ROOT / "docs" / "schemas" / "recipe.json"


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
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "tfllm", "export",
         "models/bert", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    for name in tracked:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name, follow_symlinks=False)
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
    assert "tfllm/export/profiles/savedmodel.yaml" in names
    with zipfile.ZipFile(wheel) as file:
        packaged = file.read("tfllm/cli/quickstart_data/train.tsv")
    assert packaged == (REVIEWS / "train.tsv").read_bytes()
