"""A unigram language model tokenizer as TensorFlow ops, equal to the `tokenizers` package's.

tf-text's SentencePiece kernel adds scores in float32 and breaks ties otherwise ("mmm" is `mm m`
there and `m mm` here), so the Viterbi search runs in the graph, in float64 as in the package: all
words of a batch at once, one step for each character of the longest. Words that are one token are
looked up in a table that the package has filled: in text of a known language they are the most.

Source: Kudo 2018, "Subword regularization"; `tokenizers` (models/unigram/model.rs).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfllm.errors import TokenizerError
from tfllm.tokenizers import sentencepiece_proto as proto
from tfllm.tokenizers.graph.normalized_string import NormalizedStrings, decode, first_of_texts
from tfllm.tokenizers.graph.trie import CodePointTrie

UNKNOWN_PENALTY = 10.0  # below the lowest score of a token: kUnkPenalty
NOT_ONE_TOKEN = -1


class BestPath(NamedTuple):
    """The K tokens of the best paths through a batch of words, which they cover without a gap."""

    begins: tf.Tensor
    """int64 [K]: first code point, counted over all words."""
    ids: tf.Tensor
    """int32 [K]"""


class RaggedTokens(NamedTuple):
    """Tokens by word, with offsets in code points of the word: ragged [U, None] each."""

    ids: tf.RaggedTensor
    """int32"""
    starts: tf.RaggedTensor
    """int64"""
    ends: tf.RaggedTensor
    """int64"""


class UnigramModel(tf.Module):
    """Words to token ids and offsets.

    Args:
        model: The value of "model" in a tokenizer.json, of type Unigram.

    Raises:
        TokenizerError: The model has no unknown token.
    """

    def __init__(self, model: Mapping[str, Any]):
        super().__init__()
        vocabulary = model["vocab"]
        ids = {token: token_id for token_id, (token, _) in enumerate(vocabulary) if token}
        if model.get("unk_id") is None:
            raise TokenizerError(
                "tokenizer.json: the unigram model has no 'unk_id', so that it cannot read every "
                "text. Name one."
            )
        scores = np.array([score for _, score in vocabulary], np.float64)
        self._unk_id = int(model["unk_id"])
        # Sums of float32 numbers are exact in float64, so that parts may be summed separately.
        self._exact_sums = bool((scores == scores.astype(np.float32)).all())
        self._trie = CodePointTrie(ids)
        self._unknown_edge, self._no_edge = len(scores), len(scores) + 1
        byte_ids = [ids.get(token) for token in proto.BYTES] if model.get("byte_fallback") else []
        whole_words = whole_word_ids(model)
        with tf.init_scope():
            self._scores = tf.constant(
                np.concatenate([scores, [scores.min() - UNKNOWN_PENALTY, -np.inf]])
            )
            self._byte_ids = (
                tf.constant(byte_ids, tf.int32) if byte_ids and None not in byte_ids else None
            )
            self._whole_words = tf.lookup.StaticHashTable(
                tf.lookup.KeyValueTensorInitializer(
                    tf.constant([*whole_words], tf.string),
                    tf.constant([*whole_words.values()], tf.int32),
                ),
                NOT_ONE_TOKEN,
            )

    def tokenize(self, words: tf.Tensor) -> tf.RaggedTensor:
        """Tokenize UTF-8 words, string [U], to ids, ragged int32 [U, None]."""
        whole, rest, order = self._look_up(words)
        searched = self._search(tf.gather(words, rest))
        return _gather_rows(whole, searched.ids, order)

    def tokenize_with_offsets(self, words: tf.Tensor) -> RaggedTokens:
        """Tokenize UTF-8 words, string [U], to ids and offsets."""
        whole, rest, order = self._look_up(words)
        searched = self._search(tf.gather(words, rest))
        is_whole = tf.scatter_nd(rest[:, None], tf.ones_like(rest), tf.shape(words, tf.int64)) == 0
        sizes = tf.strings.length(tf.boolean_mask(words, is_whole), unit="UTF8_CHAR")
        ends = tf.cast(sizes, tf.int64)
        return RaggedTokens(
            _gather_rows(whole, searched.ids, order),
            _gather_rows(tf.zeros_like(ends), searched.starts, order),
            _gather_rows(ends, searched.ends, order),
        )

    def _look_up(self, words: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Ids of the words that are one token, int32 [W]; indices of the others, int64 [U - W];
        int64 [U]: the row of each word where those of one token come first."""
        ids = self._whole_words.lookup(words)
        is_whole = ids != NOT_ONE_TOKEN
        before = tf.cumsum(tf.cast(is_whole, tf.int64))
        index = tf.range(tf.size(ids, out_type=tf.int64))
        count = tf.reduce_sum(tf.cast(is_whole, tf.int64))
        order = tf.where(is_whole, before - 1, count + index - before)
        return tf.boolean_mask(ids, is_whole), tf.where(~is_whole)[:, 0], order

    def _search(self, words: tf.Tensor) -> RaggedTokens:
        """Tokens of UTF-8 words, string [U], by Viterbi search."""
        texts = decode(words)
        path = self._best_path(texts.points, texts.splits, first_of_texts(texts))
        path = self._fuse_unknown(path, texts)
        begins, ids = path
        stops = tf.concat([begins[1:], texts.size[None]], 0)
        splits = tf.searchsorted(begins, texts.splits, out_type=tf.int64)
        base = tf.gather(texts.splits, tf.gather(texts.rows, begins))
        starts, ends = begins - base, stops - base
        if self._byte_ids is not None:
            ids, starts, ends, splits = self._fall_back_to_bytes(
                words, texts.points, path, starts, ends, splits
            )

        def ragged(values: tf.Tensor) -> tf.RaggedTensor:
            return tf.RaggedTensor.from_row_splits(values, splits, validate=False)

        return RaggedTokens(ragged(ids), ragged(starts), ragged(ends))

    def _best_path(self, points: tf.Tensor, splits: tf.Tensor, firsts: tf.Tensor) -> BestPath:
        """The tokens of the best paths, unknown characters one by one.

        Args:
            points: Code points of all words, int32 [C].
            splits: The code points of each word, int64 [U + 1].
            firsts: Whether a word begins with each code point, bool [C].
        """
        size = tf.size(points, out_type=tf.int64)
        index = tf.range(size)
        stops = tf.gather(splits, tf.searchsorted(splits, index, side="right"))
        begins, lengths, ids = self._trie.find_all(points, stops, index)
        single = tf.boolean_mask(begins, lengths == 1)
        is_token = tf.tensor_scatter_nd_update(
            tf.zeros([size], tf.bool), single[:, None], tf.ones_like(single, tf.bool)
        )
        unknown = tf.where(~is_token)[:, 0]
        begins = tf.concat([begins, unknown], 0)
        lengths = tf.concat([lengths, tf.ones_like(unknown)], 0)
        ids = tf.concat([ids, tf.fill(tf.shape(unknown), self._unknown_edge)], 0)
        longest = tf.reduce_max(tf.concat([lengths, [1]], 0))
        # [C, longest]: the tokens that end with each code point, the longest first.
        edges = tf.tensor_scatter_nd_update(
            tf.fill([size * longest], self._no_edge),
            ((begins + lengths - 1) * longest + longest - lengths)[:, None],
            ids,
        )
        edges = tf.reshape(edges, tf.stack([size, longest]))
        if self._exact_sums:
            firsts |= _uncrossed(begins, lengths, size)
        chosen = self._last_lengths(edges, tf.where(firsts)[:, 0], longest)
        begins, lengths = _backtrack(chosen, firsts)
        ends = begins + lengths - 1
        ids = tf.gather_nd(edges, tf.stack([ends, longest - lengths], 1))
        return BestPath(begins, tf.where(ids == self._unknown_edge, self._unk_id, ids))

    def _last_lengths(self, edges: tf.Tensor, firsts: tf.Tensor, longest: tf.Tensor) -> tf.Tensor:
        """The length of the last token on the best path to each code point, int64 [C].

        Args:
            edges: The tokens that end with each code point, the longest first: int32 [C, longest].
            firsts: Where paths begin, int64 [S].
            longest: Code points of the longest token.
        """
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
        arrays = [
            tf.TensorArray(tf.int64, 0, dynamic_size=True, element_shape=[None], infer_shape=False)
            .write(0, tf.zeros([0], tf.int64))
            for _ in range(2)
        ]  # fmt: skip

        def step(
            number: tf.Tensor, history: tf.Tensor, ends: tf.TensorArray, chosen: tf.TensorArray
        ) -> tuple[tf.Tensor, tf.Tensor, tf.TensorArray, tf.TensorArray]:
            active = tf.searchsorted(falling, -number[None], side="right")[0]
            end = firsts[:active] + number - 1
            scores = history[:active] + tf.gather(self._scores, tf.gather(edges, end))
            column = tf.argmax(scores, 1)  # of equal ones the longest, as the package has it
            best = tf.reduce_max(scores, 1, keepdims=True)
            history = tf.concat([history[:active, 1:], best], 1)
            row = tf.cast(number, tf.int32)
            return number + 1, history, ends.write(row, end), chosen.write(row, longest - column)

        steps = tf.reduce_max(tf.concat([sizes, [0]], 0))
        _, _, ends, chosen = tf.while_loop(
            lambda number, *_: number <= steps,
            step,
            (tf.constant(1, tf.int64), history, *arrays),
            shape_invariants=(
                tf.TensorShape([]), tf.TensorShape([None, None]), *(tf.TensorShape(None),) * 2
            ),
        )  # fmt: skip
        return tf.scatter_nd(ends.concat()[:, None], chosen.concat(), size[None])

    def _fuse_unknown(self, path: BestPath, texts: NormalizedStrings) -> BestPath:
        """Fuse neighbouring unknown tokens of a word into one."""
        begins, ids = path
        unknown = ids == self._unk_id
        begins_word = tf.gather(first_of_texts(texts), begins)
        kept = ~(unknown & tf.concat([[False], unknown[:-1]], 0)) | begins_word
        return BestPath(tf.boolean_mask(begins, kept), tf.boolean_mask(ids, kept))

    def _fall_back_to_bytes(
        self,
        words: tf.Tensor,
        points: tf.Tensor,
        path: BestPath,
        starts: tf.Tensor,
        ends: tf.Tensor,
        splits: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Replace unknown tokens by their bytes, each with the offsets of the unknown token."""
        sizes = tf.add_n(
            [tf.cast(points >= limit, tf.int64) for limit in (0, 0x80, 0x800, 0x10000)]
        )
        byte_begins = tf.concat([[0], tf.cumsum(sizes)], 0)  # of the code points
        begin = tf.gather(byte_begins, path.begins)
        stop = tf.concat([begin[1:], byte_begins[-1:]], 0)
        unknown = path.ids == self._unk_id
        counts = tf.where(unknown, stop - begin, tf.ones_like(begin))
        index = tf.repeat(tf.range(tf.size(counts)), counts)
        firsts = tf.concat([[0], tf.cumsum(counts)], 0)
        inner = tf.range(tf.size(index, out_type=tf.int64)) - tf.gather(firsts, index)
        flat = tf.io.decode_raw(tf.strings.reduce_join(words), tf.uint8)
        byte = tf.gather(tf.concat([flat, [0]], 0), tf.gather(begin, index) + inner)
        ids = tf.where(
            tf.gather(unknown, index),
            tf.gather(self._byte_ids, tf.cast(byte, tf.int32)),
            tf.gather(path.ids, index),
        )
        starts, ends = tf.gather(starts, index), tf.gather(ends, index)
        return ids, starts, ends, tf.gather(firsts, splits)


def whole_word_ids(model: Mapping[str, Any]) -> dict[str, int]:
    """Return the tokens that the `tokenizers` package produces from their own text, with ids.

    Args:
        model: The value of "model" in a tokenizer.json, of type Unigram.
    """
    from tokenizers import Tokenizer, models

    vocabulary = [(token, score) for token, score in model["vocab"]]
    reference = Tokenizer(
        models.Unigram(vocabulary, model.get("unk_id"), bool(model.get("byte_fallback")))
    )
    texts = [token for token, _ in vocabulary if token]
    rows = reference.encode_batch(texts, add_special_tokens=False)
    ids = {token: token_id for token_id, (token, _) in enumerate(vocabulary)}
    return {
        text: ids[text] for text, row in zip(texts, rows, strict=True) if row.ids == [ids[text]]
    }


def _gather_rows(whole: tf.Tensor, others: tf.RaggedTensor, order: tf.Tensor) -> tf.RaggedTensor:
    """Rows of one value each, [W], and behind them the ragged ones, in the order int64 [U]."""
    count = tf.size(whole, out_type=tf.int64)
    rows = tf.RaggedTensor.from_row_splits(
        tf.concat([whole, others.flat_values], 0),
        tf.concat([tf.range(count), count + others.row_splits], 0),
        validate=False,
    )
    return tf.gather(rows, order)


def _uncrossed(begins: tf.Tensor, lengths: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """bool [C]: no token crosses the border before the code point, so that paths split there."""
    opened = tf.math.unsorted_segment_sum(tf.ones_like(begins), begins + 1, size + 1)
    closed = tf.math.unsorted_segment_sum(tf.ones_like(begins), begins + lengths, size + 1)
    return tf.cumsum(opened - closed)[:-1] == 0


def _backtrack(chosen: tf.Tensor, firsts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Where the tokens of the best paths begin, and their lengths, in order: int64 [K] each.

    Args:
        chosen: The length of the last token on the best path to each code point, int64 [C].
        firsts: Whether a path begins with each code point, bool [C].
    """
    size = tf.size(chosen, out_type=tf.int64)
    starts = tf.where(firsts)[:, 0]
    ends = tf.concat([starts, size[None]], 0)[1:] - 1  # none where there is no code point
    array = tf.TensorArray(
        tf.int64, size=1, dynamic_size=True, element_shape=[None], infer_shape=False
    ).write(0, tf.zeros([0], tf.int64))

    def step(
        number: tf.Tensor, ends: tf.Tensor, starts: tf.Tensor, array: tf.TensorArray
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.TensorArray]:
        begins = ends - tf.gather(chosen, ends) + 1
        array = array.write(number, begins)
        more = tf.where(begins > starts)[:, 0]
        return number + 1, tf.gather(begins, more) - 1, tf.gather(starts, more), array

    *_, array = tf.while_loop(
        lambda number, ends, *_: tf.size(ends) > 0, step, (1, ends, starts, array)
    )
    begins = tf.sort(array.concat())
    return begins, tf.concat([begins[1:], size[None]], 0) - begins
