"""Beam search with a model: its graphs, and texts from them.

`beam_search` has the algorithm and knows no model; here are the steps of one, its penalties, its
sources and their coverage.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfllm.generation import beam_search
from tfllm.generation import cache as caches
from tfllm.generation import decode_state as states
from tfllm.generation import encoder_output as encoder_outputs
from tfllm.generation.beam_search import EarlyStopping, Hypotheses
from tfllm.generation.config import (
    BatchedConfig,
    GenerationConfig,
    GraphFlags,
    batch_configs,
    batched_config_specs,
)
from tfllm.generation.penalties import apply_penalties
from tfllm.generation.scheduler import pad_batch
from tfllm.generation.token_generator import GenerationResult, Ids, ModelLimits
from tfllm.models.decoder import Decoder
from tfllm.models.encoder_decoder import EncoderDecoder

State = tuple[caches.Cache, tf.Tensor | tuple[()]]
"""The cache and, with a coverage penalty, the attention to the source so far: float32 [R, S]."""

MIN_COVERAGE = 1e-9  # in place of 0 attention, of which there is no logarithm


def generate(
    model: Decoder | EncoderDecoder,
    token_ids: tf.Tensor,
    lengths: tf.Tensor,
    config: BatchedConfig,
    flags: GraphFlags,
    max_new_tokens: tf.Tensor | int,
    *,
    num_beams: int,
    length_penalty: tf.Tensor | float = 1.0,
    early_stopping: EarlyStopping = False,
    renormalize_logits: bool = False,
    source: encoder_outputs.MaybeEncoderOutput = encoder_outputs.NO_SOURCE,
    coverage_penalty: tf.Tensor | float | None = None,
) -> Hypotheses:
    """Search after prompts, in one graph. The beams of a source share its keys and values.

    Args:
        model: The model.
        token_ids: int32 [B, P], padded on the right.
        lengths: int32 [B].
        config: The settings of each row; temperature and filters are not used.
        flags: What the graph has to support.
        max_new_tokens: N.
        num_beams: K.
        length_penalty: One number, or float32 [B, 1].
        early_stopping, renormalize_logits: See `GenerationConfig`.
        source: The encoder output of each prompt.
        coverage_penalty: Unset: the graph has no coverage term.
    """
    attention: list[tf.Tensor] = []
    covers = coverage_penalty is not None
    decoder = encoder_outputs.with_encoder_output(model, source, attention if covers else None)
    # The cache grows as the texts do: each step picks, and so copies, all of it.
    logits, cache = states.prefill_cache(decoder, token_ids, lengths, tf.shape(token_ids)[1] + 1)
    coverage = _take_attention(attention, lengths) if covers else ()

    repeat = functools.partial(tf.repeat, repeats=num_beams, axis=0)
    logits, state, prompts, prompt_lengths, configs = tf.nest.map_structure(
        repeat, (logits, (cache, coverage), token_ids, lengths, config)
    )
    steps = _Steps(
        decoder, prompts, prompt_lengths, configs, flags, max_new_tokens, renormalize_logits,
        attention,
    )  # fmt: skip
    return beam_search.search(
        steps.step,
        state,
        logits,
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
        row_limits=config.max_length - lengths,
        eos_token_id=config.eos_token_id,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        process_logits=steps.process_logits,
        bonus=_coverage_bonus(source, coverage_penalty, num_beams),
        state_shapes=_state_shapes(state),
    )


class _Steps(NamedTuple):
    """The steps of one search; everything is repeated for each beam, R = B * K rows."""

    decoder: Decoder
    prompts: tf.Tensor
    prompt_lengths: tf.Tensor
    config: BatchedConfig
    flags: GraphFlags
    max_new_tokens: tf.Tensor | int
    renormalize_logits: bool
    attention: list[tf.Tensor]

    def step(self, newest: tf.Tensor, count: tf.Tensor, state: State) -> tuple[tf.Tensor, State]:
        """See `beam_search.StepFunction`; the state is (cache, coverage float32 [R, S] or ())."""
        cache, coverage = state
        cache = caches.grow_cache(cache, self._width + count + 1)
        positions = self.prompt_lengths + count
        logits, cache = states.next_logits(self.decoder, newest, positions, cache, caches.scatter)
        if self.attention:
            coverage = coverage + _take_attention(self.attention)
        return logits, (cache, coverage)

    def process_logits(self, values: tf.Tensor, new: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        """See `beam_search.LogitsProcessor`."""
        lengths, max_new_tokens = self.prompt_lengths, self.max_new_tokens
        position = tf.range(self._width + max_new_tokens)[None]
        column = tf.clip_by_value(position - lengths[:, None], 0, max_new_tokens - 1)
        prompt = tf.pad(self.prompts, [[0, 0], [0, max_new_tokens]])
        is_prompt = position < lengths[:, None]
        ids = tf.where(is_prompt, prompt, tf.gather(new, column, batch_dims=1))
        values = apply_penalties(values, ids, lengths + count, lengths, self.config, self.flags)
        return tf.nn.log_softmax(values) if self.renormalize_logits else values

    @property
    def _width(self) -> tf.Tensor | int:
        return self.prompts.shape[1] or tf.shape(self.prompts)[1]


def _take_attention(attention: list[tf.Tensor], lengths: tf.Tensor | None = None) -> tf.Tensor:
    """The attention to the source of the last token of each row, float32 [R, S].

    `lengths` int32 [R] are the tokens of each row, one without them. The list is emptied for the
    next step.
    """
    weights = encoder_outputs.mean_alignment(attention)
    attention.clear()
    return weights[:, 0] if lengths is None else tf.gather(weights, lengths - 1, batch_dims=1)


def _coverage_bonus(
    source: encoder_outputs.MaybeEncoderOutput, penalty: tf.Tensor | float | None, num_beams: int
) -> beam_search.ScoreBonus[State] | None:
    """The penalty times the sum over the source's tokens of log(min(attention, 1)), as in Wu et al.
    2016; None without a penalty."""
    if penalty is None:
        return None
    assert isinstance(source, encoder_outputs.EncoderOutput)
    mask = source.padding_mask

    def bonus(state: State) -> tf.Tensor:
        logs = tf.math.log(tf.clip_by_value(state[1], MIN_COVERAGE, 1.0))
        is_token = tf.repeat(mask, num_beams, axis=0) > 0
        return penalty * tf.reduce_sum(tf.where(is_token, logs, 0.0), axis=1)

    return bonus


def _state_shapes(state: State) -> State:
    """The shapes of a state whose cache grows."""
    cache, coverage = state
    shapes = caches.map_cache(
        lambda stored: tf.TensorShape([None, stored.shape[1], None, stored.shape[3]]), cache
    )
    return shapes, tf.nest.map_structure(lambda _: tf.TensorShape([None, None]), coverage)


@dataclass(frozen=True)
class _GraphKey:
    """The settings for which one graph is traced."""

    flags: GraphFlags
    num_beams: int
    early_stopping: EarlyStopping
    eos_count: int
    renormalize_logits: bool
    covers: bool


class BeamSearcher:
    """Beam search with one model; a graph for each kind of settings."""

    def __init__(self, model: Decoder | EncoderDecoder, limits: ModelLimits):
        self.model = model
        self.limits = limits
        self.traces = 0
        """How many graphs have been traced."""
        self._graphs: dict[_GraphKey, tf.types.experimental.PolymorphicFunction] = {}

    def generate(
        self,
        prompts: Sequence[Ids],
        sources: Sequence[Ids],
        config: GenerationConfig,
        flags: GraphFlags,
    ) -> list[list[GenerationResult]]:
        """Search the texts of each prompt.

        Args:
            prompts: Token ids of each.
            sources: Token ids of each one's source; empty for a decoder.
            config: The settings.
            flags: What the graph has to support.

        Returns:
            The texts of each prompt, best first.
        """
        max_lengths = [self.limits.max_length(prompt, config) for prompt in prompts]
        token_ids, lengths = pad_batch(prompts)
        key = _GraphKey(
            flags, config.num_beams, config.early_stopping, len(config.eos_token_id),
            config.renormalize_logits, config.coverage_penalty > 0,
        )  # fmt: skip
        if key not in self._graphs:
            self._graphs[key] = self._graph(key)
        tensors = self._graphs[key](
            token_ids,
            lengths,
            batch_configs([config] * len(prompts), max_lengths),
            int((np.array(max_lengths) - lengths).max()),
            config.length_penalty,
            config.coverage_penalty,
            pad_batch(sources) if any(sources) else (),
        )
        texts = Hypotheses(*(tensor.numpy() for tensor in tensors))
        beams = range(config.num_return_sequences)
        return [[_result(texts, row, beam) for beam in beams] for row in range(len(prompts))]

    def _graph(self, key: _GraphKey) -> tf.types.experimental.PolymorphicFunction:
        specs = batched_config_specs()._replace(
            eos_token_id=tf.TensorSpec([None, key.eos_count], tf.int32)
        )

        @tf.function(
            autograph=False,
            input_signature=[
                tf.TensorSpec([None, None], tf.int32),
                tf.TensorSpec([None], tf.int32),
                specs,
                tf.TensorSpec([], tf.int32),
                tf.TensorSpec([], tf.float32),
                tf.TensorSpec([], tf.float32),
                encoder_outputs.source_specs(self.model),
            ],
        )
        def search(
            token_ids: tf.Tensor,
            lengths: tf.Tensor,
            config: BatchedConfig,
            max_new_tokens: tf.Tensor,
            length_penalty: tf.Tensor,
            coverage_penalty: tf.Tensor,
            source: tuple[tf.Tensor, ...],
        ) -> Hypotheses:
            self.traces += 1
            return generate(
                self.model,
                token_ids,
                lengths,
                config,
                key.flags,
                max_new_tokens,
                num_beams=key.num_beams,
                length_penalty=length_penalty,
                early_stopping=key.early_stopping,
                renormalize_logits=key.renormalize_logits,
                source=encoder_outputs.encode_if_any(self.model, source),
                coverage_penalty=coverage_penalty if key.covers else None,
            )

        return search


def _result(texts: Hypotheses, row: int, beam: int) -> GenerationResult:
    stopped = bool(texts.stopped[row, beam])
    length = int(texts.lengths[row, beam]) - stopped
    return GenerationResult(
        texts.ids[row, beam, :length].tolist(),
        texts.log_probabilities[row, beam, :length].tolist(),
        "stop" if stopped else "length",
        float(texts.scores[row, beam]),
    )
