"""Serving signatures of embedding, token_classification and masked_lm: one text in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tensorflow as tf

from tfllm.tasks import serving_graph
from tfllm.tasks.entities_graph import GraphWords
from tfllm.tokenizers.word_alignment import AS_IS, NO_SPACE, SPACE_BEFORE

if TYPE_CHECKING:
    import keras

    from tfllm.tasks.embedding import Embedding
    from tfllm.tasks.masked_lm import MaskedLM
    from tfllm.tasks.token_classification import TokenClassification
    from tfllm.tokenizers.graph.wordpiece import WordPieceGraph


def embedding(task: Embedding, model: keras.Model, tokenizer: WordPieceGraph) -> dict[str, Any]:
    """`serving_default`: text string[B] -> embedding float[B, D]; `tokens` -> embedding."""

    @serving_graph.signature(serving_graph.text_inputs("text"))
    def serve(text):
        text = tf.strings.join([task.prompt, text]) if task.prompt else text
        packed = tokenizer(text, max_length=task.max_length)
        return {"embedding": serving_graph.run_by_length(model, packed)}

    return {"serving_default": serve, "tokens": serving_graph.tokens_signature(model, "embedding")}


def token_classification(
    task: TokenClassification, model: keras.Model, tokenizer: WordPieceGraph
) -> dict[str, Any]:
    """`serving_default`: text string[B] -> the words of each text and their tags, padded [B, W].

    labels string ("" is padding), starts and ends int32 in characters (Unicode code points, not
    bytes) of the text, end exclusive, scores float: the tag's probability. `tokens`: logits
    [B, T, C]. `tfllm.tasks.entities.entities` joins words to entities.
    """
    find = GraphWords(tokenizer.tokenizer)
    template = tokenizer.ids.template

    @serving_graph.signature(serving_graph.text_inputs("text"))
    def serve(text):
        ids, starts, ends = (
            ragged[:, : task.max_length - template.num_special_tokens]
            for ragged in tokenizer.tokenize_with_offsets(text)
        )
        packed = tokenizer.pack(ids, max_length=task.max_length)
        probabilities = tf.nn.softmax(serving_graph.run_model(model, packed))  # [B, T, C]
        words = find(text, ids, starts, ends)
        places = tf.stack([words.rows, words.places + len(template.prefix)], 1)
        scores = tf.gather_nd(probabilities, places)  # [W, C]
        best = tf.argmax(scores, axis=-1, output_type=tf.int32)
        size = tf.size(text, out_type=tf.int64)

        def pad_arrays(values: tf.Tensor) -> tf.Tensor:
            return tf.RaggedTensor.from_value_rowids(values, words.rows, size).to_tensor()

        return {
            "labels": pad_arrays(tf.gather(tf.constant(task.labels), best)),
            "starts": pad_arrays(tf.cast(words.starts, tf.int32)),
            "ends": pad_arrays(tf.cast(words.ends, tf.int32)),
            "scores": pad_arrays(tf.reduce_max(scores, axis=-1)),
        }

    return {"serving_default": serve, "tokens": serving_graph.tokens_signature(model)}


def masked_lm(task: MaskedLM, model: keras.Model, tokenizer: WordPieceGraph) -> dict[str, Any]:
    """`serving_default`: text string[B] -> text string[B] with its [MASK] filled, and candidates.

    tokens string[B, M, K] and scores float[B, M, K]: the K best of each mask, padded with "" and 0
    to the most masks of the batch. `tokens` (the signature): logits [B, T, V].
    """
    python = tokenizer.tokenizer
    mask = python.vocabulary[python.mask_token_id]
    manners, contents = map(tf.constant, zip(*python.fill_mask_texts, strict=True))

    @serving_graph.signature(serving_graph.text_inputs("text"))
    def serve(text):
        text = serving_graph.replace_invalid_utf8(text)
        packed = tokenizer(text, max_length=task.max_length)
        raw = serving_graph.run_model(model, packed)  # [B, T, V]
        place = tf.where(packed["token_ids"] == python.mask_token_id)  # [N, 2]
        count = min(task.top_k, python.vocabulary_size)
        shares = tf.nn.softmax(tf.gather_nd(raw, place))  # rows without a token are not chosen
        scores, best = tf.math.top_k(shares[:, : python.vocabulary_size], count)
        names = tf.gather(tf.constant(python.vocabulary), best)  # [N, K]
        rows = tf.shape(text, out_type=tf.int64)[0]

        first = tf.gather(contents, best[:, 0]), tf.gather(manners, best[:, 0])

        def pad_arrays(values: tf.Tensor) -> tf.Tensor:
            ragged = tf.RaggedTensor.from_value_rowids(values, place[:, 0], rows)
            return ragged.to_tensor(shape=[None, None, count])

        return {
            "text": fill(text, mask, *first, place[:, 0]),
            "tokens": pad_arrays(names),
            "scores": pad_arrays(scores),
        }

    return {"serving_default": serve, "tokens": serving_graph.tokens_signature(model)}


def fill(
    text: tf.Tensor, mask: str, tokens: tf.Tensor, manners: tf.Tensor, row: tf.Tensor
) -> tf.Tensor:
    """`masked_lm.fill_masks`: texts [B]; for each seen mask [N] its token, its manner and its row."""
    parts = tf.strings.split(text, mask)  # ragged [B, None]: one more than masks
    owner = parts.value_rowids()  # [P]
    size = tf.size(text, out_type=tf.int64)
    found = tf.math.unsorted_segment_sum(tf.ones_like(row), row, size)  # [B]: masks seen
    number = tf.range(tf.size(owner, out_type=tf.int64)) - tf.gather(parts.row_starts(), owner)
    index = tf.gather(tf.cumsum(found, exclusive=True), owner) + number
    index = tf.minimum(index, tf.size(tokens, tf.int64))
    told = tf.gather(tf.concat([tokens, [""]], 0), index)
    last = number == tf.gather(parts.row_lengths(), owner) - 1
    known = (number < tf.gather(found, owner)) & ~last
    manner = tf.where(known, tf.gather(tf.concat([manners, [AS_IS]], 0), index), AS_IS)
    token = tf.where(last, "", tf.where(known, told, mask))
    part = parts.flat_values
    before = tf.where(manner == NO_SPACE, tf.strings.regex_replace(part, r"\s+$", ""), part)
    spaced = tf.strings.regex_full_match(part, r"\C*\s") | ((part == "") & (number == 0))
    space = tf.where((manner == SPACE_BEFORE) & ~spaced, " ", "")
    pieces = tf.strings.join([before, space, token])
    return tf.strings.reduce_join(parts.with_flat_values(pieces), axis=-1)
