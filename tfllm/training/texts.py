"""Texts that a seq2seq model writes for validation examples, while training and after it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras

from tfllm.training import directory as files

if TYPE_CHECKING:
    from tfllm.checkpoints.store import Checkpoint
    from tfllm.training.measuring import Measure
    from tfllm.training.origin import Start
    from tfllm.training.recipe import EvaluateSettings

FINAL_TEXTS = 2000  # validation examples that texts are written for in the end


@dataclasses.dataclass(frozen=True)
class Texts:
    """Writes texts for validation examples and measures them."""

    start: Start
    examples: Sequence[dict[str, Any]]
    measure: Measure
    settings: EvaluateSettings

    def measured(self, checkpoint: Checkpoint, count: int) -> dict[str, Any]:
        """The measures of the texts for `count` examples, evenly spread: files may be sorted."""
        from tfllm.generation.seq2seq_generator import TextToText
        from tfllm.generation.written import written

        count = min(count, len(self.examples))
        few = [self.examples[index * len(self.examples) // count] for index in range(count)]
        writer = TextToText(checkpoint)  # a new one: it copies weights
        settings = writer.defaults(**self.settings.generation.set_fields())
        answers = written(writer, few, settings, truncate=True, batch_size=self.settings.batch_size)
        return self.measure(checkpoint.task, answers, few)

    def while_training(self) -> dict[str, Any]:
        """Of `evaluate.generate` examples, with the model as it is now."""
        now = dataclasses.replace(self.start.checkpoint, model=self.start.model)
        return self.measured(now, self.settings.generate or 0)

    def at_the_end(self, directory: Path) -> dict[str, Any]:
        """Of at most FINAL_TEXTS examples, with the checkpoint that the run has kept."""
        from tfllm.checkpoints import store

        begun = time.monotonic()
        found = self.measured(store.load(directory / files.CHECKPOINT), FINAL_TEXTS)
        found.pop("samples", None)
        return {
            **found,
            "generation": self.settings.generation.set_fields(),
            "examples": min(FINAL_TEXTS, len(self.examples)),
            "seconds": round(time.monotonic() - begun, 1),
        }

    def names(self) -> list[str]:
        """What `measured` has, found on a text of one letter."""
        found = self.measure(self.start.task, [{"text": "a"}], self.examples[:1])
        return [name for name, value in found.items() if isinstance(value, float)]


def texts_of(
    start: Start,
    examples: Sequence[dict[str, Any]],
    measure: Measure | None,
    settings: EvaluateSettings,
) -> Texts | None:
    """What writes texts for the examples; None where the task or the recipe has none written."""
    if (
        start.task.generates != "target"
        or getattr(start.task, "span_corruption", False)
        or measure is None
        or settings.generate == 0
        or keras.backend.backend() != "tensorflow"
    ):
        return None
    return Texts(start, examples, measure, settings)
