"""What every generator of token ids offers: the engine, exported files, and their limits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tfllm.errors import SettingError
from tfllm.generation.config import GenerationConfig

MAX_BATCH_SIZE = 32

OnToken = Callable[[int, int, float], "bool | None"]
"""on_token(index of the text, token id, log-probability): True ends that text with "stop"."""
TokenRanges = tuple[tuple[int, int], ...]
Ids = Sequence[int]


@dataclass(frozen=True)
class GenerationResult:
    """One generated text as token ids."""

    ids: list[int]
    """The new tokens, without the end-of-sequence token."""
    log_probabilities: list[float]
    """Of each token under the model itself, before temperature, filters and penalties."""
    finish_reason: str
    """"stop": an end-of-sequence token, or `on_token` said so; "length": max_new_tokens or the
    model's context window."""
    score: float | None = None
    """Beam search: the log-probability over the length to the power of the length penalty."""


class GenerationInputs(NamedTuple):
    """One prompt with its settings and, where the model reads one, its source."""

    prompt: Ids
    config: GenerationConfig
    source: Ids = ()


@dataclass(frozen=True)
class ModelLimits:
    """What ids a model, or an exported file, takes."""

    max_sequence_length: int
    """Tokens of prompt and text together: the context window."""
    vocabulary_size: int
    max_source_length: int | None = None
    """Tokens of a source; None: the model reads none."""
    source_vocabulary_size: int = 2**31 - 1
    max_prompt_length: int | None = None
    """Tokens of a prompt, where a file has a fixed shape; None: one less than the window."""

    def max_length(self, prompt: Ids, config: GenerationConfig) -> int:
        """Return the maximum number of tokens of prompt and text together."""
        return min(len(prompt) + config.max_new_tokens, self.max_sequence_length)

    def check_prompt(self, prompt: Ids, name: str = "the prompt") -> None:
        """Check that token ids can be continued.

        Args:
            prompt: The ids.
            name: What the error calls them.

        Raises:
            SettingError: There are none, or too many, or one is outside of the vocabulary.
        """
        window = self.max_sequence_length
        if not len(prompt):
            raise SettingError(f"{name} is empty. Give at least one token to start from.")
        if len(prompt) >= window:
            raise SettingError(
                f"{name} has {len(prompt):,} tokens, and the model's window of {window:,} has no "
                "room for more. Shorten it, or cut its beginning off with --truncate left."
            )
        if min(prompt) < 0 or max(prompt) >= self.vocabulary_size:
            raise SettingError(
                f"{name} holds a token id outside 0 to {self.vocabulary_size - 1}. Encode "
                "it with the tokenizer of this model."
            )
        if self.max_prompt_length and len(prompt) > self.max_prompt_length:
            raise SettingError(
                f"{name} has {len(prompt):,} tokens, and this file reads "
                f"{self.max_prompt_length:,}. Shorten it, or export with a larger prompt_length."
            )

    def check_source(self, source: Ids, name: str = "the source") -> None:
        """Check that token ids can be read by the encoder.

        Args:
            source: The ids.
            name: What the error calls them.

        Raises:
            SettingError: There are none, or too many, or one is outside of the vocabulary.
        """
        window = self.max_source_length or self.max_sequence_length
        if not len(source):
            raise SettingError(f"{name} is empty. Give at least one token.")
        if len(source) > window:
            raise SettingError(
                f"{name} has {len(source):,} tokens, and the model reads {window:,}. Shorten it, "
                "or cut its end off with --truncate right."
            )
        size = self.source_vocabulary_size
        if min(source) < 0 or max(source) >= size:
            raise SettingError(
                f"{name} holds a token id outside 0 to {size - 1}. Encode it with the tokenizer of "
                "this model."
            )

    def check_inputs(
        self,
        prompts: Sequence[Ids],
        config: GenerationConfig | Sequence[GenerationConfig],
        sources: Sequence[Ids] | None,
    ) -> list[GenerationInputs]:
        """Check the inputs of `TokenGenerator.generate` and pair them up.

        Args:
            prompts: Token ids of each.
            config: The settings of all, or of each.
            sources: Token ids of each one's source; None for a decoder.

        Returns:
            The inputs of each text.

        Raises:
            SettingError: A prompt or source cannot be read, or sources are given to a model without
                an encoder, or are missing.
        """
        for number, prompt in enumerate(prompts, 1):
            self.check_prompt(prompt, f"prompt {number}")
        if (sources is not None) != (self.max_source_length is not None):
            expected = "none" if sources is not None else "one for each prompt"
            raise SettingError(f"This model generates from sources: {expected}.")
        for number, source in enumerate(sources or (), 1):
            self.check_source(source, f"source {number}")
        count = len(prompts)
        configs = [config] * count if isinstance(config, GenerationConfig) else config
        return [
            GenerationInputs(*inputs)
            for inputs in zip(prompts, configs, sources or [()] * count, strict=True)
        ]


