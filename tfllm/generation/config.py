"""The settings of generation: one typed class, and what everything else derives from it.

`GenerationConfig` holds the settings of one prompt under transformers' names. `FIELDS` says of
every field what it is for, and is the only list of settings: command-line options, export profiles,
the inputs of exported signatures and the tensors of a batch (`BatchedConfig`) derive from both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Field, ValidationError, create_model, model_validator
from pydantic.fields import FieldInfo

from tfllm.config import Settings
from tfllm.errors import SettingError

if TYPE_CHECKING:
    import numpy as np
    import tensorflow as tf

MAX_SEED = 2**31 - 1
NO_ID = -1  # padding of rows of ids, and the id of a token that is not set

TokenIds = tuple[int, ...]


class GenerationConfig(Settings):
    """Settings of the texts generated for one prompt. The defaults are greedy search.

    Names and meanings are those of transformers' `GenerationConfig`; `presence_penalty` and
    `frequency_penalty` are those of OpenAI's API, `coverage_penalty` that of Wu et al. 2016.
    """

    max_new_tokens: int = Field(default=64, ge=1)
    """Maximum number of tokens to generate, the prompt not counted; the end of the model's context
    window ends a text too."""
    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Divides the logits before sampling: lower is more predictable. 0 takes the most likely token
    (greedy search)."""
    top_k: int = Field(default=0, ge=0)
    """Top-k sampling: keep only this many tokens of the highest probability; 0 keeps all."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling: keep the smallest set of most likely tokens whose cumulative probability is
    at least this."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    """Min-p sampling: keep tokens whose probability is at least this share of the most likely
    token's."""
    repetition_penalty: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Penalty on tokens of the prompt and the text so far; above 1 makes them less likely, 1 is
    none (Keskar et al. 2019)."""
    presence_penalty: float = Field(default=0.0, allow_inf_nan=False)
    """Subtracted from the logit of every token that the generated text contains."""
    frequency_penalty: float = Field(default=0.0, allow_inf_nan=False)
    """Subtracted from a token's logit once for each time that the generated text contains it."""
    no_repeat_ngram_size: int = Field(default=0, ge=0, le=32)
    """No n-gram of this size occurs twice in prompt and text; 0 allows all."""
    bad_words_ids: tuple[TokenIds, ...] = ()
    """Sequences of token ids that must not be generated."""
    min_new_tokens: int = Field(default=0, ge=0)
    """Minimum number of tokens to generate: no end-of-sequence token is generated before."""
    forced_bos_token_id: int | None = Field(default=None, ge=0)
    """Token id forced as the first generated token, such as mBART's target language."""
    forced_eos_token_id: int | None = Field(default=None, ge=0)
    """Token id forced as the last token when `max_new_tokens` is reached."""
    num_beams: int = Field(default=1, ge=1, le=64)
    """Number of beams of beam search; 1 is no beam search."""
    length_penalty: float = Field(default=1.0, allow_inf_nan=False)
    """Beam search: exponent of the length by which a text's log-probability is divided; higher
    favours longer texts."""
    coverage_penalty: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Beam search of encoder-decoders: weight of the coverage term (Wu et al. 2016) in a text's
    score; higher favours texts that attend to every token of the source."""
    renormalize_logits: bool = False
    """Beam search: normalize the log-probabilities again after the penalties."""
    early_stopping: bool | Literal["never"] = False
    """Beam search: when it ends. true: once `num_beams` texts are complete; false: when better ones
    are unlikely; never: when better ones are impossible."""
    num_return_sequences: int = Field(default=1, ge=1, le=1024)
    """Number of texts generated for each prompt."""
    eos_token_id: TokenIds = ()
    """Token ids that end a text (end of sequence); they are not part of it."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed of the random numbers of sampling; the same seed gives the same text."""

    @model_validator(mode="after")
    def _check_combination(self) -> GenerationConfig:
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


