"""Settings of generation as people give them: what is not given is the checkpoint's own."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from tfllm.config import Settings


class GenerationOverrides(Settings):
    """What may be said of how texts are written after sources; see `GenerationConfig`."""

    max_new_tokens: int | None = Field(default=None, ge=1)
    """Tokens to write at most."""
    min_new_tokens: int | None = Field(default=None, ge=0)
    """Tokens to write at least."""
    num_beams: int | None = Field(default=None, ge=1, le=64)
    """Above 1: beam search of that width."""
    length_penalty: float | None = Field(default=None, allow_inf_nan=False)
    """Of beam search: higher favours longer texts."""
    coverage_penalty: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Of beam search: higher favours texts that leave nothing of the source out."""
    early_stopping: bool | Literal["never"] | None = None
    """When beam search ends."""
    no_repeat_ngram_size: int | None = Field(default=None, ge=0, le=32)
    """No so many tokens in a row twice; 0: off."""
    repetition_penalty: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Above 1: less of what the text holds."""
    temperature: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Above 0: sampling."""
    top_k: int | None = Field(default=None, ge=0)
    """Sampling among so many tokens; 0: all."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Sampling among tokens of this joint share."""
    num_return_sequences: int | None = Field(default=None, ge=1, le=64)
    """Texts for each source."""
    seed: int | None = Field(default=None, ge=0)
    """Of the random numbers of sampling."""

    @property
    def given(self) -> dict[str, Any]:
        """The fields that are given."""
        named = {name: getattr(self, name) for name in GenerationOverrides.model_fields}
        return {name: value for name, value in named.items() if value is not None}

    @property
    def huggingface(self) -> dict[str, Any]:
        """The same as keys of `generation_config.json`."""
        if not self.given:
            return {}
        found = dict(self.given)
        found.pop("seed", None)  # of one call, not of a model
        if found.get("temperature"):
            found["do_sample"] = True
        return found
