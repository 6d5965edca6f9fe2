"""Every error that tfllm raises on purpose.

    TfllmError                  exit status 1: a fault of ours, or a check that failed
    ├── CheckFailed             an artifact differs from the checkpoint it was made from
    ├── TrainingFailed          the loss is no longer a number, a worker was lost
    └── InputError              exit status 2: something the user can put right
        ├── SettingError        an option, a recipe or a profile
        ├── DataError           a line of a data file, or the file itself
        ├── CheckpointError     a directory that is not a usable checkpoint
        ├── TokenizerError      vocabulary files that do not make a tokenizer
        ├── ArtifactError       a SavedModel or .tflite file that cannot be used
        ├── MissingExtra        an optional dependency that is not installed
        └── StorageError        the disk is full, the output exists or cannot be written

A message is one sentence about what is wrong, naming the option or the file and line, and one about
the next step.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TfllmError(Exception):
    """Any error that tfllm raises on purpose."""

    exit_status = 1


class CheckFailed(TfllmError):
    """An artifact gave other numbers than the checkpoint it was made from."""


class TrainingFailed(TfllmError):
    """Training cannot go on; the message names the last good checkpoint."""


class InputError(TfllmError):
    """Wrong input or setting: the user can put it right."""

    exit_status = 2


class SettingError(InputError):
    """An option, a recipe or a profile says something impossible."""


class DataError(InputError):
    """A data file is missing, empty or has a line that cannot be used."""


class CheckpointError(InputError):
    """A directory is not a usable checkpoint."""


class TokenizerError(InputError):
    """Vocabulary files that do not make a tokenizer."""


class ArtifactError(InputError):
    """A SavedModel or .tflite file that cannot be used."""


class StorageError(InputError):
    """The disk is full, or the output exists or cannot be written."""


class MissingExtra(InputError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str):
        super().__init__(
            f"This needs the package '{package}'. Install it with: pip install 'tfllm[{extra}]'"
        )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown word: the nearest known one, or all of them."""
    choices = [str(choice) for choice in known]
    near = difflib.get_close_matches(str(word), choices, n=1)
    if near:
        return f"Did you mean '{near[0]}'?"
    return f"Known: {', '.join(sorted(choices))}." if choices else ""
