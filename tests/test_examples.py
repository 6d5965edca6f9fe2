"""The notebooks of examples/: they stay small, and they run from the top to the bottom."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
LARGEST_BYTES = 400_000  # with the outputs and plots it was committed with
MINUTES = 30  # for one cell on a busy machine


def name(path):
    return path.stem


def test_there_are_notebooks():
    assert {"classifier", "language_model", "translator"} <= {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_committed_outputs_are_small_and_without_errors(path):
    assert path.stat().st_size < LARGEST_BYTES
    notebook = json.loads(path.read_text(encoding="utf-8"))
    outputs = [out for cell in notebook["cells"] for out in cell.get("outputs", ())]
    assert any("image/png" in out.get("data", {}) for out in outputs)
    assert [out for out in outputs if out["output_type"] == "error"] == []
    assert [out for out in outputs if out.get("name") == "stderr"] == []


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_notebook_runs(path, tmp_path, monkeypatch):
    """In an empty folder beside the repository's models/, in a kernel of its own."""
    nbformat = pytest.importorskip("nbformat", reason="notebooks: pip install 'tfllm[docs]'")
    nbclient = pytest.importorskip("nbclient", reason="notebooks: pip install 'tfllm[docs]'")
    pytest.importorskip("ipykernel", reason="notebooks: pip install 'tfllm[docs]'")
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=60 * MINUTES, kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )  # fmt: skip
    client.execute()
    assert any("image/png" in out.get("data", {}) for cell in notebook.cells
               for out in cell.get("outputs", ()))  # fmt: skip
