"""Serving signatures of causal language models: the whole loop in the graph, text in and text out.

    serving_default   prompt string[B] -> text string[B]
    generate          prompt, max_new_tokens int32, temperature, top_k int32, top_p, seed int32,
                      each [B] -> text string[B], token_count int32[B]
    generate_tokens   the same with token_ids int32[B, P], filled up on the right, and lengths
                      int32[B] -> token_ids int32[B, N], token_count, log_probabilities
                      float[B, N], finished int32[B] (1: by a stop id, 2: by length)
    score             text string[B] -> log_probability float[B], token_count int32[B]
    tokens            token_ids, padding_mask int32[B, T] -> logits float[B, T, V]

`text` does not repeat the prompt. Every row has its own settings, and what it gets does not depend
on its neighbours. A prompt that fills the window loses its beginning, an empty one begins with the
start token (or a stop id, where there is none). Settings and ids that cannot be honoured fail the
call.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from tfllm.export.base import Profile, context_of
from tfllm.generation import cache as caches
from tfllm.generation import loop
from tfllm.generation.config import NO_ID, BatchedConfig, GraphFlags, signature_fields
from tfllm.tasks import serving_graph
from tfllm.tokenizers.base import valid_id_ranges

if TYPE_CHECKING:
    import keras

    from tfllm.models.decoder import Decoder

# Tokens of a prompt that decide whether the text after it begins with a space; as generation.text.
CONTEXT = 8
# Rows of hidden states whose scores of the whole vocabulary are in memory at once.
SCORED_AT_ONCE = 128
# Lengths that XLA compiles for: prompts and new tokens are rounded up to them.
XLA_BUCKET = 64

SETTINGS = signature_fields("generate")

# What each of these, and beam search's, must be: as GenerationConfig, but that a request may want
# no token at all.
RULES = {
    "max_new_tokens": ("at least 0", lambda value: value >= 0),
    "temperature": (
        "a finite number of at least 0",
        lambda value: tf.math.is_finite(value) & (value >= 0),
    ),
    "top_k": ("at least 0", lambda value: value >= 0),
    "top_p": ("above 0 and at most 1", lambda value: (value > 0) & (value <= 1)),
    "seed": ("at least 0", lambda value: value >= 0),
    "length_penalty": ("a finite number", tf.math.is_finite),
}


def checked_settings(names: Iterable[str], *values: tf.Tensor) -> list[tf.Tensor]:
    """The values; a call fails where a setting cannot be honoured, see `graph.checked`."""
    return [
        serving_graph.require(name, RULES[name][0], value, RULES[name][1](value))
        for name, value in zip(names, values, strict=True)
    ]


def checked_ids(token_ids: tf.Tensor, lengths: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Ids and lengths of rows; a call fails whose ids, within the `lengths` of their rows, are not
    of a vocabulary of `size`."""
    width = tf.shape(token_ids)[1]
    fits = (lengths >= 0) & (lengths <= width)
    lengths = serving_graph.require(
        "lengths", "between 0 and the width of token_ids", lengths, fits
    )
    right = (token_ids >= 0) & (token_ids < size) | ~tf.sequence_mask(lengths, width)
    rule = f"between 0 and {size - 1}"
    return serving_graph.require("token_ids", rule, token_ids, right), lengths


def signatures(
    checkpoint: Any, model: keras.Model, graph_tokenizer: Any, profile: Profile
) -> dict[str, Any]:
    """Signature name -> tf.function. Keep `model`'s variables and `graph_tokenizer` alive."""
    from tfllm.generation.cpu_decoding import use_cpu_layout
    from tfllm.models.decoder import get_decoder

    made = use_cpu_layout(get_decoder(model, checkpoint.family, checkpoint.config))
    writer = Writer(made, checkpoint, graph_tokenizer, profile)
    settings = [tf.TensorSpec([None], kind, name) for name, kind in SETTINGS.items()]
    ids = [
        tf.TensorSpec([None, None], tf.int32, "token_ids"),
        tf.TensorSpec([None], tf.int32, "lengths"),
    ]
    defaults = profile.generation

    @serving_graph.signature(serving_graph.text_inputs("prompt"))
    def serve(prompt):
        given = [
            tf.fill(tf.shape(prompt), tf.constant(getattr(defaults, name), kind))
            for name, kind in SETTINGS.items()
        ]
        return {"text": writer.texts(prompt, *given)[0]}

    @serving_graph.signature(serving_graph.text_inputs("prompt") + settings)
    def generate(prompt, max_new_tokens, temperature, top_k, top_p, seed):
        asked = (max_new_tokens, temperature, top_k, top_p, seed)
        given = checked_settings(SETTINGS, *asked)
        text, count = writer.texts(prompt, *given)
        return {"text": text, "token_count": count}

    @serving_graph.signature(ids + settings)
    def generate_tokens(token_ids, lengths, max_new_tokens, temperature, top_k, top_p, seed):
        asked = (max_new_tokens, temperature, top_k, top_p, seed)
        given = checked_settings(SETTINGS, *asked)
        token_ids, lengths = checked_ids(token_ids, lengths, made.vocabulary_size)
        ragged = tf.RaggedTensor.from_tensor(token_ids, lengths=lengths)
        found = writer.tokens(ragged, *given)[2]
        return {
            "token_ids": found.ids,
            "token_count": found.counts,
            "log_probabilities": found.log_probabilities,
            "finished": found.finished,
        }

    @serving_graph.signature(serving_graph.text_inputs("text"))
    def score(text):
        log_probability, count = writer.scores(text)
        return {"log_probability": log_probability, "token_count": count}

    return {
        "serving_default": serve,
        "generate": generate,
        "generate_tokens": generate_tokens,
        "score": score,
        "tokens": serving_graph.tokens_signature(model),
    }


