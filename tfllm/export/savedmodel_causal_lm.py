"""Serving signatures of causal language models: the generation loop in the graph, text to text.

    serving_default   prompt string[B] -> text string[B]
    generate          prompt, max_new_tokens int32, temperature, top_k int32, top_p, seed int32,
                      each [B] -> text string[B], token_count int32[B]
    generate_tokens   the same with token_ids int32[B, P], padded on the right, and lengths
                      int32[B] -> token_ids int32[B, N], token_count, log_probabilities
                      float[B, N], finished int32[B] (1: by an eos token, 2: by length)
    score             text string[B] -> log_probability float[B], token_count int32[B]
    tokens            token_ids, padding_mask int32[B, T] -> logits float[B, T, V]

`text` does not repeat the prompt. Every row has its own settings, and its result does not depend on
the other rows. A prompt that fills the context loses its beginning; an empty one starts with the
start token (or an eos token, where there is none). Settings and token ids out of bounds fail the
call.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfllm.checkpoints.base import Checkpoint
from tfllm.export import request_settings
from tfllm.export.artifact import Signatures, context_length
from tfllm.export.profile import Profile
from tfllm.export.request_settings import SAMPLING_SETTINGS
from tfllm.generation import cache as caches
from tfllm.generation import loop
from tfllm.generation.config import NO_ID, BatchedConfig, GraphFlags
from tfllm.generation.cpu_decoding import use_cpu_layout
from tfllm.models.decoder import Decoder, get_decoder
from tfllm.tasks import serving_graph
from tfllm.tokenizers.base import valid_id_ranges

# Prompt tokens that decide whether the text after it begins with a space, as in TextGenerator.
DETOKENIZE_CONTEXT = 8
# Hidden states whose logits over the whole vocabulary are in memory at once.
SCORE_CHUNK = 128
# XLA compiles for prompt lengths and new token counts rounded up to multiples of this.
XLA_BUCKET = 64


def build_signatures(
    checkpoint: Checkpoint, model: keras.Model, graph_tokenizer: Any, profile: Profile
) -> Signatures:
    """Return signature name -> tf.function.

    Args:
        checkpoint: The checkpoint that is exported.
        model: Its Keras model, or a copy in another precision; must stay alive.
        graph_tokenizer: Its tokenizer as TensorFlow ops; must stay alive.
        profile: The export profile.
    """
    exported = use_cpu_layout(get_decoder(model, checkpoint.family, checkpoint.config))
    generator = GraphGenerator(exported, checkpoint, graph_tokenizer, profile)

    @serving_graph.signature(serving_graph.text_inputs("prompt"))
    def serve(prompt: tf.Tensor) -> dict[str, tf.Tensor]:
        values = request_settings.constants(profile.generation, SAMPLING_SETTINGS, prompt)
        return {"text": generator.generate_texts(prompt, *values)[0]}

    def generate(prompt: tf.Tensor, *settings: tf.Tensor) -> dict[str, tf.Tensor]:
        text, count = generator.generate_texts(prompt, *settings)
        return {"text": text, "token_count": count}

    def generate_tokens(
        token_ids: tf.Tensor, lengths: tf.Tensor, *settings: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        ids = tf.RaggedTensor.from_tensor(token_ids, lengths=lengths)
        result = generator.generate_ids(ids, *settings)[2]
        return {
            "token_ids": result.ids,
            "token_count": result.counts,
            "log_probabilities": result.log_probabilities,
            "finished": result.finished,
        }

    @serving_graph.signature(serving_graph.text_inputs("text"))
    def score(text: tf.Tensor) -> dict[str, tf.Tensor]:
        log_probability, count = generator.score_texts(text)
        return {"log_probability": log_probability, "token_count": count}

    return {
        "serving_default": serve,
        "generate": request_settings.generate_signature(generate),
        "generate_tokens": request_settings.generate_tokens_signature(
            generate_tokens, exported.vocabulary_size
        ),
        "score": score,
        "tokens": serving_graph.tokens_signature(model),
    }


class GraphGenerator:
    """Generation and scoring of texts as TensorFlow ops, shared by the signatures."""

    def __init__(
        self, decoder: Decoder, checkpoint: Checkpoint, graph_tokenizer: Any, profile: Profile
    ):
        self.decoder = decoder
        self.tokenizer = graph_tokenizer
        self.context = context_length(checkpoint, profile)
        limit = profile.generation.max_new_tokens_limit or self.context
        self.max_new_tokens = min(limit, self.context)
        self.eos_token_id = tuple(checkpoint.eos_token_id)
        self.bos_token_id = checkpoint.tokenizer.bos_token_id
        self.token_ranges = valid_id_ranges(checkpoint.tokenizer, decoder.vocabulary_size)
        self.xla = profile.xla
        # One function, so that the file holds the loop once for all signatures.
        self._loop = tf.function(
            self._generate,
            input_signature=[
                tf.TensorSpec([None, None], tf.int32),
                tf.TensorSpec([None], tf.int32),
                *(tf.TensorSpec([None], dtype) for dtype in SAMPLING_SETTINGS.values()),
                tf.TensorSpec([], tf.int32),
            ],
            autograph=False,
            jit_compile=profile.xla,
        )

    def generate_texts(
        self, prompts: tf.Tensor, *settings: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Return (generated texts string [B], their token counts int32 [B])."""
        ids = self.tokenizer.encode(serving_graph.replace_invalid_utf8(prompts))
        token_ids, lengths, result = self.generate_ids(ids, *settings)
        new = tf.RaggedTensor.from_tensor(result.ids, lengths=result.counts)
        positions = tf.maximum(lengths[:, None] - DETOKENIZE_CONTEXT, 0)
        positions += tf.range(DETOKENIZE_CONTEXT)[None]
        last = tf.minimum(lengths, DETOKENIZE_CONTEXT)
        context = tf.gather(token_ids, tf.minimum(positions, lengths[:, None] - 1), batch_dims=1)
        context = tf.RaggedTensor.from_tensor(context, lengths=last)
        before = self.tokenizer.detokenize(context)
        joined = self.tokenizer.detokenize(tf.concat([context, new], axis=1))
        start = tf.minimum(tf.strings.length(before), tf.strings.length(joined))
        return serving_graph.replace_invalid_utf8(
            tf.strings.substr(joined, start, tf.strings.length(joined) - start)
        ), result.counts

    def generate_ids(
        self, ids: tf.RaggedTensor, max_new_tokens: tf.Tensor, *settings: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, loop.GeneratedBatch]:
        """Generate after prompts.

        Args:
            ids: Token ids of the prompts: int32 [B, None].
            max_new_tokens: int32 [B].
            *settings: The sampling settings [B], in the order of SAMPLING_SETTINGS.

        Returns:
            The prompts as they were read int32 [B, P], their lengths int32 [B], and the new ids.
        """
        requested = tf.clip_by_value(max_new_tokens, 0, self.max_new_tokens)
        token_ids, lengths = self._fit_prompts(ids, tf.maximum(requested, 1))
        most_new = tf.reduce_max(tf.minimum(tf.maximum(requested, 1), self.context - lengths))
        most_new = tf.maximum(most_new, 1)
        if self.xla:
            token_ids = tf.pad(token_ids, [[0, 0], [0, -tf.shape(token_ids)[1] % XLA_BUCKET]])
            most_new += -most_new % XLA_BUCKET
        result = loop.GeneratedBatch(
            *self._loop(token_ids, lengths, requested, *settings, most_new)
        )
        counts = tf.minimum(result.counts, requested)  # 0 where none were requested
        column = tf.range(tf.shape(result.ids)[1])[None]
        ids = tf.where(column < counts[:, None], result.ids, 0)
        return token_ids, lengths, result._replace(ids=ids, counts=counts)

    def _generate(
        self,
        token_ids: tf.Tensor,
        lengths: tf.Tensor,
        max_new_tokens: tf.Tensor,
        temperature: tf.Tensor,
        top_k: tf.Tensor,
        top_p: tf.Tensor,
        seed: tf.Tensor,
        most_new: tf.Tensor,
    ) -> tuple[tf.Tensor, ...]:
        """Run the loop on prompts int32 [B, P]; `most_new` is a scalar, the others are [B]."""
        ones, zeros = tf.ones_like(temperature), tf.zeros_like(lengths)
        eos_token_id = self.eos_token_id or (NO_ID,)
        rows = BatchedConfig(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=ones * 0.0,
            repetition_penalty=ones,
            presence_penalty=ones * 0.0,
            frequency_penalty=ones * 0.0,
            no_repeat_ngram_size=zeros,
            bad_words_ids=tf.zeros([tf.shape(lengths)[0], 0, 1], tf.int32),
            eos_token_id=zeros[:, None] + tf.constant([eos_token_id], tf.int32),
            min_new_tokens=zeros,
            forced_bos_token_id=zeros + NO_ID,
            forced_eos_token_id=zeros + NO_ID,
            seed=seed,
            sequence_index=zeros,
            max_length=tf.minimum(lengths + tf.maximum(max_new_tokens, 1), self.context),
        )
        flags = GraphFlags(sampling=True, filters=True, token_ranges=self.token_ranges)
        # XLA has no kernel for what TensorFlow's optimizer makes of a scatter.
        writer = caches.select if self.xla else caches.scatter
        return tuple(loop.generate(self.decoder, token_ids, lengths, rows, flags, most_new, writer))

    def _fit_prompts(
        self, ids: tf.RaggedTensor, max_new_tokens: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Return prompts int32 [B, P] that leave room in the context, and their lengths [B] >= 1.

        Of a prompt that fills the context the last tokens stay, so many that `max_new_tokens`
        int32 [B] new ones fit; a start token stays in front. See TextGenerator.truncate.
        """
        lengths = tf.cast(ids.row_lengths(), tf.int32)
        room = tf.maximum(self.context - max_new_tokens, 1)
        cut_lengths = tf.where(lengths >= self.context, room, lengths)
        width = tf.maximum(tf.reduce_max(tf.concat([cut_lengths, [1]], 0)), 1)
        column = tf.range(width)[None]
        row_starts = tf.cast(ids.row_starts(), tf.int32)
        positions = row_starts[:, None] + (lengths - cut_lengths)[:, None] + column
        values = tf.concat([ids.flat_values, [0]], 0)  # for positions after the end
        token_ids = tf.gather(values, tf.minimum(positions, tf.size(values) - 1))
        if self.bos_token_id is not None:
            first = tf.gather(values, row_starts)
            lost = (cut_lengths < lengths) & (cut_lengths > 1) & (first == self.bos_token_id)
            token_ids = tf.where(lost[:, None] & (column == 0), self.bos_token_id, token_ids)
        empty = (lengths == 0)[:, None]
        token_ids = tf.where(empty, self._first_id, token_ids)
        lengths = tf.maximum(cut_lengths, 1)
        return tf.where(column < lengths[:, None], token_ids, 0), lengths

    @property
    def _first_id(self) -> int:
        """The id that an empty prompt starts with."""
        return (
            self.bos_token_id if self.bos_token_id is not None else (self.eos_token_id or (0,))[0]
        )

    def score_texts(self, texts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return (sum of the tokens' log-probabilities float32 [B], scored tokens int32 [B]).

        A start token is put before each text and not scored itself; where the vocabulary has none,
        the first token is not scored. Of a text longer than the context the beginning is scored.
        """
        ids = self.tokenizer.tokenize(serving_graph.replace_invalid_utf8(texts))
        if self.bos_token_id is not None:
            start = tf.fill([ids.nrows(), 1], self.bos_token_id)
            ids = tf.concat([tf.RaggedTensor.from_tensor(start), ids], axis=1)
        ids = ids[:, : self.context]
        lengths = tf.cast(ids.row_lengths(), tf.int32)
        width = tf.maximum(tf.reduce_max(tf.concat([lengths, [1]], 0)), 1)
        token_ids = ids.to_tensor()
        token_ids = tf.pad(token_ids, [[0, 0], [0, width - tf.shape(token_ids)[1]]])
        hidden = self._hidden_states(token_ids, lengths)[:, :-1]
        is_target = tf.range(1, width)[None] < lengths[:, None]  # [B, T - 1]
        log_probs = self._log_probs(hidden, token_ids[:, 1:])
        return (
            tf.reduce_sum(tf.where(is_target, log_probs, 0.0), axis=1),
            tf.maximum(lengths - 1, 0),
        )

    def _hidden_states(self, token_ids: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        """Return float [B, T, D] of ids int32 [B, T]."""
        column = tf.range(tf.shape(token_ids)[1])
        positions = tf.zeros_like(token_ids) + column[None]
        padding_mask = column[None] < tf.maximum(lengths, 1)[:, None]
        attention_mask = (column[None] <= column[:, None])[None] & padding_mask[:, None]
        attention_mask = self.decoder.layer_masks(attention_mask, positions, positions)
        return self.decoder(token_ids, positions, attention_mask)[0]

    def _log_probs(self, hidden: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        """Return log-probabilities float32 [B, T] of `targets` int32 [B, T], in chunks of rows."""
        rows = tf.reshape(hidden, [-1, hidden.shape[-1]])
        flat_targets = tf.reshape(targets, [-1])
        size = tf.size(flat_targets)

        def step(begin: tf.Tensor, log_probs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            end = tf.minimum(begin + SCORE_CHUNK, size)
            logits = self.decoder.logits(rows[begin:end])
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(flat_targets[begin:end], logits)
            return end, tf.concat([log_probs, -losses], 0)

        _, log_probs = tf.while_loop(
            lambda begin, _: begin < size,
            step,
            (tf.constant(0), tf.zeros([0])),
            shape_invariants=(tf.TensorShape([]), tf.TensorShape([None])),
            parallel_iterations=1,
        )
        return tf.reshape(log_probs, tf.shape(targets))
