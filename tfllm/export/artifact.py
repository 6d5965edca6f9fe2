"""Artifacts: what an export writes, the checks it passed, and what every target module provides."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import keras
import tensorflow as tf

from tfllm.checkpoints.base import Checkpoint
from tfllm.errors import SettingError
from tfllm.export.profile import DEFAULT_NUM_BEAMS, MAX_DEFAULT_CONTEXT, Profile
from tfllm.generation.checkpoint_config import checkpoint_config, huggingface_settings
from tfllm.keras_internals import backend_variable
from tfllm.runtimes.protocols import Example

Signatures = dict[str, tf.types.experimental.PolymorphicFunction]
"""Signature name -> a tf.function."""
ConcreteFunctions = dict[str, tf.types.experimental.ConcreteFunction]
"""Signature name -> a function of fixed shapes."""


@dataclass(frozen=True)
class Check:
    """One row of the table of checks: a name, the measured value, its limit and the verdict."""

    name: str
    value: str
    limit: str
    passed: bool

    def __str__(self) -> str:
        return f"{self.name}: {self.value} (limit: {self.limit})"


def report(name: str, value: str) -> Check:
    """Return a check without a limit, which always passes."""
    return Check(name, value, "", True)


def at_most(name: str, value: float, limit: float | None, unit: str = "") -> Check:
    """Return a check against an upper limit. NaN never passes.

    Args:
        name: What is checked.
        value: The value.
        limit: The limit; None: the value is reported only.
        unit: Printed after both.
    """
    text = f"{value:.3g}{unit}"
    if limit is None:
        return Check(name, text, "", bool(value == value))
    return Check(name, text, f"at most {limit:g}{unit}", bool(value <= limit))


def at_least(name: str, value: float, limit: float, unit: str = "") -> Check:
    """Return a check against a lower limit. NaN never passes.

    Args:
        name: What is checked.
        value: The value.
        limit: The limit.
        unit: Printed after both.
    """
    return Check(name, f"{value:.4g}{unit}", f"at least {limit:g}{unit}", bool(value >= limit))


def weight_bytes_check(stored: float, lowest: float, highest: float) -> Check:
    """Return the check that the weights are stored once.

    Args:
        stored: Bytes of the weights in the file.
        lowest: Least bytes allowed.
        highest: Most bytes allowed.
    """
    return Check(
        "weights stored once",
        f"{stored / 1e6:.2f} MB",
        f"{lowest / 1e6:.2f} to {highest / 1e6:.2f} MB",
        lowest <= stored <= highest,
    )


@dataclass(frozen=True)
class Artifact:
    """An exported model: where it is, the profile, and the checks it passed."""

    path: Path
    profile: Profile
    checks: tuple[Check, ...] = ()
    files: dict[str, int] = field(default_factory=dict)
    """File name within `path` to its size in bytes."""

    @property
    def failed(self) -> list[Check]:
        """The checks that did not pass."""
        return [check for check in self.checks if not check.passed]


class Target(Protocol):
    """A kind of artifact. A module with these functions is a target; see tfllm.export.TARGETS.

    `directory` is a temporary directory, renamed to `artifact_path` when all checks have passed.
    """

    def artifact_path(self, output: Path) -> Path:
        """Return the directory that the artifact gets in, or as, the requested `output`."""
        ...

    def validate(self, checkpoint: Checkpoint, profile: Profile) -> None:
        """Check that the target can hold the checkpoint as the profile asks.

        Args:
            checkpoint: The model.
            profile: The profile.

        Raises:
            SettingError: It cannot.
        """
        ...

    def write(self, checkpoint: Checkpoint, profile: Profile, directory: Path) -> None:
        """Write the artifact's files.

        Args:
            checkpoint: The model.
            profile: The profile.
            directory: The artifact's directory, which is empty.
        """
        ...

    def check_files(self, checkpoint: Checkpoint, profile: Profile, directory: Path) -> list[Check]:
        """Return the checks that need the files alone.

        Args:
            checkpoint: The model.
            profile: The profile.
            directory: The artifact's directory.
        """
        ...

    def check_outputs(
        self,
        checkpoint: Checkpoint,
        profile: Profile,
        directory: Path,
        examples: Sequence[Example],
    ) -> Iterator[Check]:
        """Run the artifact in the runtime it is for, and yield comparisons with the checkpoint.

        Args:
            checkpoint: The model.
            profile: The profile, with the limits.
            directory: The artifact's directory.
            examples: Labeled examples of the task; empty: built-in sample texts are used.
        """
        ...

    def write_metadata(
        self, checkpoint: Checkpoint, profile: Profile, directory: Path, checks: Sequence[Check]
    ) -> None:
        """Write `tfllm.json`, which records the checks.

        Args:
            checkpoint: The model.
            profile: The profile.
            directory: The artifact's directory.
            checks: All checks, with their results.
        """
        ...


def file_sizes(directory: Path) -> dict[str, int]:
    """Return every file under `directory` with its size in bytes, largest first."""
    sizes = {
        str(path.relative_to(directory)): path.stat().st_size
        for path in directory.rglob("*")
        if path.is_file()
    }
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def is_causal_lm(checkpoint: Checkpoint) -> bool:
    """Return whether the checkpoint is a decoder that continues prompts."""
    return checkpoint.task.generates == "continuation"


def is_seq2seq(checkpoint: Checkpoint) -> bool:
    """Return whether the checkpoint is an encoder-decoder that generates text from a source."""
    return checkpoint.task.generates == "target"


def generates(checkpoint: Checkpoint) -> bool:
    """Return whether the checkpoint generates text."""
    return is_causal_lm(checkpoint) or is_seq2seq(checkpoint)


def context_length(checkpoint: Checkpoint, profile: Profile) -> int:
    """Return the most tokens of prompt and generated text together.

    Args:
        checkpoint: A model that generates.
        profile: The profile, which may lower it.

    Raises:
        SettingError: The profile asks for more positions than the model has.
    """
    positions = checkpoint.config.max_sequence_length
    if profile.max_length and profile.max_length > positions:
        raise SettingError(
            f"profile: max_length {profile.max_length} is more than the {positions} positions of "
            "the model. Lower max_length."
        )
    return profile.max_length or min(positions, MAX_DEFAULT_CONTEXT)


def beam_width(checkpoint: Checkpoint, profile: Profile) -> int:
    """Return the number of beams of the signature `beam`: the profile's, else the checkpoint's."""
    own = checkpoint_config(checkpoint).num_beams
    return profile.generation.num_beams or (own if own > 1 else DEFAULT_NUM_BEAMS)


def default_num_beams(checkpoint: Checkpoint, profile: Profile) -> int:
    """Return the number of beams of `serving_default`.

    It is 1 where the checkpoint's own settings have no beam search, else that of `beam`.

    Args:
        checkpoint: A model that generates.
        profile: The profile.
    """
    return beam_width(checkpoint, profile) if checkpoint_config(checkpoint).num_beams > 1 else 1


def get_decoder_start_token_id(checkpoint: Checkpoint) -> int:
    """Return the first token id of an encoder-decoder's targets."""
    task = checkpoint.task.with_decoder_start_token_id(checkpoint.decoder_start_token_id)
    return task.decoder_start_token_id  # type: ignore[attr-defined]


