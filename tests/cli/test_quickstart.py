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
from tfllm.export import profile
from tfllm.model import recipe_of

ROOT = Path(__file__).parents[2]
PACKAGED = ROOT / "tfllm" / "packaged"
FILES = (
    "models/bert/quickstart.yaml", "models/bert/reviews/train.tsv",
    "models/bert/reviews/validation.tsv", "models/bert/reviews/test.tsv",
    "export/savedmodel.yaml", "docs/schemas/recipe.json", "docs/schemas/profile.json",
)  # fmt: skip


def schema_of(path):
    """The path of the schema that a YAML file names, beside the file where it was opened."""
    first = path.read_text(encoding="utf-8").splitlines()[0]
    return Path(os.path.normpath(path.parent / first.partition("$schema=")[2]))


@pytest.mark.parametrize("name", FILES)
def test_packaged_files_are_those_of_the_repository(name):
    assert (PACKAGED / name).resolve() == ROOT / name


def test_packaged_files_name_a_schema_that_is_packaged():
    assert schema_of(quickstart.RECIPE) == PACKAGED / "docs" / "schemas" / "recipe.json"
    for path in profile.PROFILE_DIRECTORY.glob("*.yaml"):
        assert schema_of(path) == PACKAGED / "docs" / "schemas" / "profile.json"


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
         "models/bert", "docs/schemas", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"],
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
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as file:
        file.extractall(installed)
    for name in FILES:
        assert (installed / "tfllm/packaged" / name).read_bytes() == (ROOT / name).read_bytes()
    assert (installed / "tfllm/py.typed").is_file()
    recipe = installed / "tfllm/packaged/models/bert/quickstart.yaml"
    assert schema_of(recipe) == installed / "tfllm/packaged/docs/schemas/recipe.json"
    profiles = list((installed / "tfllm/packaged/export").glob("*.yaml"))
    assert sorted(path.stem for path in profiles) == profile.profile_names()
    assert all(schema_of(path).is_file() for path in profiles)
