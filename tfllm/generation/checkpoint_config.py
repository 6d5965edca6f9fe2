"""The settings of generation that a checkpoint itself has: Hugging Face's `generation_config.json`.

Keys that tfllm has no use for are left out; those that would change the text and that it cannot do
raise an error, so that a text is never silently another.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from tfllm.errors import CheckpointError
from tfllm.generation.config import FIELDS, ID_ROWS, GenerationConfig, generation_config
from tfllm.tasks import Task
from tfllm.tokenizers.base import Tokenizer

SAME_KEYS = tuple(
    name
    for name, use in FIELDS.items()
    if use.in_checkpoint and use.group not in ("length", "sampling") and name not in ID_ROWS
)
"""Keys of generation_config.json that are taken as they are; lengths, sampling and lists of ids are
converted."""
SAMPLING = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0}
"""What transformers takes where `do_sample` is true and a key is not there."""
# Keys that change texts, with the value that does not.
UNSUPPORTED: dict[str, object] = {
    "num_beam_groups": 1, "penalty_alpha": None, "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0, "typical_p": 1.0, "suppress_tokens": None,
    "begin_suppress_tokens": None, "exponential_decay_length_penalty": None,
}  # fmt: skip


class ModelSize(Protocol):
    """The part of a model's config that generation reads."""

    @property
    def max_sequence_length(self) -> int:
        """Tokens of prompt and text together."""
        ...

    @property
    def vocabulary_size(self) -> int:
        """Ids that the model has logits for."""
        ...


class GenerationSource(Protocol):
    """What generation asks of a checkpoint, or of the description of an exported file."""

    @property
    def path(self) -> Path | None:
        """Where it was loaded from."""
        ...

    @property
    def task(self) -> Task:
        """What the model is for."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer, of sources where it has an encoder."""
        ...

    @property
    def config(self) -> ModelSize:
        """The model's size."""
        ...

    @property
    def eos_token_id(self) -> tuple[int, ...]:
        """Token ids that end a text."""
        ...

    @property
    def decoder_start_token_id(self) -> int | None:
        """The decoder's first token of an encoder-decoder; None for any other model."""
        ...

    def generation_setting(self, key: str) -> Any:
        """Return the value of a key of generation_config.json, or None."""
        ...


def checkpoint_config(checkpoint: GenerationSource, **overrides: Any) -> GenerationConfig:
    """Return the settings of an encoder-decoder's checkpoint with overrides.

    A temperature turns beam search off, and beam search sampling, where only one of them is given.

    Args:
        checkpoint: The checkpoint.
        **overrides: Fields of GenerationConfig; those that are None count as not given.

    Raises:
        SettingError: Settings do not fit together.
        CheckpointError: The files ask for what tfllm cannot do.
    """
    set_overrides = {name: value for name, value in overrides.items() if value is not None}
    fields = {**_fields(checkpoint), **set_overrides}
    if set_overrides.get("temperature") and "num_beams" not in set_overrides:
        fields |= {"num_beams": 1, "coverage_penalty": 0.0}
    if set_overrides.get("num_beams", 1) > 1 and "temperature" not in set_overrides:
        fields["temperature"] = 0.0
    return generation_config(**fields)


def huggingface_settings(checkpoint: GenerationSource) -> dict[str, Any]:
    """Return what `checkpoint_config` reads, under Hugging Face's names: for an exported file."""
    keys = [name for name, use in FIELDS.items() if use.in_checkpoint and name != "eos_token_id"]
    keys += ["max_length", "min_length", "do_sample"]
    values = {key: checkpoint.generation_setting(key) for key in keys}
    return {key: value for key, value in values.items() if value is not None}


def _fields(checkpoint: GenerationSource) -> dict[str, Any]:
    for key, harmless in UNSUPPORTED.items():
        if (value := checkpoint.generation_setting(key)) not in (None, harmless):
            raise CheckpointError(
                f"{checkpoint.path}: generation_config.json has {key} {value!r}, which tfllm "
                f"cannot do. Set it to {harmless!r} there to go without."
            )
    values = {name: checkpoint.generation_setting(name) for name in SAME_KEYS}
    fields = {name: _single(value) for name, value in values.items() if value is not None}
    words = checkpoint.generation_setting("bad_words_ids") or ()
    fields["bad_words_ids"] = tuple(
        tuple(word) for word in words if not (len(word) == 1 and word[0] in checkpoint.eos_token_id)
    )
    fields |= _lengths(checkpoint)
    if checkpoint.generation_setting("do_sample"):
        for name, default in SAMPLING.items():
            value = checkpoint.generation_setting(name)
            fields[name] = default if value is None else value
    if "forced_bos_token_id" not in fields and (language := _language(checkpoint)) is not None:
        fields["forced_bos_token_id"] = language
    return fields


def _lengths(checkpoint: GenerationSource) -> Mapping[str, int]:
    """Hugging Face's lengths count the start token; ours do not."""
    window = checkpoint.config.max_sequence_length - 1
    max_new_tokens = checkpoint.generation_setting("max_new_tokens")
    if max_new_tokens is None:
        max_length = checkpoint.generation_setting("max_length") or checkpoint.task.max_length
        max_new_tokens = max(max_length - 1, 1)
    min_new_tokens = checkpoint.generation_setting("min_new_tokens")
    if min_new_tokens is None:
        min_new_tokens = max((checkpoint.generation_setting("min_length") or 0) - 1, 0)
    return {"max_new_tokens": min(max_new_tokens, window), "min_new_tokens": min_new_tokens}


def _single(value: object) -> object:
    """The first of a list: files may name several ids where one is meant."""
    return value[0] if isinstance(value, list) else value


def _language(checkpoint: GenerationSource) -> int | None:
    """The language that a text begins with after the start token, where there is one (mBART-50)."""
    tokenizer: Any = checkpoint.tokenizer.target
    language = getattr(tokenizer, "config", {}).get("tgt_lang")
    number = tokenizer.token_id(language) if language else None
    return number if number is not None and tokenizer.row_template.prefix == (number,) else None
