"""A recipe that trains in a second: colours are good, numbers are bad."""

import random
from pathlib import Path

from tfllm import config
from tfllm.training.recipe import Recipe

GOOD = "red green blue white black pink".split()
BAD = "one two three four five six".split()
OTHER = "the a of and in is was".split()


def write_data(folder: Path, train: int = 200, validation: int = 24) -> Path:
    """train.tsv, validation.tsv, vocab.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *OTHER]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    dice = random.Random(3)
    for name, count in (("train", train), ("validation", validation)):
        lines = ["sentence\tlabel"]
        for number in range(count):
            words = dice.choices(OTHER, k=dice.randint(1, 14))
            words += dice.choices(GOOD if number % 2 else BAD, k=2)
            dice.shuffle(words)
            lines.append(f"{' '.join(words)}\t{'good' if number % 2 else 'bad'}")
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def settings(folder: Path, **parts) -> dict:
    """Plain data of a recipe; `parts` replace keys inside its parts."""
    data = {
        "name": "tiny",
        "model": {"family": "bert", "num_layers": 1, "num_heads": 2, "hidden_dim": 16,
                  "max_sequence_length": 32, "initializer_range": 0.3,
                  "dropout": 0.05, "attention_dropout": 0.05},
        "task": {"kind": "classification", "max_length": 32},
        "tokenizer": {"path": str(folder / "vocab.txt")},
        "data": {"train": str(folder / "train.tsv"),
                 "validation": str(folder / "validation.tsv"),
                 "columns": {"text": "sentence", "label": "label"}},
        "train": {"epochs": 2, "batch_size": 32, "schedule": "constant", "learning_rate": 0.01,
                  "precision": "float32", "log_every": 2, "seed": 5},
    }  # fmt: skip
    for key, changes in parts.items():
        if isinstance(changes, dict) and isinstance(data.get(key), dict):
            data[key] = {**data[key], **changes}
        else:
            data[key] = changes
    return data


def recipe(folder: Path, **parts) -> Recipe:
    return config.build(settings(folder, **parts), Recipe)