def generation_config(**fields: object) -> GenerationConfig:
    """Build a GenerationConfig.

    Args:
        **fields: Fields of GenerationConfig; the others keep their defaults.

    Raises:
        SettingError: A value is wrong; the message names the command-line option of that field.
    """
    try:
        return GenerationConfig.model_validate(fields)
    except ValidationError as error:
        problem = error.errors()[0]
        name = str(problem["loc"][0]) if problem["loc"] else ""
        message = problem["msg"].removeprefix("Value error, ")
        value = f"; it is {problem['input']!r}" if name else ""
        option = f"--{name.replace('_', '-')}: " if name else ""
        raise SettingError(f"{option}{message}{value}.") from None


Group = Literal["length", "sampling", "penalty", "constraint", "beam_search", "output"]


class Use(NamedTuple):
    """What a field of GenerationConfig is for, and where it may be set."""

    group: Group
    per_row: bool = True
    """Each row of a batch has its own value: a tensor of `BatchedConfig`."""
    signatures: tuple[str, ...] = ()
    """The exported signatures that take it as an input with one value for each row: `generate` and
    `generate_tokens` ("generate"), `beam` and `beam_tokens` ("beam")."""
    in_checkpoint: bool = True
    """Hugging Face's `generation_config.json` has it under the same name and with the same
    meaning."""


FIELDS: dict[str, Use] = {
    "max_new_tokens": Use("length", per_row=False, signatures=("generate", "beam")),
    "min_new_tokens": Use("length"),
    "temperature": Use("sampling", signatures=("generate",)),
    "top_k": Use("sampling", signatures=("generate",)),
    "top_p": Use("sampling", signatures=("generate",)),
    "min_p": Use("sampling"),
    "seed": Use("sampling", signatures=("generate",), in_checkpoint=False),
    "repetition_penalty": Use("penalty"),
    "presence_penalty": Use("penalty", in_checkpoint=False),
    "frequency_penalty": Use("penalty", in_checkpoint=False),
    "no_repeat_ngram_size": Use("constraint"),
    "bad_words_ids": Use("constraint"),
    "forced_bos_token_id": Use("constraint"),
    "forced_eos_token_id": Use("constraint"),
    "eos_token_id": Use("constraint"),
    "num_beams": Use("beam_search", per_row=False),
    "length_penalty": Use("beam_search", per_row=False, signatures=("beam",)),
    "coverage_penalty": Use("beam_search", per_row=False, in_checkpoint=False),
    "early_stopping": Use("beam_search", per_row=False),
    "renormalize_logits": Use("beam_search", per_row=False),
    "num_return_sequences": Use("output", per_row=False),
}
"""Every field of GenerationConfig. The order is that of a signature's inputs."""


def fields_in(*groups: Group) -> tuple[str, ...]:
    """Return the names of the fields in these groups, in the order of `FIELDS`."""
    return tuple(name for name, use in FIELDS.items() if use.group in groups)


def signature_fields(signature: str) -> dict[str, np.dtype]:
    """Return the settings that an exported signature ("generate", "beam") takes: name -> dtype."""
    return {name: dtype_of(name) for name, use in FIELDS.items() if signature in use.signatures}


def dtype_of(name: str) -> np.dtype:
    """Return the type of a field in a tensor: float32, or int32 for numbers and ids."""
    import numpy as np  # not for `tfllm generate --help`

    return np.dtype(
        np.float32 if GenerationConfig.model_fields[name].annotation is float else np.int32
    )


def description_of(name: str) -> str:
    """Return the description of a field on one line, as help texts show it."""
    return " ".join((GenerationConfig.model_fields[name].description or "").split())


def option_fields(names: Iterable[str] = tuple(FIELDS), *, optional: bool = True) -> dict[str, Any]:
    """Return fields of GenerationConfig for another class: see `pydantic.create_model`.

    Args:
        names: Which fields.
        optional: Make None, "not set", the default; else it is GenerationConfig's.

    Returns:
        Name -> (type, field) with the same limits and description.
    """
    return {name: _option(GenerationConfig.model_fields[name], optional) for name in names}


