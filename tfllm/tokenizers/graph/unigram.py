"""A unigram model as TensorFlow ops, equal to the `tokenizers` package's to the last tie.

tf-text's SentencePiece kernel sums scores in float32 and decides between equally good paths
otherwise ("mmm" is `mm m` there and `m mm` here), so the best path is searched for in the graph:
every word of a batch at once, one step for each character of the longest.

Source: Kudo 2018, "Subword regularization"; `tokenizers` (models/unigram/model.rs).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfllm.errors import TokenizerError
from tfllm.tokenizers import sentencepiece_proto as proto
from tfllm.tokenizers.graph.normalized_string import decoded, first_of_texts
from tfllm.tokenizers.graph.trie import PointTrie

UNKNOWN_PENALTY = 10.0  # below the worst piece: kUnkPenalty


class Pieces(NamedTuple):
    """The pieces of a batch's words, which they cover without a gap: [K] each."""

    begins: tf.Tensor
    """int64: first code point, counted over all words"""
    ids: tf.Tensor
    """int32"""


class UnigramModel(tf.Module):
    """Words to ids and offsets; `model` is that of a tokenizer.json."""

    def __init__(self, model: Mapping[str, Any]):
        super().__init__()
        vocabulary = model["vocab"]
        ids = {token: number for number, (token, _) in enumerate(vocabulary) if token}
        unknown = model.get("unk_id")
        if unknown is None:
            raise TokenizerError(
                "tokenizer.json: the unigram model has no 'unk_id', so that it cannot read every "
                "text. Name one."
            )
        scores = np.array([score for _, score in vocabulary], np.float64)
        self._unknown = int(unknown)
        # Sums of float32 numbers are exact in float64, so that parts may be summed apart.
        self._exact = bool((scores == scores.astype(np.float32)).all())
        self._trie = PointTrie(ids)
        self._unknown_edge, self._no_edge = len(scores), len(scores) + 1
        byte_ids = [ids.get(token) for token in proto.BYTES] if model.get("byte_fallback") else []
        with tf.init_scope():
            self._scores = tf.constant(
                np.concatenate([scores, [scores.min() - UNKNOWN_PENALTY, -np.inf]])
            )
            self._byte_ids = (
                tf.constant(byte_ids, tf.int32) if byte_ids and None not in byte_ids else None
            )

    def tokenize(self, words: tf.Tensor) -> tf.RaggedTensor:
        """UTF-8 string [U] to ids, ragged int32 [U, None]."""
        return self.tokenize_with_offsets(words)[0]

    def tokenize_with_offsets(
        self, words: tf.Tensor
    ) -> tuple[tf.RaggedTensor, tf.RaggedTensor, tf.RaggedTensor]:
        """UTF-8 string [U] to ids, starts and ends in code points: ragged [U, None]."""
        texts = decoded(words)
        pieces = self._fused(self._best(texts.points, texts.splits, first_of_texts(texts)), texts)
        begins, ids = pieces
        stops = tf.concat([begins[1:], texts.size[None]], 0)
        splits = tf.searchsorted(begins, texts.splits, out_type=tf.int64)
        base = tf.gather(texts.splits, tf.gather(texts.rows, begins))
        starts, ends = begins - base, stops - base
        if self._byte_ids is not None:
            found = starts, ends, splits
            ids, starts, ends, splits = self._bytes(words, texts.points, pieces, *found)

        def ragged(values: tf.Tensor) -> tf.RaggedTensor:
            return tf.RaggedTensor.from_row_splits(values, splits, validate=False)

        return ragged(ids), ragged(starts), ragged(ends)

    def _best(self, points: tf.Tensor, splits: tf.Tensor, firsts: tf.Tensor) -> Pieces:
        """The pieces of the best paths, unknown characters one by one."""
        size = tf.size(points, out_type=tf.int64)
        place = tf.range(size)
        stops = tf.gather(splits, tf.searchsorted(splits, place, side="right"))
        begins, lengths, ids = self._trie.found(points, stops, place)
        single = tf.boolean_mask(begins, lengths == 1)
        alone = tf.tensor_scatter_nd_update(
            tf.zeros([size], tf.bool), single[:, None], tf.ones_like(single, tf.bool)
        )
        unknown = tf.where(~alone)[:, 0]
        begins = tf.concat([begins, unknown], 0)
        lengths = tf.concat([lengths, tf.ones_like(unknown)], 0)
        ids = tf.concat([ids, tf.fill(tf.shape(unknown), self._unknown_edge)], 0)
        longest = tf.reduce_max(tf.concat([lengths, [1]], 0))
        # [C, longest]: the pieces that end with each code point, the longest first.
        edges = tf.tensor_scatter_nd_update(
            tf.fill([size * longest], self._no_edge),
            ((begins + lengths - 1) * longest + longest - lengths)[:, None],
            ids,
        )
        edges = tf.reshape(edges, tf.stack([size, longest]))
        if self._exact:
            firsts |= _uncrossed(begins, lengths, size)
        chosen = self._lengths(edges, tf.where(firsts)[:, 0], longest)  # [C]
        begins, lengths = _path(chosen, firsts)
        ends = begins + lengths - 1
        ids = tf.gather_nd(edges, tf.stack([ends, longest - lengths], 1))
        return Pieces(begins, tf.where(ids == self._unknown_edge, self._unknown, ids))

    def _lengths(self, edges: tf.Tensor, firsts: tf.Tensor, longest: tf.Tensor) -> tf.Tensor:
        """The length of the piece that ends the best path to each code point: int64 [C]."""
        size = tf.shape(edges, tf.int64)[0]
        sizes = tf.concat([firsts[1:], size[None]], 0) - firsts
        order = tf.argsort(sizes, direction="DESCENDING", stable=True)
        firsts, falling = tf.gather(firsts, order), -tf.gather(sizes, order)
        count = tf.size(firsts)
        # Column c: the score of the best path that ends `longest` - c code points ago.
        history = tf.concat(
            [
                tf.fill(tf.stack([count, tf.cast(longest - 1, tf.int32)]), np.float64(-np.inf)),
                tf.zeros(tf.stack([count, 1]), tf.float64),
            ],
            1,
        )
        kept = [
            tf.TensorArray(tf.int64, 0, dynamic_size=True, element_shape=[None], infer_shape=False)
            .write(0, tf.zeros([0], tf.int64))
            for _ in range(2)
        ]  # fmt: skip

        def step(number, history, ends, chosen):
            active = tf.searchsorted(falling, -number[None], side="right")[0]
            end = firsts[:active] + number - 1
            scores = history[:active] + tf.gather(self._scores, tf.gather(edges, end))
            column = tf.argmax(scores, 1)  # of equal ones the longest, as the package has it
            best = tf.reduce_max(scores, 1, keepdims=True)
            history = tf.concat([history[:active, 1:], best], 1)
            place = tf.cast(number, tf.int32)
            return (
                number + 1, history, ends.write(place, end), chosen.write(place, longest - column)
            )  # fmt: skip

        steps = tf.reduce_max(tf.concat([sizes, [0]], 0))
        _, _, ends, chosen = tf.while_loop(
            lambda number, *_: number <= steps,
            step,
            (tf.constant(1, tf.int64), history, *kept),
            shape_invariants=(
                tf.TensorShape([]), tf.TensorShape([None, None]), *(tf.TensorShape(None),) * 2
            ),
        )  # fmt: skip
        return tf.scatter_nd(ends.concat()[:, None], chosen.concat(), size[None])

    def _fused(self, pieces: Pieces, texts: Any) -> Pieces:
        """Unknown pieces of a word that stand side by side as one."""
        begins, ids = pieces
        unknown = ids == self._unknown
        begins_word = tf.gather(first_of_texts(texts), begins)
        kept = ~(unknown & tf.concat([[False], unknown[:-1]], 0)) | begins_word
        return Pieces(tf.boolean_mask(begins, kept), tf.boolean_mask(ids, kept))

    def _bytes(self, words, points, pieces, starts, ends, splits):
        """Unknown pieces as their bytes, each with the offsets of the whole piece."""
        sizes = tf.add_n(
            [tf.cast(points >= limit, tf.int64) for limit in (0, 0x80, 0x800, 0x10000)]
        )
        places = tf.concat([[0], tf.cumsum(sizes)], 0)  # of the code points' bytes
        begin = tf.gather(places, pieces.begins)
        stop = tf.concat([begin[1:], places[-1:]], 0)
        unknown = pieces.ids == self._unknown
        counts = tf.where(unknown, stop - begin, tf.ones_like(begin))
        index = tf.repeat(tf.range(tf.size(counts)), counts)
        firsts = tf.concat([[0], tf.cumsum(counts)], 0)
        inner = tf.range(tf.size(index, out_type=tf.int64)) - tf.gather(firsts, index)
        flat = tf.io.decode_raw(tf.strings.reduce_join(words), tf.uint8)
        byte = tf.gather(tf.concat([flat, [0]], 0), tf.gather(begin, index) + inner)
        ids = tf.where(
            tf.gather(unknown, index),
            tf.gather(self._byte_ids, tf.cast(byte, tf.int32)),
            tf.gather(pieces.ids, index),
        )
        starts, ends = tf.gather(starts, index), tf.gather(ends, index)
        return ids, starts, ends, tf.gather(firsts, splits)


