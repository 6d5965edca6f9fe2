"""WordPiece as TensorFlow ops, equal to the Python tokenizer id by id and offset by offset.

It uses only core ops and tf-text kernels that TF Serving links: no Python, no XLA, no table
resource. All tables are constants of the module, held once however many functions use them.
"""

from __future__ import annotations

import functools
from typing import Protocol

import numpy as np
import tensorflow as tf

from tfllm.errors import SettingError, did_you_mean
from tfllm.tokenizers.bert_normalization import BertNormalization
from tfllm.tokenizers.graph.added_tokens import (
    MatchesAddedTokens,
    SegmentTokens,
    TextSegments,
    added_token_patterns,
    row_ids,
    tokens_without_offsets,
)
from tfllm.tokenizers.graph.base import TokenizerGraph
from tfllm.tokenizers.graph.bert_pre_tokenizer import BertWordSplitter, Words
from tfllm.tokenizers.graph.codepoint_tables import (
    CODE_POINTS,
    SURROGATES,
    Table,
    identity_table,
    reference_table,
)

PROFILES = ("reference", "mediapipe")
NO_LIMIT_BYTES = 2**30
PRIVATE_USE = range(0xE000, 0xF900)

# MediaPipe's word splitting (tasks/cc/text/tokenizers/bert_tokenizer.h): RE2's \s, which is ASCII
# only, is removed; punctuation and ideographs are words of their own.
MEDIAPIPE_SPACE = r"\s"
MEDIAPIPE_ALONE = (
    r"[!-/:-@\[-`{-~]|\p{P}|[\x{4E00}-\x{9FFF}]|[\x{3400}-\x{4DBF}]|[\x{20000}-\x{2A6DF}]"
    r"|[\x{2A700}-\x{2B73F}]|[\x{2B740}-\x{2B81F}]|[\x{2B820}-\x{2CEAF}]|[\x{F900}-\x{FAFF}]"
    r"|[\x{2F800}-\x{2FA1F}]"
)
MEDIAPIPE_MAX_WORD_BYTES = 100


class BertSpecialTokens(Protocol):
    """The special tokens of a BERT vocabulary."""

    @property
    def unk_token(self) -> str:
        """The unknown token."""
        ...


class WordPieceVocabulary(MatchesAddedTokens, Protocol):
    """What the graph reads of a WordPiece tokenizer."""

    @property
    def model_size(self) -> int:
        """How many tokens, the first ones, are matched inside words."""
        ...

    @property
    def max_word_characters(self) -> int:
        """Characters of a word at most; a longer one becomes the unknown token."""
        ...

    @property
    def normalization(self) -> BertNormalization:
        """The settings of the normalizer."""
        ...

    @property
    def special_tokens(self) -> BertSpecialTokens:
        """The special tokens by role."""
        ...


