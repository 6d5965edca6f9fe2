"""A vocabulary of characters as TensorFlow ops: one table look-up for each code point."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfllm.errors import SettingError
from tfllm.tokenizers.graph.added_tokens import REPLACEMENT, SegmentTokens, TextSegments
from tfllm.tokenizers.graph.base import TokenizerGraph, filter_ids, join_utf8
from tfllm.tokenizers.graph.bytepair import json_added_tokens
from tfllm.tokenizers.graph.codepoint_tables import CODE_POINTS, PAGE_BITS, PAGE_SIZE
from tfllm.tokenizers.hf_tokenizers import HFTokenizer

NO_TOKEN = -1  # of a code point that the vocabulary lacks, where it has no unknown token


class CharactersGraph(TokenizerGraph):
    """One token for each code point, created by `Tokenizer.graph()`.

    Raises:
        SettingError: The profile is unknown.
    """

    def __init__(self, tokenizer: HFTokenizer, profile: str = "reference"):
        if profile != "reference":
            raise SettingError(f"There is no tokenizer profile '{profile}' for characters.")
        patterns, _ = json_added_tokens(tokenizer.parse_definition(), False)
        super().__init__(tokenizer, patterns)
        unknown = tokenizer.unk_token_id
        ids = np.full(CODE_POINTS, NO_TOKEN if unknown is None else unknown, np.int32)
        for token, token_id in tokenizer.parse_definition()["model"]["vocab"].items():
            if len(token) == 1:
                ids[ord(token)] = token_id
        pages, page_of = np.unique(ids.reshape(-1, PAGE_SIZE), axis=0, return_inverse=True)
        with tf.init_scope():
            self._page_starts = tf.constant((page_of.reshape(-1) * PAGE_SIZE).astype(np.int32))
            self._pages = tf.constant(pages.reshape(-1))
            self._strings = tf.constant(tokenizer.vocabulary)
            special = tokenizer.all_special_ids
            self._kept = tf.constant([i not in special for i in range(tokenizer.vocabulary_size)])

    def detokenize(self, ids: tf.RaggedTensor) -> tf.Tensor:
        """Decode ids int32 [B, None] to UTF-8 string [B]; skip special tokens and unknown ids."""
        kept = filter_ids(ids, self._kept)
        return join_utf8(kept.with_flat_values(tf.gather(self._strings, kept.flat_values)))

    def _tokenize_segments(self, segments: TextSegments, offsets: bool) -> SegmentTokens:
        decoded = tf.raw_ops.UnicodeDecode(
            input=segments.strings,
            input_encoding="UTF-8",
            errors="replace",
            replacement_char=REPLACEMENT,
        )
        points, splits = decoded.char_values, decoded.row_splits
        start = tf.gather(self._page_starts, tf.bitwise.right_shift(points, PAGE_BITS))
        ids = tf.gather(self._pages, start + tf.bitwise.bitwise_and(points, PAGE_SIZE - 1))
        lengths = splits[1:] - splits[:-1]
        starts = tf.ragged.range(lengths).flat_values
        kept = tf.where(ids != NO_TOKEN)[:, 0]
        ids, starts = tf.gather(ids, kept), tf.cast(tf.gather(starts, kept), tf.int32)
        splits = tf.searchsorted(kept, splits, out_type=tf.int64)
        return SegmentTokens(ids, starts, starts + 1, splits, lengths)