def _uncrossed(begins: tf.Tensor, lengths: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """bool [C]: no piece crosses the border before the code point, so that paths part there."""
    opened = tf.math.unsorted_segment_sum(tf.ones_like(begins), begins + 1, size + 1)
    closed = tf.math.unsorted_segment_sum(tf.ones_like(begins), begins + lengths, size + 1)
    return tf.cumsum(opened - closed)[:-1] == 0


def _path(chosen: tf.Tensor, firsts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Where the pieces of the best paths begin, and their lengths, in order: int64 [K] each."""
    size = tf.size(chosen, out_type=tf.int64)
    starts = tf.where(firsts)[:, 0]
    ends = tf.concat([starts, size[None]], 0)[1:] - 1  # none where there is no code point
    array = tf.TensorArray(
        tf.int64, size=1, dynamic_size=True, element_shape=[None], infer_shape=False
    ).write(0, tf.zeros([0], tf.int64))

    def step(number, ends, starts, array):
        begins = ends - tf.gather(chosen, ends) + 1
        array = array.write(number, begins)
        more = tf.where(begins > starts)[:, 0]
        return number + 1, tf.gather(begins, more) - 1, tf.gather(starts, more), array

    *_, array = tf.while_loop(
        lambda number, ends, *_: tf.size(ends) > 0, step, (1, ends, starts, array)
    )
    begins = tf.sort(array.concat())
    return begins, tf.concat([begins[1:], size[None]], 0) - begins
