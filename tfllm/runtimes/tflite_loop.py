"""Tokens from the signatures `generate` and `generate_batch_N` of a .tflite file, which write whole
texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfllm.errors import SettingError
from tfllm.generation.config import GenerationConfig
from tfllm.generation.engine import Engine, OnToken, Result
from tfllm.generation.slots import padded
from tfllm.runtimes.causal_lm_artifact import check_settings, heard, results_of
from tfllm.runtimes.tflite import interpreter_of
from tfllm.runtimes.tflite_engine import Shape, SourceShape

SIGNATURE = "generate"
# The file's names for what the SavedModel calls otherwise.
OUTPUTS = {"ids": "token_ids", "counts": "token_count"}


class LoopEngine(Engine):
    """One text, or as many as a signature has rows, in each call."""

    def __init__(self, path: Path, vocabulary_size: int, own: GenerationConfig | None = None):
        """`own` are the settings in a file that reads sources; they are its prompts then."""
        interpreter = interpreter_of(path)
        self._runners = {
            int(runner.get_input_details()["token_ids"]["shape"][0]): runner
            for runner in (
                interpreter.get_signature_runner(name)
                for name in interpreter.get_signature_list()
                if name.startswith(SIGNATURE)
            )
        }
        """Rows -> signature."""
        runner = self._runners[min(self._runners)]
        inputs, outputs = runner.get_input_details(), runner.get_output_details()
        self.prompt_length = int(inputs["token_ids"]["shape"][1])
        self.most_new = int(outputs["ids"]["shape"][1])
        self.own = own
        shape: Any = Shape(self.prompt_length + self.most_new, vocabulary_size)
        if own is not None:
            shape = SourceShape(self.most_new + 1, vocabulary_size, self.prompt_length)
        super().__init__(shape, max_rows=max(self._runners))
        self._types = {name: details["dtype"] for name, details in inputs.items()}

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        settings: GenerationConfig | Sequence[GenerationConfig],
        on_token: OnToken | None = None,
        *,
        steps: int | None = None,
        sources: Sequence[Sequence[int]] | None = None,
    ) -> list[Result]:
        """See Engine.generate. Raises SettingError for settings that the signature has not."""
        given = self.sources_of(prompts, sources)
        each = self.settings_of(prompts, settings)
        for one in each:
            check_settings(one, self.own)
        prompts = prompts if sources is None else given
        results: list[Result] = []
        while len(results) < len(prompts):
            start, left = len(results), len(prompts) - len(results)
            whole = [size for size in self._runners if size <= left]
            size = max(whole, default=min(self._runners))
            found = self._texts(prompts[start : start + size], each[start : start + size], size)
            results += [heard(start + row, text, on_token) for row, text in enumerate(found)]
        return results

    def check(self, prompt: Sequence[int], name: str = "the prompt") -> None:
        """Raises SettingError for a prompt that is empty or longer than the file's."""
        super().check(prompt, name)
        if len(prompt) > self.prompt_length:
            raise SettingError(
                f"{name} has {len(prompt):,} tokens, and this file reads {self.prompt_length:,}. "
                "Shorten it, or export with a larger prompt_length."
            )

    def _texts(
        self,
        prompts: Sequence[Sequence[int]],
        settings: Sequence[GenerationConfig],
        size: int,
    ) -> list[Result]:
        """Of one call; where there are fewer prompts than the signature has rows, the last one
        stands in the others."""
        spare = size - len(prompts)
        token_ids, lengths = padded([*prompts, *[prompts[-1]] * spare], self.prompt_length)
        rows = [*settings, *[settings[-1]] * spare]
        given = {"token_ids": token_ids, "lengths": lengths}
        for name, kind in self._types.items():
            if name not in given:
                given[name] = np.array([getattr(one, name) for one in rows], kind)
        found = self._runners[size](**given)
        results = results_of({OUTPUTS.get(name, name): value for name, value in found.items()})
        return results[: len(prompts)]
