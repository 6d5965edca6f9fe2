"""Tokens from the signature `generate` of a .tflite file, which writes whole texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfllm.errors import SettingError
from tfllm.evaluation.language_artifact import check_settings, heard, padded, results_of
from tfllm.evaluation.lite_engine import Shape
from tfllm.evaluation.tflite_model import interpreter_of
from tfllm.generation.engine import Engine, OnToken, Result
from tfllm.generation.settings import GenerationSettings

SIGNATURE = "generate"
# The file's names for what the SavedModel calls otherwise.
OUTPUTS = {"ids": "token_ids", "counts": "token_count"}


class LoopEngine(Engine):
    """One text after the other, each in one call."""

    def __init__(self, path: Path, vocabulary_size: int):
        self.runner = interpreter_of(path).get_signature_runner(SIGNATURE)
        inputs, outputs = self.runner.get_input_details(), self.runner.get_output_details()
        self.prompt_length = int(inputs["token_ids"]["shape"][1])
        self.most_new = int(outputs["ids"]["shape"][1])
        shape: Any = Shape(self.prompt_length + self.most_new, vocabulary_size)
        super().__init__(shape, max_rows=1)
        self._types = {name: details["dtype"] for name, details in inputs.items()}

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        settings: GenerationSettings | Sequence[GenerationSettings],
        on_token: OnToken | None = None,
        *,
        steps: int | None = None,
    ) -> list[Result]:
        """See Engine.generate. Raises SettingError for settings that the signature has not."""
        each = [settings] * len(prompts) if isinstance(settings, GenerationSettings) else settings
        results = []
        for number, (prompt, one) in enumerate(zip(prompts, each, strict=True)):
            self.check(prompt, f"prompt {number + 1}")
            check_settings(one)
            results.append(heard(number, self._text(prompt, one), on_token))
        return results

    def check(self, prompt: Sequence[int], name: str = "the prompt") -> None:
        """Raises SettingError for a prompt that is empty or longer than the file's."""
        super().check(prompt, name)
        if len(prompt) > self.prompt_length:
            raise SettingError(
                f"{name} has {len(prompt):,} tokens, and this file reads {self.prompt_length:,}. "
                "Shorten it, or export with a larger prompt_length."
            )

    def _text(self, prompt: Sequence[int], settings: GenerationSettings) -> Result:
        token_ids, lengths = padded([prompt], self.prompt_length)
        given = {"token_ids": token_ids, "lengths": lengths}
        for name, kind in self._types.items():
            if name not in given:
                given[name] = np.array([getattr(settings, name)], kind)
        found = self.runner(**given)
        return results_of({OUTPUTS.get(name, name): value for name, value in found.items()})[0]
