"""The errors that tfllm raises on purpose.

    TfllmError                  exit status 1: a fault of ours, or a check that failed
    ├── CheckFailed             an artifact differs from the checkpoint that it was exported from
    ├── TrainingFailed          the loss is not finite, or a worker was lost
    └── InputError              exit status 2: something the user can correct
        ├── SettingError        an option, a recipe or a profile
        ├── DataError           a line of a data file, or the file itself
        ├── CheckpointError     a checkpoint that cannot be used
        ├── TokenizerError      tokenizer files that cannot be used
        ├── ArtifactError       a SavedModel or .tflite file that cannot be used
        ├── MissingExtra        an optional dependency that is not installed
        └── StorageError        the disk is full, the output exists or cannot be written

A message is one sentence about what is wrong, naming the option or the file and line, and one about
the next step. It is raised with the options of the command line, `--num-beams 4`, which the command
line prints; `str` of the error names the arguments of the Python functions: `num_beams 4`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# A command to copy, up to the end of its sentence; an option with its value, where that matters.
OPTION = re.compile(
    r"(?P<command>\b(?:tfllm [a-z]+|pip|python) .*?(?=\. |\.?$))"
    r"|(?<![\w'/-])(?P<option>--(?:set (?=[\w.]+=)|truncate (?:left|right)\b|[a-z][\w-]*))"
)
# Options whose argument in Python is not the same name with underscores.
ARGUMENTS = {
    "--resume": "resume=True",
    "--set": "overrides",
    "--set ": "",  # before key=value, which is an override as it stands
    "--stop": "stop_strings",
    "--to": "profile",
    "--truncate": "truncate=True",
    "--truncate left": 'truncate="left"',
    "--truncate right": 'truncate="right"',
}


class TfllmError(Exception):
    """Any error that tfllm raises on purpose."""

    exit_status = 1

    @property
    def cli_message(self) -> str:
        """The message with options as the command line has them."""
        return super().__str__()

    def __str__(self) -> str:
        """The message with the names of Python arguments in place of options."""
        return OPTION.sub(_argument, self.cli_message)


def _argument(match: re.Match[str]) -> str:
    option = match["option"]
    if option is None:
        return match["command"]
    return ARGUMENTS.get(option, option.removeprefix("--").replace("-", "_"))


class CheckFailed(TfllmError):
    """An artifact differs from the checkpoint that it was exported from."""


class TrainingFailed(TfllmError):
    """Training cannot continue; the message names the last good checkpoint."""


class InputError(TfllmError):
    """A wrong input or setting, which the user can correct."""

    exit_status = 2


class SettingError(InputError):
    """An option, a recipe or a profile is not valid."""


class DataError(InputError):
    """A data file is missing, empty or has a line that cannot be used."""


class CheckpointError(InputError):
    """A checkpoint that cannot be used."""


class TokenizerError(InputError):
    """Tokenizer files that cannot be used."""


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
    """Return the end of an error message about an unknown name: the nearest known one, or all of
    them.

    Args:
        word: The unknown name.
        known: The known names.
    """
    choices = [str(choice) for choice in known]
    near = difflib.get_close_matches(str(word), choices, n=1)
    if near:
        return f"Did you mean '{near[0]}'?"
    return f"Known: {', '.join(sorted(choices))}." if choices else ""