def _option(field: FieldInfo, optional: bool) -> tuple[Any, Any]:
    value: Any = (
        Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    )
    if not optional:
        return value, Field(field.default, description=field.description)
    return value | None, Field(None, description=field.description)


class _Overrides(Settings):
    """Settings of generation of which any may be left unset."""

    def set_fields(self) -> dict[str, Any]:
        """The fields that are set."""
        values = {name: getattr(self, name) for name in FIELDS}
        return {name: value for name, value in values.items() if value is not None}

    def to_huggingface(self) -> dict[str, Any]:
        """The set fields as keys of `generation_config.json`."""
        fields = self.set_fields()
        fields.pop("seed", None)  # of one call, not of a model
        if fields.get("temperature"):
            fields["do_sample"] = True
        return fields


if TYPE_CHECKING:

    class GenerationOverrides(_Overrides):
        """The fields of GenerationConfig, each None, its default, where it is not set."""

else:
    GenerationOverrides = create_model(
        "GenerationOverrides",
        __base__=_Overrides,
        __module__=__name__,
        __doc__="""The fields of GenerationConfig; a field that is None, the default, is not set.

        The checkpoint's own settings hold for the fields that are not set.
        """,
        **option_fields(),
    )


class BatchedConfig(NamedTuple):
    """The settings of B rows as tensors with one entry for each row.

    The fields of GenerationConfig that are `per_row` in FIELDS, and two that tell rows apart.
    """

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
    """int32 [B, W, N]: W sequences of at most N ids, padded on the left with NO_ID"""
    eos_token_id: tf.Tensor
    """int32 [B, E], padded with NO_ID"""
    min_new_tokens: tf.Tensor
    """int32 [B]"""
    forced_bos_token_id: tf.Tensor
    """int32 [B]; NO_ID: none"""
    forced_eos_token_id: tf.Tensor
    """int32 [B]; NO_ID: none"""
    seed: tf.Tensor
    """int32 [B]"""
    sequence_index: tf.Tensor
    """int32 [B]: which of its prompt's `num_return_sequences` texts a row is, from 0"""
    max_length: tf.Tensor
    """int32 [B]: maximum number of tokens of prompt and text together"""


@dataclass(frozen=True)
class GraphFlags:
    """What a graph has to support; what it need not support costs nothing."""

    sampling: bool = False
    """Temperatures above 0."""
    filters: bool = False
    """top_k, top_p, min_p."""
    penalties: bool = False
    """Repetition, presence and frequency penalties."""
    max_ngram_size: int = 0
    """The largest `no_repeat_ngram_size`; 0: none."""
    max_bad_word_length: int = 0
    """Token ids of the longest of `bad_words_ids`; 0: none."""
    forced_tokens: bool = False
    """forced_bos_token_id, forced_eos_token_id."""
    min_new_tokens: bool = False
    """A minimum number of tokens."""
    token_ranges: tuple[tuple[int, int], ...] = ()
    """Half-open ranges of the ids that have a token, where the model has logits for others too;
    (): every id has one."""
    log_probabilities: bool = True

    def __or__(self, other: GraphFlags) -> GraphFlags:
        return GraphFlags(
            self.sampling or other.sampling,
            self.filters or other.filters,
            self.penalties or other.penalties,
            max(self.max_ngram_size, other.max_ngram_size),
            max(self.max_bad_word_length, other.max_bad_word_length),
            self.forced_tokens or other.forced_tokens,
            self.min_new_tokens or other.min_new_tokens,
            self.token_ranges or other.token_ranges,
            self.log_probabilities or other.log_probabilities,
        )


