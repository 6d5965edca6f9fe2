"""How text is generated: one typed object of settings, and the same as tensors with a row each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from pydantic import Field, ValidationError, model_validator

from tfllm.config import Settings
from tfllm.errors import SettingError

if TYPE_CHECKING:
    import tensorflow as tf

LARGEST_SEED = 2**31 - 1
NO_ID = -1  # fills rows of ids that have fewer than others

TokenIds = tuple[int, ...]


class GenerationConfig(Settings):
    """Settings of one prompt. The defaults give the most likely token each time (greedy)."""

    max_new_tokens: int = Field(64, ge=1)
    """Tokens to write at most; generation also stops at the end of the model's window."""
    temperature: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Divides the logits before sampling; 0 takes the most likely token."""
    top_k: int = Field(0, ge=0)
    """Samples among so many most likely tokens; 0, or more than the vocabulary has, means all."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Samples among the most likely tokens that reach this probability together (nucleus)."""
    min_p: float = Field(0.0, ge=0, le=1)
    """Samples among tokens at least this share as likely as the most likely one."""
    repetition_penalty: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Above 1 makes every token of prompt and text so far less likely (Keskar et al. 2019)."""
    presence_penalty: float = Field(0.0, allow_inf_nan=False)
    """Taken from the logit of every token that the text so far holds; the prompt does not count."""
    frequency_penalty: float = Field(0.0, allow_inf_nan=False)
    """Taken from a token's logit once for each time that the text so far holds it."""
    no_repeat_ngram_size: int = Field(0, ge=0, le=32)
    """No sequence of so many tokens appears twice in prompt and text; 0 allows all."""
    bad_words_ids: tuple[TokenIds, ...] = ()
    """Sequences of token ids that must not appear."""
    min_new_tokens: int = Field(0, ge=0)
    """Before so many tokens no stop id is written."""
    forced_bos_token_id: int | None = Field(None, ge=0)
    """The first token of every text: mBART's language, BART's start."""
    forced_eos_token_id: int | None = Field(None, ge=0)
    """The token at the place of `max_new_tokens`, where a text has not ended before."""
    num_beams: int = Field(1, ge=1, le=64)
    """Above 1: beam search of that width."""
    length_penalty: float = Field(1.0, allow_inf_nan=False)
    """Beam search divides a text's log-probability by length to this power."""
    coverage_penalty: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Beam search with sources: so many times the coverage of Wu et al. 2016 is added to a text's
    score, which is 0 where every token of the source was looked at and below 0 elsewhere."""
    renormalize_logits: bool = False
    """Beam search makes probabilities sum to 1 again after penalties have barred tokens."""
    early_stopping: bool | Literal["never"] = False
    """When beam search ends: see docs/generation.md."""
    num_return_sequences: int = Field(1, ge=1, le=1024)
    """Texts per prompt."""
    eos_token_id: TokenIds = ()
    """Token ids that end a text; they are not part of it."""
    seed: int = Field(0, ge=0, le=LARGEST_SEED)
    """Of the random numbers; one seed gives one text."""

    @model_validator(mode="after")
    def _fit_together(self) -> GenerationConfig:
        if self.num_beams > 1 and self.temperature > 0:
            raise ValueError(
                f"num_beams {self.num_beams} searches and temperature {self.temperature:g} "
                "samples; set temperature to 0 or num_beams to 1"
            )
        if self.num_beams > 1 and self.num_return_sequences > self.num_beams:
            raise ValueError(
                f"num_return_sequences {self.num_return_sequences} is more than the "
                f"{self.num_beams} texts that num_beams finds; raise num_beams"
            )
        if self.num_return_sequences > 1 and self.num_beams == 1 and self.temperature == 0:
            raise ValueError(
                f"temperature 0 writes the same text {self.num_return_sequences} times; set a "
                "temperature above 0, or num_beams to at least num_return_sequences"
            )
        if self.num_beams == 1 and self.coverage_penalty > 0:
            raise ValueError(
                f"coverage_penalty {self.coverage_penalty:g} changes what beam search finds, and "
                "num_beams is 1; raise num_beams or set coverage_penalty to 0"
            )
        if any(not word or min(word) < 0 for word in self.bad_words_ids):
            raise ValueError("bad_words_ids must be sequences of at least one token id")
        return self


def made(**fields: object) -> GenerationConfig:
    """GenerationConfig of these fields. Raises SettingError that names the option."""
    try:
        return GenerationConfig.model_validate(fields)
    except ValidationError as error:
        problem = error.errors()[0]
        name = str(problem["loc"][0]) if problem["loc"] else ""
        message = problem["msg"].removeprefix("Value error, ")
        found = f"; it is {problem['input']!r}" if name else ""
        option = f"--{name.replace('_', '-')}: " if name else ""
        raise SettingError(f"{option}{message}{found}.") from None


class Rows(NamedTuple):
    """The settings of B rows as tensors, one entry for each row."""

    temperature: tf.Tensor
    """float32 [B]; 0: greedy"""
    top_k: tf.Tensor
    """int32 [B]; 0: all"""
    top_p: tf.Tensor
    """float32 [B]"""
    min_p: tf.Tensor
    """float32 [B]"""
    repetition_penalty: tf.Tensor
    """float32 [B]"""
    presence_penalty: tf.Tensor
    """float32 [B]"""
    frequency_penalty: tf.Tensor
    """float32 [B]"""
    no_repeat_ngram_size: tf.Tensor
    """int32 [B]; 0: off"""
    bad_words_ids: tf.Tensor
    """int32 [B, W, N]: W sequences of at most N ids, filled up with NO_ID from the left"""
    eos_token_id: tf.Tensor
    """int32 [B, K], filled up with NO_ID"""
    min_new_tokens: tf.Tensor
    """int32 [B]"""
    forced_bos_token_id: tf.Tensor
    """int32 [B]; NO_ID: none"""
    forced_eos_token_id: tf.Tensor
    """int32 [B]; NO_ID: none"""
    seed: tf.Tensor
    """int32 [B]"""
    number: tf.Tensor
    """int32 [B]: which of its prompt's texts a row is, from 0"""
    limit: tf.Tensor
    """int32 [B]: tokens of prompt and text together at most"""


