"""What a checkpoint itself asks of generation: Hugging Face's `generation_config.json` as settings.

Keys that tfllm has no use for are left out; those that would change the text and that it cannot do
raise an error, so that a text is never silently another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tfllm.checkpoints.base import Checkpoint
from tfllm.errors import CheckpointError
from tfllm.generation.config import FIELDS, ID_ROWS, GenerationConfig, generation_config

NAMES = tuple(
    name
    for name, use in FIELDS.items()
    if use.in_checkpoint and use.group not in ("length", "sampling") and name not in ID_ROWS
)
"""Keys of generation_config.json that are taken as they are; lengths, sampling and lists of ids are
converted."""
SAMPLING = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0}
"""What transformers takes where `do_sample` is true and a key is not written."""
OTHERS = (
    "max_length", "max_new_tokens", "min_length", "min_new_tokens", "do_sample", "bad_words_ids",
)  # fmt: skip
# Keys that change texts, with the value that does not.
REFUSED: dict[str, Any] = {
    "num_beam_groups": 1, "penalty_alpha": None, "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0, "typical_p": 1.0, "suppress_tokens": None,
    "begin_suppress_tokens": None, "exponential_decay_length_penalty": None,
}  # fmt: skip


def defaults_of(checkpoint: Checkpoint, **given: Any) -> GenerationConfig:
    """The settings that an encoder-decoder's checkpoint names, with `given` ones in their place.

    `given` fields that are None count as not given. A temperature turns beam search off, and beam
    search sampling, where only one of them is given. Raises SettingError for settings that do not
    fit together, CheckpointError for files that ask for what tfllm cannot do.
    """
    given = {name: value for name, value in given.items() if value is not None}
    fields = {**_fields(checkpoint), **given}
    if given.get("temperature") and "num_beams" not in given:
        fields |= {"num_beams": 1, "coverage_penalty": 0.0}
    if given.get("num_beams", 1) > 1 and "temperature" not in given:
        fields["temperature"] = 0.0
    return generation_config(**fields)


def written_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """All that `defaults_of` reads, by Hugging Face's names: for a file that is exported."""
    found = {key: checkpoint.generation_setting(key) for key in (*NAMES, *SAMPLING, *OTHERS)}
    return {key: value for key, value in found.items() if value is not None}


def _fields(checkpoint: Checkpoint) -> dict[str, Any]:
    for key, harmless in REFUSED.items():
        if (value := checkpoint.generation_setting(key)) not in (None, harmless):
            raise CheckpointError(
                f"{checkpoint.path}: generation_config.json has {key} {value!r}, which tfllm "
                f"cannot do. Set it to {harmless!r} there to go without."
            )
    named = {name: checkpoint.generation_setting(name) for name in NAMES}
    fields = {name: _single(value) for name, value in named.items() if value is not None}
    stops = checkpoint.eos_token_id
    words = checkpoint.generation_setting("bad_words_ids") or ()
    fields["bad_words_ids"] = tuple(
        tuple(word) for word in words if not (len(word) == 1 and word[0] in stops)
    )
    fields |= _lengths(checkpoint)
    if checkpoint.generation_setting("do_sample"):
        for name, value in SAMPLING.items():
            found = checkpoint.generation_setting(name)
            fields[name] = value if found is None else found
    if "forced_bos_token_id" not in fields and (language := _language(checkpoint)) is not None:
        fields["forced_bos_token_id"] = language
    return fields


def _lengths(checkpoint: Checkpoint) -> Mapping[str, int]:
    """Hugging Face's lengths count the start token; ours do not."""
    window = checkpoint.config.max_sequence_length - 1
    most = checkpoint.generation_setting("max_new_tokens")
    if most is None:
        whole = checkpoint.generation_setting("max_length") or checkpoint.task.max_length
        most = max(whole - 1, 1)
    least = checkpoint.generation_setting("min_new_tokens")
    if least is None:
        least = max((checkpoint.generation_setting("min_length") or 0) - 1, 0)
    return {"max_new_tokens": min(most, window), "min_new_tokens": least}


def _single(value: Any) -> Any:
    """The first of a list: files may name several ids where one is meant."""
    return value[0] if isinstance(value, list) else value


def _language(checkpoint: Checkpoint) -> int | None:
    """The language that a text begins with after the start token, where there is one (mBART-50)."""
    tokenizer: Any = checkpoint.tokenizer.target
    language = getattr(tokenizer, "config", {}).get("tgt_lang")
    number = tokenizer.token_id(language) if language else None
    return number if number is not None and tokenizer.row_template.prefix == (number,) else None
