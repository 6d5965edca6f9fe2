"""Serving signatures of embedding, token_classification and masked_lm: one text in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from tfllm.tasks import graph
from tfllm.tasks.words import CONTINUED, LETTERS, PUNCTUATION, piece_kinds

if TYPE_CHECKING:
    import keras

    from tfllm.tasks.embedding import Embedding
    from tfllm.tasks.masked_lm import MaskedLM
    from tfllm.tasks.token_classification import TokenClassification
    from tfllm.tokenizers.graph import GraphTokenizer

SPECIALS = 2  # [CLS] text [SEP]


def embedding(task: Embedding, model: keras.Model, tokenizer: GraphTokenizer) -> dict[str, Any]:
    """`serving_default`: text string[B] -> embedding float[B, D]; `tokens` -> embedding."""

    @graph.function(graph.texts("text"))
    def serve(text):
        packed = tokenizer(text, max_length=task.max_length)
        return {"embedding": graph.run_by_length(model, packed)}

    return {"serving_default": serve, "tokens": graph.tokens(model, "embedding")}


def token_classification(
    task: TokenClassification, model: keras.Model, tokenizer: GraphTokenizer
) -> dict[str, Any]:
    """`serving_default`: text string[B] -> the words of each text and their tags, padded [B, W].

    labels string ("" is padding), starts and ends int32 in characters (Unicode code points, not
    bytes) of the text, end exclusive, scores float: the tag's probability. `tokens`: logits
    [B, T, C]. `tfllm.tasks.words.entities` joins words to entities.
    """
    kinds = piece_kinds(tokenizer.tokenizer).astype(np.int8)

    @graph.function(graph.texts("text"))
    def serve(text):
        ids, starts, ends = (
            ragged[:, : task.max_length - SPECIALS]
            for ragged in tokenizer.tokenize_with_offsets(text)
        )
        packed = tokenizer.pack(ids, max_length=task.max_length)
        probabilities = tf.nn.softmax(graph.run(model, packed))  # [B, T, C]
        lengths = ids.row_lengths()  # [B]
        starts, ends = starts.to_tensor(), ends.to_tensor()  # [B, N]
        begins = word_starts(tf.gather(tf.constant(kinds), ids.to_tensor()), starts, ends, lengths)
        place = tf.where(begins)  # [W, 2]: row, piece
        row, piece = place[:, 0], place[:, 1]
        following = tf.concat([piece[1:], [0]], 0)  # 0 where the next word is another row's
        stop = tf.where(following > piece, following, tf.gather(lengths, row))
        scores = tf.gather_nd(probabilities, tf.stack([row, piece + 1], 1))  # [W, C]
        best = tf.argmax(scores, axis=-1, output_type=tf.int32)

        def padded(values: tf.Tensor) -> tf.Tensor:
            return tf.RaggedTensor.from_value_rowids(values, row, lengths_size).to_tensor()

        lengths_size = tf.size(lengths, out_type=tf.int64)
        return {
            "labels": padded(tf.gather(tf.constant(task.labels), best)),
            "starts": padded(tf.gather_nd(starts, place)),
            "ends": padded(tf.gather_nd(ends, tf.stack([row, stop - 1], 1))),
            "scores": padded(tf.reduce_max(scores, axis=-1)),
        }

    return {"serving_default": serve, "tokens": graph.tokens(model)}


def word_starts(
    kinds: tf.Tensor, starts: tf.Tensor, ends: tf.Tensor, lengths: tf.Tensor
) -> tf.Tensor:
    """`words.word_starts` of padded rows: kinds, starts, ends [B, N], lengths [B] to [B, N]."""
    real = tf.sequence_mask(lengths, tf.shape(starts)[1])
    solid = ((kinds == LETTERS) | (kinds == CONTINUED)) & real
    touches_next = (ends[:, :-1] == starts[:, 1:]) & real[:, 1:]  # [B, N - 1]
    touches_next = _shifted(touches_next, 0, 1)[:, : tf.shape(starts)[1]]
    touches_last = _shifted(touches_next, 1, 0)
    inner = (
        (kinds == PUNCTUATION)
        & touches_last
        & touches_next
        & _shifted(solid, 1, 0)
        & _shifted(solid, 0, 1)[:, 1:]
    )
    first = tf.range(tf.shape(starts)[1])[None] == 0
    return real & (first | ((kinds != CONTINUED) & ~inner & ~_shifted(inner, 1, 0)))


def _shifted(values: tf.Tensor, before: int, after: int) -> tf.Tensor:
    """bool [B, N] with columns of False put before (the last column falls out) or after it."""
    columns = tf.shape(values)[1]
    padded = tf.pad(values, [[0, 0], [before, after]])
    return padded[:, :columns] if before else padded


def masked_lm(task: MaskedLM, model: keras.Model, tokenizer: GraphTokenizer) -> dict[str, Any]:
    """`serving_default`: text string[B] -> text string[B] with its [MASK] filled, and candidates.

    tokens string[B, M, K] and scores float[B, M, K]: the K best of each mask, padded with "" and 0
    to the most masks of the batch. `tokens` (the signature): logits [B, T, V].
    """
    python = tokenizer.tokenizer
    mask = python.vocabulary[python.mask_id]

    @graph.function(graph.texts("text"))
    def serve(text):
        text = graph.valid_utf8(text)
        packed = tokenizer(text, max_length=task.max_length)
        raw = graph.run(model, packed)  # [B, T, V]
        place = tf.where(packed["token_ids"] == python.mask_id)  # [N, 2]
        count = min(task.top_k, python.vocabulary_size)
        scores, best = tf.math.top_k(tf.nn.softmax(tf.gather_nd(raw, place)), count)
        names = tf.gather(tf.constant(python.vocabulary), best)  # [N, K]
        rows = tf.shape(text, out_type=tf.int64)[0]

        def padded(values: tf.Tensor) -> tf.Tensor:
            ragged = tf.RaggedTensor.from_value_rowids(values, place[:, 0], rows)
            return ragged.to_tensor(shape=[None, None, count])

        return {
            "text": fill(text, mask, names[:, 0], place[:, 0]),
            "tokens": padded(names),
            "scores": padded(scores),
        }

    return {"serving_default": serve, "tokens": graph.tokens(model)}


def fill(text: tf.Tensor, mask: str, names: tf.Tensor, row: tf.Tensor) -> tf.Tensor:
    """`masked_lm.filled`: texts [B], for each seen mask its token `names` [N] and its `row` [N]."""
    parts = tf.strings.split(text, mask)  # ragged [B, None]: one more than masks
    owner = parts.value_rowids()  # [P]
    size = tf.size(text, out_type=tf.int64)
    found = tf.math.unsorted_segment_sum(tf.ones_like(row), row, size)  # [B]: masks seen
    number = tf.range(tf.size(owner, out_type=tf.int64)) - tf.gather(parts.row_starts(), owner)
    index = tf.gather(tf.cumsum(found, exclusive=True), owner) + number
    told = tf.gather(tf.concat([names, [""]], 0), tf.minimum(index, tf.size(names, tf.int64)))
    last = number == tf.gather(parts.row_lengths(), owner) - 1
    known = number < tf.gather(found, owner)
    token = tf.where(last, "", tf.where(known, told, mask))
    joined = tf.strings.regex_full_match(token, "##.+")
    token = tf.where(joined, tf.strings.regex_replace(token, "^##", ""), token)
    before = tf.strings.regex_replace(parts.flat_values, r"\s+$", "")
    pieces = tf.strings.join([tf.where(joined, before, parts.flat_values), token])
    return tf.strings.reduce_join(parts.with_flat_values(pieces), axis=-1)