class Writer:
    """What the signatures share."""

    def __init__(self, decoder: Decoder, checkpoint: Any, graph_tokenizer: Any, profile: Profile):
        self.decoder = decoder
        self.tokenizer = graph_tokenizer
        self.window = context_of(checkpoint, profile)
        self.most_new = min(profile.generation.most_new_tokens or self.window, self.window)
        self.eos_token_id = tuple(checkpoint.eos_token_id)
        self.start_id = checkpoint.tokenizer.bos_token_id
        self.known = valid_id_ranges(checkpoint.tokenizer, decoder.vocabulary_size)
        self.xla = profile.xla
        # One function, so that the file holds the loop once for all signatures.
        self._loop = tf.function(
            self._written,
            input_signature=[
                tf.TensorSpec([None, None], tf.int32),
                tf.TensorSpec([None], tf.int32),
                *(tf.TensorSpec([None], kind) for kind in SETTINGS.values()),
                tf.TensorSpec([], tf.int32),
            ],
            autograph=False,
            jit_compile=profile.xla,
        )

    def texts(self, prompts: tf.Tensor, *settings: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """(texts string [B], how many tokens they have int32 [B])."""
        ids = self.tokenizer.encode(serving_graph.replace_invalid_utf8(prompts))
        token_ids, lengths, found = self.tokens(ids, *settings)
        new = tf.RaggedTensor.from_tensor(found.ids, lengths=found.counts)
        place = tf.maximum(lengths[:, None] - CONTEXT, 0) + tf.range(CONTEXT)[None]
        last = tf.minimum(lengths, CONTEXT)
        context = tf.gather(token_ids, tf.minimum(place, lengths[:, None] - 1), batch_dims=1)
        context = tf.RaggedTensor.from_tensor(context, lengths=last)
        before = self.tokenizer.detokenize(context)
        whole = self.tokenizer.detokenize(tf.concat([context, new], axis=1))
        start = tf.minimum(tf.strings.length(before), tf.strings.length(whole))
        return serving_graph.replace_invalid_utf8(
            tf.strings.substr(whole, start, tf.strings.length(whole) - start)
        ), found.counts

    def tokens(
        self, ids: tf.RaggedTensor, max_new_tokens: tf.Tensor, *settings: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, loop.GeneratedBatch]:
        """(prompts as they were read int32 [B, P], their lengths [B], what was written)."""
        wanted = tf.clip_by_value(max_new_tokens, 0, self.most_new)
        token_ids, lengths = self._fitted(ids, tf.maximum(wanted, 1))
        most_new = tf.reduce_max(tf.minimum(tf.maximum(wanted, 1), self.window - lengths))
        most_new = tf.maximum(most_new, 1)
        if self.xla:
            token_ids = tf.pad(token_ids, [[0, 0], [0, -tf.shape(token_ids)[1] % XLA_BUCKET]])
            most_new += -most_new % XLA_BUCKET
        found = self._loop(token_ids, lengths, wanted, *settings, most_new)
        found = loop.GeneratedBatch(*found)
        counts = tf.minimum(found.counts, wanted)  # 0 where none were wanted
        place = tf.range(tf.shape(found.ids)[1])[None]
        ids = tf.where(place < counts[:, None], found.ids, 0)
        return token_ids, lengths, found._replace(ids=ids, counts=counts)

    def _written(self, token_ids, lengths, max_new_tokens, temperature, top_k, top_p, seed, most):
        ones, zeros = tf.ones_like(temperature), tf.zeros_like(lengths)
        stops = self.eos_token_id or (NO_ID,)
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
            eos_token_id=zeros[:, None] + tf.constant([stops], tf.int32),
            min_new_tokens=zeros,
            forced_bos_token_id=zeros + NO_ID,
            forced_eos_token_id=zeros + NO_ID,
            seed=seed,
            sequence_index=zeros,
            max_length=tf.minimum(lengths + tf.maximum(max_new_tokens, 1), self.window),
        )
        needs = GraphFlags(sampling=True, filters=True, token_ranges=self.known)
        # XLA has no kernel for what TensorFlow's optimizer makes of a scatter.
        writer = caches.select if self.xla else caches.scatter
        return tuple(loop.generate(self.decoder, token_ids, lengths, rows, needs, most, writer))

    def _fitted(self, ids: tf.RaggedTensor, wanted: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Prompts int32 [B, P] that leave room in the window, and their lengths [B], at least 1.

        Of a prompt that fills the window the last tokens stay, so many that `wanted` int32 [B] new
        ones fit; a start token stays in front. See TextGenerator.cut.
        """
        lengths = tf.cast(ids.row_lengths(), tf.int32)
        room = tf.maximum(self.window - wanted, 1)
        kept = tf.where(lengths >= self.window, room, lengths)
        width = tf.maximum(tf.reduce_max(tf.concat([kept, [1]], 0)), 1)
        column = tf.range(width)[None]
        place = tf.cast(ids.row_starts(), tf.int32)[:, None] + (lengths - kept)[:, None] + column
        values = tf.concat([ids.flat_values, [0]], 0)  # for the places after the end
        found = tf.gather(values, tf.minimum(place, tf.size(values) - 1))
        if self.start_id is not None:
            first = tf.gather(values, tf.cast(ids.row_starts(), tf.int32))
            began = (kept < lengths) & (kept > 1) & (first == self.start_id)
            found = tf.where(began[:, None] & (column == 0), self.start_id, found)
        empty = (lengths == 0)[:, None]
        found = tf.where(empty, self._first_id, found)
        lengths = tf.maximum(kept, 1)
        return tf.where(column < lengths[:, None], found, 0), lengths

    @property
    def _first_id(self) -> int:
        """What an empty prompt begins with."""
        return self.start_id if self.start_id is not None else (self.eos_token_id or (0,))[0]

    def scores(self, texts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """(sum of the tokens' log-probabilities float32 [B], how many tokens were told int32 [B]).

        The start token stands before a text and is not told itself; where the vocabulary has none,
        the first token is not told. Of a text longer than the window its beginning counts.
        """
        ids = self.tokenizer.tokenize(serving_graph.replace_invalid_utf8(texts))
        if self.start_id is not None:
            start = tf.fill([ids.nrows(), 1], self.start_id)
            ids = tf.concat([tf.RaggedTensor.from_tensor(start), ids], axis=1)
        ids = ids[:, : self.window]
        lengths = tf.cast(ids.row_lengths(), tf.int32)
        width = tf.maximum(tf.reduce_max(tf.concat([lengths, [1]], 0)), 1)
        token_ids = ids.to_tensor()
        token_ids = tf.pad(token_ids, [[0, 0], [0, width - tf.shape(token_ids)[1]]])
        hidden = self._hidden(token_ids, lengths)[:, :-1]
        told = tf.range(1, width)[None] < lengths[:, None]  # [B, T - 1]: of the tokens after
        logs = self._logs(hidden, token_ids[:, 1:])
        return tf.reduce_sum(tf.where(told, logs, 0.0), axis=1), tf.maximum(lengths - 1, 0)

    def _hidden(self, token_ids: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        place = tf.range(tf.shape(token_ids)[1])
        positions = tf.zeros_like(token_ids) + place[None]
        known = place[None] < tf.maximum(lengths, 1)[:, None]
        allowed = (place[None] <= place[:, None])[None] & known[:, None]
        allowed = self.decoder.layer_masks(allowed, positions, positions)
        return self.decoder(token_ids, positions, allowed)[0]

    def _logs(self, hidden: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        """Log-probabilities float32 [B, T] of `targets` int32 [B, T], some rows at a time."""
        rows = tf.reshape(hidden, [-1, hidden.shape[-1]])
        wanted = tf.reshape(targets, [-1])
        size = tf.size(wanted)

        def step(begin: tf.Tensor, found: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            end = tf.minimum(begin + SCORED_AT_ONCE, size)
            logits = self.decoder.logits(rows[begin:end])
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(wanted[begin:end], logits)
            return end, tf.concat([found, -losses], 0)

        _, found = tf.while_loop(
            lambda begin, _: begin < size,
            step,
            (tf.constant(0), tf.zeros([0])),
            shape_invariants=(tf.TensorShape([]), tf.TensorShape([None])),
            parallel_iterations=1,
        )
        return tf.reshape(found, tf.shape(targets))
