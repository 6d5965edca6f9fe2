"""The models of tests/golden/seq2seq_generation.npz, and the texts that transformers writes."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers.golden_models import VOCABULARY
from tfllm.checkpoints import store
from tfllm.checkpoints.base import Checkpoint

FILE = Path(__file__).parent.parent / "golden" / "seq2seq_generation.npz"
NAMES = ("marian", "marian_apart", "t5", "flan_t5", "bart", "mbart")
FILES = {
    "config": "config.json",
    "generation": "generation_config.json",
    "tensors": "model.safetensors",
}


@functools.cache
def told() -> dict[str, Any]:
    """`sources`, and for each model its cases with `texts` and `scores`."""
    with np.load(FILE) as file:
        return json.loads(str(file["texts"]))


def write(name: str, folder: Path) -> Path:
    """A Hugging Face directory of the model, with a vocabulary that is smaller than it."""
    folder.mkdir(parents=True, exist_ok=True)
    with np.load(FILE) as file:
        for key, written in FILES.items():
            (folder / written).write_bytes(file[f"{name}/{key}"].tobytes())
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    return folder


@functools.cache
def checkpoint(name: str) -> Checkpoint:
    with tempfile.TemporaryDirectory() as folder:
        return store.load(write(name, Path(folder)))
