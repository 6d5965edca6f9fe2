"""Serving signatures of encoder-decoders: text in and text out, the search in the graph.

    serving_default   prompt string[B] -> text string[B], score float[B]: what the checkpoint itself
                      asks for (its generation_config: beams, penalties, lengths)
    translate or      the same under the name that the task's `profile` gives
    summarize
    generate          prompt, max_new_tokens int32, temperature, top_k int32, top_p, seed int32,
                      each [B] -> text string[B], token_count int32[B]: greedy or sampled
    beam              prompt, max_new_tokens int32, length_penalty float, each [B] -> text,
                      token_count, score: the best of the profile's beams
    generate_tokens,  the same with token_ids int32[B, S], filled up on the right, and lengths
    beam_tokens       int32[B] -> token_ids int32[B, N], token_count, log_probabilities float[B, N],
                      finished int32[B] (1: by a stop id, 2: by length), score
    tokens            source_ids, source_padding_mask int32[B, S],
                      token_ids, padding_mask int32[B, T] -> logits float[B, T, V]

`prompt` is the source, before which the task's prefix is put. Of a source that is too long the
beginning is read, and an empty one gives the empty text: one bad row cannot fail its neighbours,
nor does what a row gets depend on them. Forced ids, bad words, n-grams and least lengths are the
checkpoint's in every signature.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfllm.export.base import Profile, beams_of, context_of, own_beams
from tfllm.export.causal_lm import SETTINGS, checked_ids, checked_settings
from tfllm.generation import beam_decoding, loop
from tfllm.generation import encoder_output as encoder_outputs
from tfllm.generation.config import (
    BatchedConfig,
    GenerationConfig,
    batch_configs,
    generation_config,
    graph_flags,
    signature_fields,
)
from tfllm.generation.decode_state import FULL, STOPPED
from tfllm.tasks import serving_graph
from tfllm.tokenizers.base import valid_id_ranges

if TYPE_CHECKING:
    import keras

BEAM_SETTINGS = signature_fields("beam")


class Written(NamedTuple):
    """Texts of B rows as tokens."""

    ids: tf.Tensor  # int32 [B, N]: without the stop id, then zeros
    counts: tf.Tensor  # int32 [B]
    log_probabilities: tf.Tensor  # float32 [B, N]
    finished: tf.Tensor  # int32 [B]
    scores: tf.Tensor  # float32 [B]; the sum of log-probabilities where nothing was searched


def signatures(
    checkpoint: Any, model: keras.Model, tokenizers: tuple[Any, Any], profile: Profile
) -> dict[str, Any]:
    """Signature name -> tf.function. Keep `model`'s variables and the `tokenizers`, of sources and
    of targets, alive."""
    writer = Writer(checkpoint, model, tokenizers, profile)
    ids = [
        tf.TensorSpec([None, None], tf.int32, "token_ids"),
        tf.TensorSpec([None], tf.int32, "lengths"),
    ]
    prompt = serving_graph.text_inputs("prompt")
    size = writer.model.source_vocabulary_size

    @serving_graph.signature(prompt)
    def serve(prompt):
        text, written = writer.texts(prompt, writer.own)
        return {"text": text, "score": written.scores}

    @serving_graph.signature(prompt + _specs(SETTINGS))
    def generate(prompt, max_new_tokens, temperature, top_k, top_p, seed):
        asked = (max_new_tokens, temperature, top_k, top_p, seed)
        given = checked_settings(SETTINGS, *asked)
        text, written = writer.texts(prompt, writer.sampled, *given)
        return {"text": text, "token_count": written.counts}

    @serving_graph.signature(prompt + _specs(BEAM_SETTINGS))
    def beam(prompt, max_new_tokens, length_penalty):
        given = checked_settings(BEAM_SETTINGS, max_new_tokens, length_penalty)
        text, written = writer.texts(prompt, writer.searched, *given)
        return {"text": text, "token_count": written.counts, "score": written.scores}

    @serving_graph.signature(ids + _specs(SETTINGS))
    def generate_tokens(token_ids, lengths, max_new_tokens, temperature, top_k, top_p, seed):
        asked = (max_new_tokens, temperature, top_k, top_p, seed)
        given = checked_settings(SETTINGS, *asked)
        token_ids, lengths = checked_ids(token_ids, lengths, size)
        return _named(writer.sampled(token_ids, lengths, *given))

    @serving_graph.signature(ids + _specs(BEAM_SETTINGS))
    def beam_tokens(token_ids, lengths, max_new_tokens, length_penalty):
        given = checked_settings(BEAM_SETTINGS, max_new_tokens, length_penalty)
        token_ids, lengths = checked_ids(token_ids, lengths, size)
        return _named(writer.searched(token_ids, lengths, *given))

    made = {
        "serving_default": serve,
        "generate": generate,
        "beam": beam,
        "generate_tokens": generate_tokens,
        "beam_tokens": beam_tokens,
        "tokens": tokens(model),
    }
    name = getattr(checkpoint.task, "profile", None)
    return {**made, **({name: serve} if name else {})}


def tokens(model: keras.Model) -> Any:
    """The signature `tokens`."""
    pair = tf.TensorSpec([None, None], tf.int32)
    specs = [
        tf.TensorSpec(pair.shape, pair.dtype, name)
        for name in ("source_ids", "source_padding_mask", "token_ids", "padding_mask")
    ]

    @serving_graph.signature(specs)
    def logits(source_ids, source_padding_mask, token_ids, padding_mask):
        given = {
            "source_ids": source_ids,
            "source_padding_mask": source_padding_mask,
            "token_ids": token_ids,
            "padding_mask": padding_mask,
        }
        for name in ("source_ids", "token_ids"):
            given[name] = serving_graph.require(name, "at least 0", given[name], given[name] >= 0)
        return {"logits": serving_graph.run_model(model, given)}

    return logits


class Writer:
    """Sources to texts with the model, as ops."""

    def __init__(
        self, checkpoint: Any, model: keras.Model, tokenizers: tuple[Any, Any], profile: Profile
    ):
        from tfllm.generation.checkpoint_config import checkpoint_config
        from tfllm.generation.cpu_decoding import use_cpu_layout
        from tfllm.models.encoder_decoder import get_encoder_decoder

        self.model = use_cpu_layout(
            get_encoder_decoder(model, checkpoint.family, checkpoint.config)
        )
        self.source_tokenizer, self.target_tokenizer = tokenizers
        self.known = valid_id_ranges(checkpoint.tokenizer.target, self.model.vocabulary_size)
        self.prefix = getattr(checkpoint.task, "prefix", "")
        self.window = context_of(checkpoint, profile)
        self.longest_source = min(self.window, checkpoint.task.source_length)
        self.start_id = checkpoint.task.with_start_id(checkpoint.decoder_start_token_id).start_id
        settings = checkpoint_config(checkpoint)
        self.settings = settings.model_copy(
            update={
                "eos_token_id": tuple(checkpoint.eos_token_id),
                "num_return_sequences": 1,
                "num_beams": own_beams(checkpoint, profile),
            }
        )
        self.num_beams = beams_of(checkpoint, profile)
        self.most_new = min(profile.generation.most_new_tokens or self.window - 1, self.window - 1)

        # Each a function of its own, which a saved model holds once for all its signatures.
        self.sampled = _shared(self._sampled, SETTINGS)
        self.searched = _shared(self._searched, BEAM_SETTINGS)

    def texts(self, prompts: tf.Tensor, write: Any, *given: Any) -> tuple[tf.Tensor, Written]:
        """(texts string [B], the same as tokens) by `own`, `sampled` or `searched`."""
        prompts = serving_graph.replace_invalid_utf8(prompts)
        packed = self.source_tokenizer(
            tf.strings.join([self.prefix, prompts]), max_length=self.longest_source
        )
        lengths = tf.reduce_sum(packed["padding_mask"], axis=1)
        written = write(packed["token_ids"], lengths, *given)
        full = tf.strings.length(tf.strings.strip(prompts)) > 0
        counts = tf.where(full, written.counts, 0)
        ids = tf.RaggedTensor.from_tensor(written.ids, lengths=counts)
        text = self.target_tokenizer.detokenize(ids)
        scores = tf.where(full, written.scores, 0.0)
        return serving_graph.replace_invalid_utf8(text), written._replace(
            counts=counts, scores=scores
        )

    def own(self, token_ids: tf.Tensor, lengths: tf.Tensor) -> Written:
        """As the checkpoint asks."""
        settings = self.settings
        kinds = BEAM_SETTINGS if settings.num_beams > 1 else SETTINGS
        given = [
            tf.fill(tf.shape(lengths), tf.constant(getattr(settings, name), kind))
            for name, kind in kinds.items()
        ]
        write = self.searched if settings.num_beams > 1 else self.sampled
        return write(token_ids, lengths, *given)

    def _sampled(self, token_ids: tf.Tensor, lengths: tf.Tensor, given: dict) -> Written:
        """One token after another; `given` are SETTINGS, each [B]."""
        made, most_new, wanted = self._rows(given, self.settings)
        needs = graph_flags(
            self.settings.model_copy(update={"num_beams": 2})
        )  # exactly what it needs
        needs |= replace(graph_flags(generation_config(temperature=1.0)), token_ranges=self.known)
        start = tf.fill([tf.shape(wanted)[0], 1], self.start_id)
        found = loop.generate(
            self.model, start, tf.ones_like(wanted), made, needs, most_new,
            source=self._source(token_ids, lengths),
        )  # fmt: skip
        counts = tf.minimum(found.counts, wanted)  # 0 where none were wanted
        inside = tf.range(tf.shape(found.ids)[1])[None] < counts[:, None]
        logs = tf.where(inside, found.log_probabilities, 0.0)
        return Written(
            tf.where(inside, found.ids, 0), counts, logs, found.finished, tf.reduce_sum(logs, 1)
        )

    def _searched(self, token_ids: tf.Tensor, lengths: tf.Tensor, given: dict) -> Written:
        """The best of the beams; `given` are BEAM_SETTINGS, each [B]."""
        changes = {"num_beams": self.num_beams, "temperature": 0.0}
        settings = self.settings.model_copy(update=changes)
        made, most_new, wanted = self._rows(given, settings)
        start = tf.fill([tf.shape(wanted)[0], 1], self.start_id)
        covers = settings.coverage_penalty > 0
        needs = replace(graph_flags(settings), token_ranges=self.known)
        found = beam_decoding.generate(
            self.model, start, tf.ones_like(wanted), made, needs, most_new,
            num_beams=settings.num_beams,
            length_penalty=given["length_penalty"][:, None],
            early_stopping=settings.early_stopping,
            renormalize_logits=settings.renormalize_logits,
            source=self._source(token_ids, lengths),
            coverage_penalty=settings.coverage_penalty if covers else None,
        )  # fmt: skip
        best = tf.nest.map_structure(lambda one: one[:, 0], found)
        counts = best.lengths - tf.cast(best.stopped, tf.int32)
        counts = tf.minimum(counts, wanted)
        inside = tf.range(tf.shape(best.ids)[1])[None] < counts[:, None]
        return Written(
            tf.where(inside, best.ids, 0),
            counts,
            tf.where(inside, best.log_probabilities, 0.0),
            tf.where(best.stopped, STOPPED, FULL),
            best.scores,
        )

    def _source(
        self, token_ids: tf.Tensor, lengths: tf.Tensor
    ) -> encoder_outputs.MaybeEncoderOutput:
        """Rows of at least one token."""
        lengths = tf.minimum(lengths, tf.shape(token_ids)[1])
        token_ids = tf.pad(token_ids, [[0, 0], [0, tf.cast(tf.shape(token_ids)[1] < 1, tf.int32)]])
        size = self.model.source_vocabulary_size
        return encoder_outputs.encode(
            self.model, tf.clip_by_value(token_ids, 0, size - 1), tf.maximum(lengths, 1)
        )

    def _rows(
        self, given: dict, settings: GenerationConfig
    ) -> tuple[BatchedConfig, tf.Tensor, tf.Tensor]:
        """(the checkpoint's settings with those `given` for each of B rows, the most new tokens of
        a row, how many each row wants int32 [B])."""
        wanted = tf.clip_by_value(given["max_new_tokens"], 0, self.most_new)
        count = tf.shape(wanted)[0]
        plain = tf.nest.map_structure(tf.constant, batch_configs([settings], [0]))
        made = tf.nest.map_structure(lambda one: tf.repeat(one, count, axis=0), plain)
        limit = 1 + tf.maximum(wanted, 1)
        fields = {
            name: given[name]
            for name in SETTINGS
            if name in given and name in BatchedConfig._fields
        }
        most_new = tf.reduce_max(tf.concat([limit - 1, [1]], 0))
        return made._replace(max_length=limit, **fields), most_new, wanted


def _shared(write: Any, kinds: dict[str, np.dtype]) -> Any:
    """`write` of token_ids, lengths and one tensor for each of `kinds`, as one graph function."""

    @serving_graph.signature(
        [
            tf.TensorSpec([None, None], tf.int32),
            tf.TensorSpec([None], tf.int32),
            {name: tf.TensorSpec([None], kind) for name, kind in kinds.items()},
        ]
    )
    def whole(token_ids, lengths, given):
        return write(token_ids, lengths, given)

    return lambda token_ids, lengths, *given: whole(
        token_ids, lengths, dict(zip(kinds, given, strict=True))
    )


def _specs(kinds: dict[str, np.dtype]) -> list[tf.TensorSpec]:
    return [tf.TensorSpec([None], kind, name) for name, kind in kinds.items()]


def _named(written: Written) -> dict[str, tf.Tensor]:
    names = ("token_ids", "token_count", "log_probabilities", "finished", "score")
    return dict(zip(names, written, strict=True))