def artifact_metadata(
    checkpoint: Checkpoint, profile: Profile, checks: Sequence[Check]
) -> dict[str, Any]:
    """Return an artifact's `tfllm.json`: what `evaluate` and `predict` need besides the graph.

    Args:
        checkpoint: The model.
        profile: The profile.
        checks: All checks, with their results.
    """
    generation: dict[str, Any] = {}
    if generates(checkpoint):
        generation["context"] = context_length(checkpoint, profile)
        generation["eos_token_id"] = list(checkpoint.eos_token_id)
    if is_seq2seq(checkpoint):
        generation["decoder_start_token_id"] = get_decoder_start_token_id(checkpoint)
        generation["num_beams"] = beam_width(checkpoint, profile)
        own: dict[str, Any] = {"num_beams": default_num_beams(checkpoint, profile)}
        if profile.target == "tflite":
            own = {"num_beams": 1, "do_sample": False}
        generation["generation"] = huggingface_settings(checkpoint) | own
    return {
        "format": 1,
        "family": checkpoint.family,
        "config": asdict(checkpoint.config),
        "task": checkpoint.task.model_dump(mode="json"),
        **generation,
        "profile": profile.model_dump(mode="json", exclude_defaults=True),
        "checks": [asdict(check) for check in checks],
    }


def save_metadata(
    checkpoint: Checkpoint, profile: Profile, directory: Path, checks: Sequence[Check]
) -> None:
    """Write `artifact_metadata` to `tfllm.json` in `directory`."""
    metadata = artifact_metadata(checkpoint, profile, checks)
    text = json.dumps(metadata, indent=2, ensure_ascii=False)
    (directory / "tfllm.json").write_text(text + "\n", "utf-8")


def write_assets(checkpoint: Checkpoint, directory: Path) -> None:
    """Write the tokenizer's files, and `labels.txt` with one label a line in score order."""
    checkpoint.tokenizer.save(directory)
    labels = getattr(checkpoint.task, "labels", ())
    if labels:
        (directory / "labels.txt").write_text("".join(f"{label}\n" for label in labels), "utf-8")


def variables_module(model: keras.Model) -> tf.Module:
    """Return a tf.Module that owns the model's variables, so that a SavedModel can hold them."""
    module = tf.Module()
    module.weights = [backend_variable(weight) for weight in model.weights]
    return module