class TokenGenerator(ABC):
    """Generates token ids after token ids, without a tokenizer. One thread at a time may use it."""

    limits: ModelLimits
    max_batch_size: int = MAX_BATCH_SIZE
    """Rows that are generated together."""
    token_ranges: TokenRanges = ()
    """Half-open ranges of the ids that may be generated; () for all. Exported files that generate
    whole texts have their own."""

    def generate(
        self,
        prompts: Sequence[Ids],
        config: GenerationConfig | Sequence[GenerationConfig],
        on_token: OnToken | None = None,
        *,
        steps: int | None = None,
        sources: Sequence[Ids] | None = None,
    ) -> list[GenerationResult]:
        """Generate `num_return_sequences` texts after each prompt.

        Args:
            prompts: Token ids. Those of an encoder-decoder begin with its start token.
            config: The settings of all prompts, or of each.
            on_token: Called with every token as it is generated, or at the end with those of an
                exported file that generates whole texts; not with those of beam search.
            steps: How many tokens a row may get between two calls of `on_token`: 1 where tokens are
                shown at once.
            sources: The source of each prompt, for an encoder-decoder.

        Returns:
            The texts in the order of the prompts.

        Raises:
            SettingError: A prompt or source is empty, too long, or holds unknown ids; or a setting
                is not supported.
        """
        inputs = self.limits.check_inputs(prompts, config, sources)
        return self.generate_checked(inputs, on_token, steps)

    @abstractmethod
    def generate_checked(
        self,
        inputs: Sequence[GenerationInputs],
        on_token: OnToken | None = None,
        steps: int | None = None,
    ) -> list[GenerationResult]:
        """Generate from inputs that `ModelLimits.check_inputs` has checked.

        Args:
            inputs: Prompt, source and settings of each text.
            on_token: See `generate`.
            steps: Tokens that are generated between two calls of `on_token`; None: as is fast.

        Returns:
            The results in the order of the inputs.
        """
        ...


def stop_at(
    results: Sequence[GenerationResult], on_token: OnToken | None, first: int = 0
) -> list[GenerationResult]:
    """Give `on_token` the tokens of whole texts, and end a text where it asks for that.

    Args:
        results: The texts.
        on_token: See `TokenGenerator.generate`.
        first: The index of the first text.

    Returns:
        The texts, ended.
    """
    if on_token is None:
        return list(results)
    return [_stop_at(index, result, on_token) for index, result in enumerate(results, first)]


def _stop_at(index: int, result: GenerationResult, on_token: OnToken) -> GenerationResult:
    tokens = zip(result.ids, result.log_probabilities, strict=True)
    for count, (token, log_probability) in enumerate(tokens, 1):
        if on_token(index, token, log_probability):
            return GenerationResult(result.ids[:count], result.log_probabilities[:count], "stop")
    return result
