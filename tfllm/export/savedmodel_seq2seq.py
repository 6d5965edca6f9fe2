"""Serving signatures of encoder-decoders: text to text, greedy, sampled or with beam search.

    serving_default   prompt string[B] -> text string[B], score float[B]: with the checkpoint's own
                      generation settings (beams, penalties, lengths)
    translate or      the same under the name that the task's `profile` gives
    summarize
    generate          prompt, max_new_tokens int32, temperature, top_k int32, top_p, seed int32,
                      each [B] -> text string[B], token_count int32[B]: greedy or sampled
    beam              prompt, max_new_tokens int32, length_penalty float, each [B] -> text,
                      token_count, score: the best of the profile's beams
    generate_tokens,  the same with token_ids int32[B, S], padded on the right, and lengths int32[B]
    beam_tokens       -> token_ids int32[B, N], token_count, log_probabilities float[B, N],
                      finished int32[B] (1: by an eos token, 2: by length), score
    tokens            source_ids, source_padding_mask int32[B, S],
                      token_ids, padding_mask int32[B, T] -> logits float[B, T, V]

`prompt` is the source, before which the task's prefix is put. Of a source that is too long the
beginning is read, and an empty one gives the empty text: one bad row cannot fail the others, nor
does a row's result depend on them. Forced ids, bad words, n-grams and minimum lengths are the
checkpoint's in every signature.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfllm.checkpoints.base import Checkpoint
from tfllm.export import request_settings
from tfllm.export.artifact import (
    Signatures,
    beam_width,
    context_length,
    default_num_beams,
    get_decoder_start_token_id,
)
from tfllm.export.profile import Profile
from tfllm.export.request_settings import BEAM_SETTINGS, SAMPLING_SETTINGS
from tfllm.generation import beam_decoding, loop
from tfllm.generation import encoder_output as encoder_outputs
from tfllm.generation.checkpoint_config import checkpoint_config
from tfllm.generation.config import (
    BatchedConfig,
    GenerationConfig,
    batch_configs,
    generation_config,
    graph_flags,
)
from tfllm.generation.cpu_decoding import use_cpu_layout
from tfllm.generation.decode_state import FULL, STOPPED
from tfllm.models.encoder_decoder import get_encoder_decoder
from tfllm.tasks import serving_graph
from tfllm.tokenizers.base import valid_id_ranges


class GeneratedIds(NamedTuple):
    """Generated token ids of B rows."""

    ids: tf.Tensor  # int32 [B, N]: without the eos token, then zeros
    counts: tf.Tensor  # int32 [B]
    log_probabilities: tf.Tensor  # float32 [B, N]
    finished: tf.Tensor  # int32 [B]
    scores: tf.Tensor  # float32 [B]; the sum of log-probabilities where there was no beam search


Generate = Callable[..., GeneratedIds]  # of token_ids, lengths and settings


def build_signatures(
    checkpoint: Checkpoint, model: keras.Model, tokenizers: tuple[Any, Any], profile: Profile
) -> Signatures:
    """Return signature name -> tf.function.

    Args:
        checkpoint: The checkpoint that is exported.
        model: Its Keras model, or a copy in another precision; must stay alive.
        tokenizers: Those of sources and of targets as TensorFlow ops; must stay alive.
        profile: The export profile.
    """
    generator = GraphSeq2SeqGenerator(checkpoint, model, tokenizers, profile)
    signatures = {
        **_text_signatures(generator),
        **_id_signatures(generator),
        "tokens": tokens_signature(model),
    }
    if name := getattr(checkpoint.task, "profile", None):
        signatures[name] = signatures["serving_default"]
    return signatures


def _text_signatures(generator: GraphSeq2SeqGenerator) -> Signatures:
    """Return the signatures from texts to texts."""
    prompt = serving_graph.text_inputs("prompt")

    @serving_graph.signature(prompt)
    def serve(prompt: tf.Tensor) -> dict[str, tf.Tensor]:
        text, result = generator.generate_texts(prompt, generator.with_own_settings)
        return {"text": text, "score": result.scores}

    def generate(prompt: tf.Tensor, *settings: tf.Tensor) -> dict[str, tf.Tensor]:
        text, result = generator.generate_texts(prompt, generator.sample, *settings)
        return {"text": text, "token_count": result.counts}

    @serving_graph.signature(prompt + request_settings.tensor_specs(BEAM_SETTINGS))
    def beam(
        prompt: tf.Tensor, max_new_tokens: tf.Tensor, length_penalty: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        values = request_settings.check_settings(BEAM_SETTINGS, (max_new_tokens, length_penalty))
        text, result = generator.generate_texts(prompt, generator.beam_search, *values)
        return {"text": text, "token_count": result.counts, "score": result.scores}

    return {
        "serving_default": serve,
        "generate": request_settings.generate_signature(generate),
        "beam": beam,
    }


def _id_signatures(generator: GraphSeq2SeqGenerator) -> Signatures:
    """Return the signatures from token ids to token ids."""
    size = generator.model.source_vocabulary_size

    def generate_tokens(
        token_ids: tf.Tensor, lengths: tf.Tensor, *settings: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        return _as_outputs(generator.sample(token_ids, lengths, *settings))

    @serving_graph.signature(
        [*request_settings.TOKEN_INPUTS, *request_settings.tensor_specs(BEAM_SETTINGS)]
    )
    def beam_tokens(
        token_ids: tf.Tensor,
        lengths: tf.Tensor,
        max_new_tokens: tf.Tensor,
        length_penalty: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        values = request_settings.check_settings(BEAM_SETTINGS, (max_new_tokens, length_penalty))
        token_ids, lengths = request_settings.check_token_ids(token_ids, lengths, size)
        return _as_outputs(generator.beam_search(token_ids, lengths, *values))

    signature = request_settings.generate_tokens_signature(generate_tokens, size)
    return {"generate_tokens": signature, "beam_tokens": beam_tokens}


def tokens_signature(model: keras.Model) -> tf.types.experimental.PolymorphicFunction:
    """Return the signature `tokens`: ids of sources and targets to logits."""
    names = ("source_ids", "source_padding_mask", "token_ids", "padding_mask")

    @serving_graph.signature([tf.TensorSpec([None, None], tf.int32, name) for name in names])
    def logits(
        source_ids: tf.Tensor,
        source_padding_mask: tf.Tensor,
        token_ids: tf.Tensor,
        padding_mask: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        inputs = dict(
            zip(names, (source_ids, source_padding_mask, token_ids, padding_mask), strict=True)
        )
        for name in ("source_ids", "token_ids"):
            inputs[name] = serving_graph.require(
                name, "at least 0", inputs[name], inputs[name] >= 0
            )
        return {"logits": serving_graph.run_model(model, inputs)}

    return logits


class GraphSeq2SeqGenerator:
    """Generation of texts from sources as TensorFlow ops, shared by the signatures."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        model: keras.Model,
        tokenizers: tuple[Any, Any],
        profile: Profile,
    ):
        self.model = use_cpu_layout(
            get_encoder_decoder(model, checkpoint.family, checkpoint.config)
        )
        self.source_tokenizer, self.target_tokenizer = tokenizers
        self.token_ranges = valid_id_ranges(checkpoint.tokenizer.target, self.model.vocabulary_size)
        self.prefix = getattr(checkpoint.task, "prefix", "")
        self.context = context_length(checkpoint, profile)
        self.max_source_length = min(self.context, checkpoint.task.source_length)  # type: ignore[attr-defined]
        self.decoder_start_token_id = get_decoder_start_token_id(checkpoint)
        self.config = checkpoint_config(checkpoint).model_copy(
            update={
                "eos_token_id": tuple(checkpoint.eos_token_id),
                "num_return_sequences": 1,
                "num_beams": default_num_beams(checkpoint, profile),
            }
        )
        self.num_beams = beam_width(checkpoint, profile)
        room = self.context - 1
        self.max_new_tokens = min(profile.generation.max_new_tokens_limit or room, room)

        # Each a function of its own, which a SavedModel holds once for all its signatures.
        self.sample = _as_function(self._sample, SAMPLING_SETTINGS)
        self.beam_search = _as_function(self._beam_search, BEAM_SETTINGS)

    def generate_texts(
        self, prompts: tf.Tensor, generate: Generate, *settings: tf.Tensor
    ) -> tuple[tf.Tensor, GeneratedIds]:
        """Generate from source texts.

        Args:
            prompts: The sources: string [B].
            generate: One of the methods below.
            *settings: Its settings, [B] each.

        Returns:
            Texts string [B], and their ids.
        """
        prompts = serving_graph.replace_invalid_utf8(prompts)
        packed = self.source_tokenizer(
            tf.strings.join([self.prefix, prompts]), max_length=self.max_source_length
        )
        lengths = tf.reduce_sum(packed["padding_mask"], axis=1)
        result = generate(packed["token_ids"], lengths, *settings)
        has_source = tf.strings.length(tf.strings.strip(prompts)) > 0
        counts = tf.where(has_source, result.counts, 0)
        ids = tf.RaggedTensor.from_tensor(result.ids, lengths=counts)
        text = self.target_tokenizer.detokenize(ids)
        scores = tf.where(has_source, result.scores, 0.0)
        return serving_graph.replace_invalid_utf8(text), result._replace(
            counts=counts, scores=scores
        )

    def with_own_settings(self, token_ids: tf.Tensor, lengths: tf.Tensor) -> GeneratedIds:
        """Generate with the checkpoint's own settings.

        Args:
            token_ids: Sources int32 [B, T], padded on the right.
            lengths: Their tokens: int32 [B].
        """
        searches = self.config.num_beams > 1
        names = BEAM_SETTINGS if searches else SAMPLING_SETTINGS
        values = request_settings.constants(self.config, names, lengths)
        generate = self.beam_search if searches else self.sample
        return generate(token_ids, lengths, *values)

    def _sample(
        self, token_ids: tf.Tensor, lengths: tf.Tensor, settings: dict[str, tf.Tensor]
    ) -> GeneratedIds:
        """Generate token by token, with SAMPLING_SETTINGS, each [B]."""
        batched, most_new, requested = self._batched_config(settings, self.config)
        # With beams the flags are exactly what the settings need.
        flags = graph_flags(self.config.model_copy(update={"num_beams": 2}))
        flags |= replace(
            graph_flags(generation_config(temperature=1.0)), token_ranges=self.token_ranges
        )
        start = tf.fill([tf.shape(requested)[0], 1], self.decoder_start_token_id)
        result = loop.generate(
            self.model, start, tf.ones_like(requested), batched, flags, most_new,
            source=self._encode(token_ids, lengths),
        )  # fmt: skip
        counts = tf.minimum(result.counts, requested)  # 0 where none were requested
        is_new = tf.range(tf.shape(result.ids)[1])[None] < counts[:, None]
        log_probs = tf.where(is_new, result.log_probabilities, 0.0)
        return GeneratedIds(
            tf.where(is_new, result.ids, 0),
            counts,
            log_probs,
            result.finished,
            tf.reduce_sum(log_probs, 1),
        )

    def _beam_search(
        self, token_ids: tf.Tensor, lengths: tf.Tensor, settings: dict[str, tf.Tensor]
    ) -> GeneratedIds:
        """Return the best of the beams, with BEAM_SETTINGS, each [B]."""
        config = self.config.model_copy(update={"num_beams": self.num_beams, "temperature": 0.0})
        batched, most_new, requested = self._batched_config(settings, config)
        start = tf.fill([tf.shape(requested)[0], 1], self.decoder_start_token_id)
        has_coverage = config.coverage_penalty > 0
        beams = beam_decoding.generate(
            self.model, start, tf.ones_like(requested), batched,
            replace(graph_flags(config), token_ranges=self.token_ranges), most_new,
            num_beams=config.num_beams,
            length_penalty=settings["length_penalty"][:, None],
            early_stopping=config.early_stopping,
            renormalize_logits=config.renormalize_logits,
            source=self._encode(token_ids, lengths),
            coverage_penalty=config.coverage_penalty if has_coverage else None,
        )  # fmt: skip
        best = tf.nest.map_structure(lambda tensor: tensor[:, 0], beams)
        counts = best.lengths - tf.cast(best.stopped, tf.int32)
        counts = tf.minimum(counts, requested)
        is_new = tf.range(tf.shape(best.ids)[1])[None] < counts[:, None]
        return GeneratedIds(
            tf.where(is_new, best.ids, 0),
            counts,
            tf.where(is_new, best.log_probabilities, 0.0),
            tf.where(best.stopped, STOPPED, FULL),
            best.scores,
        )

    def _encode(
        self, token_ids: tf.Tensor, lengths: tf.Tensor
    ) -> encoder_outputs.MaybeEncoderOutput:
        """Encode sources int32 [B, S] of lengths [B], each as a row of at least one token."""
        lengths = tf.minimum(lengths, tf.shape(token_ids)[1])
        token_ids = tf.pad(token_ids, [[0, 0], [0, tf.cast(tf.shape(token_ids)[1] < 1, tf.int32)]])
        size = self.model.source_vocabulary_size
        return encoder_outputs.encode(
            self.model, tf.clip_by_value(token_ids, 0, size - 1), tf.maximum(lengths, 1)
        )

    def _batched_config(
        self, settings: dict[str, tf.Tensor], config: GenerationConfig
    ) -> tuple[BatchedConfig, tf.Tensor, tf.Tensor]:
        """Return (`config` for B rows with each row's own `settings`, the largest number of new
        tokens, the number that each row requests int32 [B])."""
        requested = tf.clip_by_value(settings["max_new_tokens"], 0, self.max_new_tokens)
        count = tf.shape(requested)[0]
        single = tf.nest.map_structure(tf.constant, batch_configs([config], [0]))
        batched = tf.nest.map_structure(lambda tensor: tf.repeat(tensor, count, axis=0), single)
        limit = 1 + tf.maximum(requested, 1)
        names = set(SAMPLING_SETTINGS) & set(settings) & set(BatchedConfig._fields)
        fields = {name: settings[name] for name in SAMPLING_SETTINGS if name in names}
        most_new = tf.reduce_max(tf.concat([limit - 1, [1]], 0))
        return batched._replace(max_length=limit, **fields), most_new, requested


def _as_function(generate: Callable[..., GeneratedIds], settings: dict[str, np.dtype]) -> Generate:
    """Return `generate` as one graph function of token_ids, lengths and each setting's tensor."""

    @serving_graph.signature(
        [
            tf.TensorSpec([None, None], tf.int32),
            tf.TensorSpec([None], tf.int32),
            {name: tf.TensorSpec([None], dtype) for name, dtype in settings.items()},
        ]
    )
    def function(
        token_ids: tf.Tensor, lengths: tf.Tensor, values: dict[str, tf.Tensor]
    ) -> GeneratedIds:
        return generate(token_ids, lengths, values)

    return lambda token_ids, lengths, *values: function(
        token_ids, lengths, dict(zip(settings, values, strict=True))
    )


def _as_outputs(result: GeneratedIds) -> dict[str, tf.Tensor]:
    names = ("token_ids", "token_count", "log_probabilities", "finished", "score")
    return dict(zip(names, result, strict=True))
