"""How a file is read for evaluation: as the model's own run or export says, then as options do.

A run directory keeps its recipe, and an artifact its profile; both may name the columns of the
data. They hold where the file at hand is of the same format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tfllm import config
from tfllm.data.read_settings import ReadSettings
from tfllm.data.sources import known_format
from tfllm.evaluation.span_answers import Language
from tfllm.evaluation.text_to_text import Tokenize
from tfllm.generation.config import GenerationOverrides


class EvaluationSettings(ReadSettings, GenerationOverrides):
    """The keys of `--set`: how a file is read, how a task is measured, and how texts are generated.

    Those of GenerationOverrides are for sequence-to-sequence models.
    """

    language: Language = "auto"
    """Rules for span answers: "en" (SQuAD), "zh" (CMRC), or found per example."""

    stride: int | None = None
    """Language models: tokens by which the window moves; unset: half of it."""
    measure: Literal["all", "last_word"] = "all"
    """Language models: all tokens, or the last word of every text (LAMBADA)."""

    tokenize: Tokenize = "auto"
    """Generated texts: sacrebleu's tokenizer for BLEU; auto: zh or 13a."""
    truncate: bool | None = None
    """Generated texts: cut sources that are too long; unset: what the model's task says."""

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of `harness.evaluate`, as far as they are set."""
        names = ("language", "stride", "measure", "tokenize", "truncate")
        options = {name: getattr(self, name) for name in names if name in self.model_fields_set}
        return {**options, "generation": self.set_fields()}

    @property
    def generation_options(self) -> dict[str, Any]:
        """Settings of generation, and `truncate`, as far as they are set."""
        return self.set_fields() | ({} if self.truncate is None else {"truncate": self.truncate})

    @property
    def reading(self) -> ReadSettings:
        """The settings of the file alone."""
        return ReadSettings(**{name: getattr(self, name) for name in ReadSettings.model_fields})


def settings_for(
    model: str, path: str, overrides: Sequence[str] = (), options: Mapping[str, Any] = {}
) -> EvaluationSettings:
    """Return the settings of evaluating a model on a file.

    Args:
        model: The model's path; "" where it has none. What its run or export says comes first.
        path: The file; "" where the examples are no file.
        overrides: `key=value` texts, which come last.
        options: Values by key, which come between.

    Raises:
        SettingError: A key is unknown, or its value wrong.
    """
    data: dict[str, Any] = dict(_recorded(Path(model), path)) if model else {}
    renamed = any(
        config.parse_override(text)[0] in (("columns",), ("format",)) for text in overrides
    )
    if renamed or "format" in options:
        data.pop("columns", None)
    data |= options
    source = "options" if options else "--set"
    return config.build(data, EvaluationSettings, source=source, overrides=overrides)


def settings_of_run(model: str | Path) -> ReadSettings | None:
    """Return how the recipe of a run reads its files, or None where `model` is no run."""
    known = _reading_of(_of_run(Path(model)))
    return ReadSettings.model_validate(known) if known else None


def _recorded(model: Path, path: str) -> dict[str, Any]:
    """What the run or the artifact says about a file like `path`."""
    recorded = _of_run(model) or _of_artifact(model)
    known = _reading_of(recorded)
    files = [recorded.get(name) or () for name in ("train", "validation")]
    endings = {
        _ending(str(path))
        for paths in files
        for path in ([paths] if isinstance(paths, str) else paths)
    }
    if endings:
        return known if _ending(path) in endings else {}
    return known if known.get("format") in (None, known_format(path)) else {}


def _reading_of(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the recorded settings that say how a file is read."""
    return {name: recorded[name] for name in ReadSettings.model_fields if name in recorded}


def _of_run(model: Path) -> dict[str, Any]:
    for folder in (model, model.parent):
        recipe = folder / "recipe.yaml"
        if recipe.is_file():
            return config.read_yaml(recipe)[0].get("data") or {}
    return {}


def _of_artifact(model: Path) -> dict[str, Any]:
    folder = model if model.is_dir() else model.parent
    try:
        described = json.loads((folder / "tfllm.json").read_text(encoding="utf-8"))
        return described["profile"]["data"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _ending(path: str) -> str:
    return Path(path.removesuffix(".gz")).suffix.lower()