@dataclass(frozen=True)
class Features:
    """What a graph has to be able to do; what is not in it costs nothing."""

    sampling: bool = False
    """Temperatures above 0."""
    filters: bool = False
    """top_k, top_p, min_p."""
    penalties: bool = False
    """Repetition, presence and frequency."""
    ngram: int = 0
    """The longest n-gram that may be barred from repeating."""
    bad_word: int = 0
    """Ids in the longest bad word."""
    forced: bool = False
    """Forced ids."""
    least: bool = False
    """A least number of tokens."""
    known: tuple[tuple[int, int], ...] = ()
    """Half-open ranges of the ids that have a token, where the model has scores of others too."""
    log_probabilities: bool = True

    def __or__(self, other: Features) -> Features:
        return Features(
            self.sampling or other.sampling,
            self.filters or other.filters,
            self.penalties or other.penalties,
            max(self.ngram, other.ngram),
            max(self.bad_word, other.bad_word),
            self.forced or other.forced,
            self.least or other.least,
            self.known or other.known,
            self.log_probabilities or other.log_probabilities,
        )


def features(settings: GenerationConfig) -> Features:
    """What these settings need, in few kinds, so that few graphs are made: greedy, sampling, and
    everything. Sizes are rounded up. Beam search, and forced ids, cost nothing that they need not:
    their settings are those of a checkpoint, and the same for all its texts."""
    sampling = settings.temperature > 0
    forced = settings.forced_bos_token_id is not None or settings.forced_eos_token_id is not None
    least = settings.min_new_tokens > 0
    penalties = (
        settings.repetition_penalty != 1,
        settings.presence_penalty != 0,
        settings.frequency_penalty != 0,
    )
    exact = settings.num_beams > 1 or forced or least
    longest = max(map(len, settings.bad_words_ids), default=1)
    if exact:
        return Features(
            sampling=sampling,
            filters=sampling,
            penalties=any(penalties),
            ngram=_rounded(settings.no_repeat_ngram_size) if settings.no_repeat_ngram_size else 0,
            bad_word=_rounded(longest) if settings.bad_words_ids else 0,
            forced=forced,
            least=least,
        )
    if not any((*penalties, settings.no_repeat_ngram_size > 0, settings.bad_words_ids)):
        return Features(sampling=sampling, filters=sampling)
    return Features(
        sampling=True,
        filters=True,
        penalties=True,
        ngram=_rounded(max(settings.no_repeat_ngram_size, 1)),
        bad_word=_rounded(longest),
    )


def _rounded(size: int) -> int:
    """The next of 4, 8, 16, …"""
    return max(4, 1 << (size - 1).bit_length())


FLOATS = (
    "temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
)  # fmt: skip
INTEGERS = ("top_k", "no_repeat_ngram_size", "min_new_tokens", "seed")
IDS = ("forced_bos_token_id", "forced_eos_token_id")


def rows(
    settings: Sequence[GenerationConfig],
    limits: Sequence[int],
    numbers: Sequence[int] | None = None,
) -> Rows:
    """One row of settings for each of B texts, as NumPy arrays that TensorFlow takes as tensors."""
    fields: dict[str, np.ndarray] = {}
    for name in FLOATS:
        fields[name] = np.array([getattr(one, name) for one in settings], np.float32)
    for name in INTEGERS:
        fields[name] = np.array([getattr(one, name) for one in settings], np.int32)
    for name in IDS:
        given = [getattr(one, name) for one in settings]
        fields[name] = np.array([NO_ID if one is None else one for one in given], np.int32)
    longest = _rounded(
        max((len(word) for one in settings for word in one.bad_words_ids), default=1)
    )
    most = max(len(one.bad_words_ids) for one in settings)
    words = np.full((len(settings), most, longest), NO_ID, np.int32)
    for row, one in enumerate(settings):
        for place, word in enumerate(one.bad_words_ids):
            words[row, place, longest - len(word) :] = word
    stops = np.full(
        (len(settings), max(len(one.eos_token_id) for one in settings)), NO_ID, np.int32
    )
    for row, one in enumerate(settings):
        stops[row, : len(one.eos_token_id)] = one.eos_token_id
    numbers = [0] * len(settings) if numbers is None else numbers
    return Rows(
        **fields,
        bad_words_ids=words,
        eos_token_id=stops,
        number=np.array(numbers, np.int32),
        limit=np.array(limits, np.int32),
    )


def row_specs() -> Rows:
    """The TensorSpecs of `Rows` for any number of rows."""
    import tensorflow as tf

    def spec(name: str) -> tf.TensorSpec:
        shapes = {"bad_words_ids": [None, None, None], "eos_token_id": [None, None]}
        dtype = tf.float32 if name in FLOATS else tf.int32
        return tf.TensorSpec(shapes.get(name, [None]), dtype, name)

    return Rows(*map(spec, Rows._fields))
