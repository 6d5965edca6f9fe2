"""From a checkpoint to files that run elsewhere, each compared with the checkpoint.

A target is a module with the functions of `artifact.Target`. To add one: the module, a line in
TARGETS, and a profile `export/NAME.yaml`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tfllm import config
from tfllm.checkpoints.base import Checkpoint
from tfllm.checkpoints.files import atomic_directory
from tfllm.errors import CheckFailed, SettingError, did_you_mean
from tfllm.evaluation.harness import check_labels
from tfllm.export import litertlm, mediapipe, savedmodel, tflite
from tfllm.export.artifact import Artifact, Check, Target, file_sizes
from tfllm.export.profile import Profile, profile_names, profile_path
from tfllm.runtimes.protocols import Example

__all__ = ["TARGETS", "Artifact", "Check", "Profile", "export", "load_profile", "profile_names"]

TARGETS: dict[str, Target] = {
    "savedmodel": savedmodel,
    "tflite": tflite,
    "mediapipe": mediapipe,
    "litertlm": litertlm,
}


def load_profile(name: str, overrides: Sequence[str] = ()) -> Profile:
    """Load a profile.

    Args:
        name: A built-in profile, or a YAML file.
        overrides: `key=value` texts.

    Raises:
        SettingError: There is no such profile or target, or a key or value is wrong.
    """
    profile = config.load(profile_path(name), Profile, overrides)
    if profile.target not in TARGETS:
        raise SettingError(
            f"{name}: there is no export target '{profile.target}'. "
            f"{did_you_mean(profile.target, TARGETS)}"
        )
    return profile


def export(
    checkpoint: Checkpoint,
    profile: Profile,
    output: str | Path,
    examples: Sequence[Example] = (),
    on_check: Callable[[Check], None] | None = None,
) -> Artifact:
    """Write an artifact, check it, and move it to `output` only when every check has passed.

    Args:
        checkpoint: The model to export.
        profile: What to write, and the limits of the checks.
        output: Directory of the artifact; of a SavedModel, of its versions.
        examples: Labeled examples, on which the task's headline metric may not fall by more than
            the profile's tolerance. Empty: only built-in sample texts are compared.
        on_check: Called with each check as it is done.

    Returns:
        The artifact's path and checks.

    Raises:
        CheckFailed: A check did not pass. What was at `output` before is unchanged.
        SettingError: The target cannot hold this checkpoint, or not as the profile asks.
    """
    target = TARGETS[profile.target]
    if (task := checkpoint.task.export_task()) is not checkpoint.task:
        raise SettingError(
            f"A {checkpoint.task.kind} model is exported as {task.kind}. Load it with "
            "task=checkpoint.task.export_task(), as the command does."
        )
    target.validate(checkpoint, profile)
    check_labels(examples, checkpoint.task)
    output = Path(output)
    path, is_new = target.artifact_path(output), not output.exists()
    checks: list[Check] = []
    try:
        with atomic_directory(path, replaces="tfllm.json") as directory:
            target.write(checkpoint, profile, directory)
            for check in _run_checks(target, checkpoint, profile, directory, examples):
                checks.append(check)
                if on_check:
                    on_check(check)
            if failed := [check for check in checks if not check.passed]:
                raise CheckFailed(
                    f"{profile.target}: {'; '.join(map(str, failed))}. Nothing was written to "
                    f"'{output}'. Choose another quantization, or a wider tolerance in the profile."
                )
            target.write_metadata(checkpoint, profile, directory, checks)
    except BaseException:
        if is_new and output.is_dir() and not any(output.iterdir()):
            output.rmdir()
        raise
    return Artifact(path, profile, tuple(checks), file_sizes(path))


def _run_checks(
    target: Target,
    checkpoint: Checkpoint,
    profile: Profile,
    directory: Path,
    examples: Sequence[Example],
) -> Iterator[Check]:
    """Yield the checks of the files, and, where those passed, of the artifact's outputs."""
    file_checks = target.check_files(checkpoint, profile, directory)
    yield from file_checks
    if all(check.passed for check in file_checks):
        # The runtimes read tfllm.json when they open the artifact.
        target.write_metadata(checkpoint, profile, directory, file_checks)
        yield from target.check_outputs(checkpoint, profile, directory, examples)
