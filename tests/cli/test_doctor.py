"""What `tfllm doctor` says of an installation, and its exit status."""

import json
import subprocess
import sys

import pytest

from tfllm.cli import doctor
from tfllm.cli.doctor import examine


def run(*arguments, **variables):
    return subprocess.run(
        [sys.executable, "-m", "tfllm", "doctor", *arguments],
        capture_output=True, text=True, env={**__import__("os").environ, **variables},
    )  # fmt: skip


def test_the_screen_and_the_object_say_the_same(tmp_path):
    shown = run(TFLLM_DATA=str(tmp_path))
    assert shown.returncode == 0, shown.stdout
    facts = json.loads(run("--json", TFLLM_DATA=str(tmp_path)).stdout)
    assert facts["problems"] == [] and "No problem found" in shown.stdout
    assert facts["data"] == str(tmp_path) and str(tmp_path) in shown.stdout
    assert f"precision: auto takes {facts['precision_auto']}" in shown.stdout
    assert facts["packages"]["keras"]["installed"] in shown.stdout
    assert len(shown.stdout.splitlines()) <= 24  # one screen


@pytest.fixture
def requirements(monkeypatch):
    """A function that puts other requirements in the place of tfllm's own."""
    monkeypatch.setattr(doctor, "_tensorflow", lambda: {
        "backend": "tensorflow", "gpus": [], "precision_auto": "float32", "import_error": None,
    })  # fmt: skip

    def use(*lines):
        monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: list(lines))

    return use


def test_a_package_outside_of_its_range_is_a_problem(requirements):
    requirements("numpy<1", "pydantic>=2")
    (problem,) = examine()["problems"]
    assert problem.startswith("numpy is 2") and "pip install 'numpy<1'" in problem


def test_a_package_that_is_missing_is_a_problem(requirements):
    requirements("no-such-package>=3")
    (problem,) = examine()["problems"]
    assert "no-such-package is not installed" in problem


def test_an_extra_that_is_missing_is_said_and_no_problem(requirements):
    requirements("numpy>=2", 'no-such-package>=3; extra == "edge"', 'pydantic; extra == "serve"')
    facts = examine()
    assert facts["problems"] == []
    assert facts["extras"] == {"edge": ["no-such-package"], "serve": []}
    lines = "\n".join(doctor._lines(facts))
    assert "serve installed" in lines and "pip install 'tfllm[edge]'" in lines


def test_a_broken_installation_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    facts = examine()
    assert any("TensorFlow cannot be imported" in problem for problem in facts["problems"])
    assert doctor._lines(facts)


def test_a_data_folder_that_is_none_is_a_problem(tmp_path):
    done = run(TFLLM_DATA=str(tmp_path / "nowhere"))
    assert done.returncode == 1 and "Problem: TFLLM_DATA names" in done.stdout
