"""The `tfllm.json` of an artifact: what it was made from and what it is for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tfllm import tasks
from tfllm.errors import ArtifactError, SettingError
from tfllm.tasks import Task


def read_description(path: Path) -> tuple[dict[str, Any], Task]:
    """(the whole description, its task). Raises ArtifactError naming the file and what is wrong."""
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(
            f"There is no '{path}', which says what the model is for. "
            "Keep the files that tfllm export wrote together, or export again."
        ) from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: cannot be read as JSON ({error}). Export again.") from None
    if not isinstance(description, dict) or "task" not in description:
        raise ArtifactError(f"{path}: the key 'task' is missing. Export again.")
    try:
        return description, tasks.build(description["task"], source=f"{path}: task")
    except SettingError as error:
        raise ArtifactError(f"{error} Export again with this version of tfllm.") from None
