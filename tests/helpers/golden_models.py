"""Golden models of transformers as directories that the production loader reads."""

from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent.parent / "golden"
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = [*"abcdefghijklm", *(f"##{letter}" for letter in "abcdefghijklmn")]
VOCABULARY = [*SPECIALS, *LETTERS]  # 32 tokens
MPNET_VOCABULARY = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>", *LETTERS]


def vocabulary_of(family: str) -> str:
    """The vocab.txt of a family's golden models."""
    return "\n".join(MPNET_VOCABULARY if family == "mpnet" else VOCABULARY) + "\n"


def write_golden(family: str, head: str, directory: Path):
    """Writes one golden model as a Hugging Face directory. Returns its inputs and logits."""
    with np.load(GOLDEN / f"{family}.npz") as file:
        golden = {
            name.removeprefix(f"{head}/"): file[name]
            for name in file.files
            if name.startswith(f"{head}/")
        }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_bytes(golden["config"].tobytes())
    (directory / "model.safetensors").write_bytes(golden["tensors"].tobytes())
    (directory / "vocab.txt").write_text(vocabulary_of(family))
    inputs = {
        name.removeprefix("inputs/"): value
        for name, value in golden.items()
        if name.startswith("inputs/")
    }
    return inputs, golden["logits"]