class WordPieceGraph(TokenizerGraph):
    """BERT's tokenizer as TensorFlow ops, created by `Tokenizer.graph()`.

    Args:
        tokenizer: The Python tokenizer.
        profile: "reference", or "mediapipe", which splits as MediaPipe's C++ does and matches no
            special tokens in a text.

    Raises:
        SettingError: The profile is unknown.
        TokenizerError: An added token is matched in a way that the graph does not implement.
    """

    def __init__(self, tokenizer: WordPieceVocabulary, profile: str = "reference"):
        import tensorflow_text

        if profile not in PROFILES:
            raise SettingError(
                f"There is no tokenizer profile '{profile}'. {did_you_mean(profile, PROFILES)}"
            )
        mediapipe = profile == "mediapipe"
        model = tokenizer.vocabulary[: tokenizer.model_size]
        super().__init__(tokenizer, [] if mediapipe else added_token_patterns(tokenizer))
        self.profile = profile
        self._unknown_id = tokenizer.unk_token_id
        self._max_word_characters = None if mediapipe else tokenizer.max_word_characters
        self._unknown_word = _unknown_word(model)
        self._split_words = BertWordSplitter(
            _mediapipe_table() if mediapipe else reference_table(tokenizer.normalization)
        )
        with tf.init_scope():
            self._wordpiece = tensorflow_text.FastWordpieceTokenizer(
                model,
                max_bytes_per_word=MEDIAPIPE_MAX_WORD_BYTES if mediapipe else NO_LIMIT_BYTES,
                unknown_token=tokenizer.special_tokens.unk_token,
                no_pretokenization=True,
                token_out_type=tf.int32,
            )

    def detokenize(self, ids: tf.RaggedTensor) -> tf.Tensor:
        """Raise NotImplementedError: encoders generate no text."""
        raise NotImplementedError("WordPiece loses spaces and case; decode in Python.")

    def _tokenize_segments(self, segments: TextSegments, offsets: bool) -> SegmentTokens:
        words = self._split_words(segments.strings)
        strings = words.strings
        if self._max_word_characters is not None:
            size = words.code_point_splits[1:] - words.code_point_splits[:-1]
            too_long = size > self._max_word_characters
            strings = tf.cond(
                tf.reduce_any(too_long),
                lambda: tf.where(too_long, self._unknown_word, strings),
                lambda: strings,
            )
        if not offsets:
            ids = self._wordpiece.tokenize(strings)
            splits = tf.gather(ids.row_splits, words.splits)
            return tokens_without_offsets(ids.flat_values, splits)
        ids, starts, ends = self._wordpiece.tokenize_with_offsets(strings)
        word = row_ids(ids.row_splits, tf.size(ids.flat_values))  # [M]
        first, last = self._code_points(words, word, ids.flat_values, starts, ends)
        splits = tf.gather(ids.row_splits, words.splits)
        lengths = words.text_starts[1:] - words.text_starts[:-1] - 1  # without the space after it
        segment = row_ids(splits, tf.size(word))
        begin = tf.gather(words.text_starts, segment)
        first = tf.gather(words.origins, first) - begin
        last = tf.gather(words.origins, last) - begin
        return SegmentTokens(
            ids.flat_values,
            tf.cast(first, tf.int32),
            tf.cast(last + 1, tf.int32),
            splits,
            lengths,
        )

    def _code_points(
        self,
        words: Words,
        word: tf.Tensor,
        ids: tf.Tensor,
        starts: tf.RaggedTensor,
        ends: tf.RaggedTensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The first and last code point of each token, int64 [M], from its bytes in its word."""
        sizes = tf.add_n(
            [tf.cast(words.code_points >= limit, tf.int64) for limit in (0, 0x80, 0x800, 0x10000)]
        )
        byte_splits = tf.concat([[0], tf.cumsum(sizes)], 0)  # [K + 1]
        word_bytes = tf.gather(byte_splits, words.code_point_splits)  # [W + 1]
        begin, end = tf.gather(word_bytes, word), tf.gather(word_bytes, word + 1)
        known = ids != self._unknown_id  # an unknown token is its whole word
        stop = tf.where(known, begin + tf.cast(ends.flat_values, tf.int64), end)
        start = tf.where(known, begin + tf.cast(starts.flat_values, tf.int64), begin)
        first = tf.searchsorted(byte_splits, start, out_type=tf.int64)
        last = tf.searchsorted(byte_splits, stop, out_type=tf.int64) - 1
        return first, last


def _unknown_word(vocabulary: list[str]) -> str:
    """A word that no token begins: it replaces words that are too long."""
    used = {character for token in vocabulary for character in token}
    return next(chr(point) for point in PRIVATE_USE if chr(point) not in used)


@functools.cache
def _mediapipe_table() -> Table:
    """The table of MediaPipe's word splitting, by RE2 itself for every code point."""
    points = [point for point in range(CODE_POINTS) if point not in SURROGATES]
    with tf.init_scope():
        characters = tf.strings.unicode_encode(tf.constant(points)[:, None], "UTF-8")
        space = tf.strings.regex_full_match(characters, MEDIAPIPE_SPACE).numpy()
        alone = tf.strings.regex_full_match(characters, MEDIAPIPE_ALONE).numpy()
    table = np.array(points)
    return identity_table(table[space], table[alone], lower_ascii=True)
