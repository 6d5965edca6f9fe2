"""From a checkpoint to files that run elsewhere, each checked against the checkpoint.

TARGETS: what can be written. A target is a module with

    place(output)                                   where the artifact goes
    refuse(checkpoint, profile)                     SettingError for what it cannot do
    write(checkpoint, profile, folder)              the files
    checks(checkpoint, profile, folder)             what the files alone tell
    finish(checkpoint, profile, folder, checks)     tfllm.json with the checks

`tfllm.export.verify.encoder` runs what was written, in the runtime that it is for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tfllm.errors import CheckFailed, SettingError
from tfllm.export import litertlm, mediapipe, savedmodel, tflite
from tfllm.export.base import Artifact, Check, Profile, sizes

__all__ = ["TARGETS", "Artifact", "Check", "Profile", "export"]

TARGETS: dict[str, Any] = {
    "savedmodel": savedmodel,
    "tflite": tflite,
    "mediapipe": mediapipe,
    "litertlm": litertlm,
}


def export(
    checkpoint: Any,
    profile: Profile,
    output: str | Path,
    examples: Sequence[dict] = (),
    seen: Callable[[Check], None] | None = None,
) -> Artifact:
    """Writes an artifact, checks it, and gives it its name only when every check has passed.

    `examples`: real ones with gold answers, on which the task's metric may not fall by more than
    the profile's tolerance. `seen` is called with each check as it is done. Raises CheckFailed;
    what stood at `output` before then still stands there.
    """
    from tfllm.checkpoints.files import atomic_directory
    from tfllm.evaluation.harness import check_labels

    target = TARGETS[profile.target]
    if (task := checkpoint.task.export_task()) is not checkpoint.task:
        raise SettingError(
            f"A {checkpoint.task.kind} model is exported as {task.kind}. Load it with "
            "task=checkpoint.task.export_task(), as the command does."
        )
    target.refuse(checkpoint, profile)
    check_labels(examples, checkpoint.task)
    output = Path(output)
    place, fresh = target.place(output), not output.exists()
    done: list[Check] = []
    try:
        with atomic_directory(place, replaces="tfllm.json") as folder:
            target.write(checkpoint, profile, folder)
            for check in _checks(target, checkpoint, profile, folder, examples):
                done.append(check)
                if seen:
                    seen(check)
            if failed := [check for check in done if not check.passed]:
                raise CheckFailed(
                    f"{profile.target}: {'; '.join(map(str, failed))}. Nothing was written to "
                    f"'{output}'. Choose another quantization, or a wider tolerance in the profile."
                )
            target.finish(checkpoint, profile, folder, done)
    except BaseException:
        if fresh and output.is_dir() and not any(output.iterdir()):
            output.rmdir()
        raise
    return Artifact(place, profile, tuple(done), sizes(place))


def _checks(
    target: Any, checkpoint: Any, profile: Profile, folder: Path, examples: Sequence[dict]
) -> Iterator[Check]:
    """The checks of the files, then of what they do; the second only where the first passed."""
    from tfllm.export.verify import encoder

    alone = target.checks(checkpoint, profile, folder)
    yield from alone
    if all(check.passed for check in alone):
        target.finish(checkpoint, profile, folder, alone)  # the predictors read tfllm.json
        yield from encoder.checks(checkpoint, profile, folder, examples)