def graph_flags(config: GenerationConfig) -> GraphFlags:
    """Return the flags of the graph that serves a config.

    There are few kinds, so that few graphs are traced: greedy, sampling, and everything; sizes are
    rounded up. With beam search, forced tokens or a minimum length the flags are exact: these are
    settings of a checkpoint, and the same for all its texts.
    """
    sampling = config.temperature > 0
    forced = config.forced_bos_token_id is not None or config.forced_eos_token_id is not None
    penalties = (
        config.repetition_penalty != 1
        or config.presence_penalty != 0
        or config.frequency_penalty != 0
    )
    ngram_size = config.no_repeat_ngram_size
    word_length = max(map(len, config.bad_words_ids), default=1)
    if config.num_beams > 1 or forced or config.min_new_tokens > 0:
        return GraphFlags(
            sampling=sampling,
            filters=sampling,
            penalties=penalties,
            max_ngram_size=_round_up(ngram_size) if ngram_size else 0,
            max_bad_word_length=_round_up(word_length) if config.bad_words_ids else 0,
            forced_tokens=forced,
            min_new_tokens=config.min_new_tokens > 0,
        )
    if not (penalties or ngram_size or config.bad_words_ids):
        return GraphFlags(sampling=sampling, filters=sampling)
    return GraphFlags(
        sampling=True,
        filters=True,
        penalties=True,
        max_ngram_size=_round_up(max(ngram_size, 1)),
        max_bad_word_length=_round_up(word_length),
    )


def _round_up(size: int) -> int:
    """The next of 4, 8, 16, …"""
    return max(4, 1 << (size - 1).bit_length())


def batch_configs(
    configs: Sequence[GenerationConfig],
    max_lengths: Sequence[int],
    sequence_indices: Sequence[int] | None = None,
) -> BatchedConfig:
    """Batch the settings of B rows.

    Args:
        configs: The settings of each row.
        max_lengths: `BatchedConfig.max_length` of each row.
        sequence_indices: `BatchedConfig.sequence_index` of each row; unset: 0.

    Returns:
        NumPy arrays, which TensorFlow takes as tensors.
    """
    import numpy as np

    arrays: dict[str, np.ndarray] = {}
    for name, use in FIELDS.items():
        if use.per_row and name not in ID_ROWS:
            values = [getattr(config, name) for config in configs]
            values = [NO_ID if value is None else value for value in values]
            arrays[name] = np.array(values, dtype_of(name))
    word_length = max((len(word) for each in configs for word in each.bad_words_ids), default=1)
    word_length = _round_up(word_length)
    word_count = max(len(config.bad_words_ids) for config in configs)
    words = np.full((len(configs), word_count, word_length), NO_ID, np.int32)
    eos_count = max(len(config.eos_token_id) for config in configs)
    eos = np.full((len(configs), eos_count), NO_ID, np.int32)
    for row, config in enumerate(configs):
        eos[row, : len(config.eos_token_id)] = config.eos_token_id
        for index, word in enumerate(config.bad_words_ids):
            words[row, index, word_length - len(word) :] = word
    indices = [0] * len(configs) if sequence_indices is None else sequence_indices
    return BatchedConfig(
        **arrays,
        bad_words_ids=words,
        eos_token_id=eos,
        sequence_index=np.array(indices, np.int32),
        max_length=np.array(max_lengths, np.int32),
    )


ID_ROWS = {"bad_words_ids": 3, "eos_token_id": 2}
"""Fields of BatchedConfig that are not [B], with their ranks."""


def batched_config_specs() -> BatchedConfig:
    """Return the TensorSpecs of a BatchedConfig for any number of rows."""
    import tensorflow as tf

    def spec(name: str) -> tf.TensorSpec:
        dtype = dtype_of(name) if name in FIELDS else tf.int32
        return tf.TensorSpec([None] * ID_ROWS.get(name, 1), dtype, name)

    return BatchedConfig(*map(spec, BatchedConfig._fields))
