"""SentencePiece as TensorFlow ops: tf-text's kernel, which is the same C++ as the Python package.

Its `FastSentencepieceTokenizer` is not used: on a BPE model it silently gives wrong ids.
"""

from __future__ import annotations

from typing import Protocol

import tensorflow as tf

from tfllm.errors import SettingError
from tfllm.tokenizers import sentencepiece_proto as proto
from tfllm.tokenizers.graph.added_tokens import (
    REPLACEMENT,
    MatchesAddedTokens,
    SegmentTokens,
    TextSegments,
    added_token_patterns,
    row_ids,
    tokens_without_offsets,
)
from tfllm.tokenizers.graph.base import TokenizerGraph, filter_ids
from tfllm.tokenizers.graph.sentencepiece_kernel import SentencePieceKernel

PREFIXED = ("first", "always")


class SentencePieceModel(MatchesAddedTokens, Protocol):
    """What the graph reads of a SentencePiece tokenizer."""

    @property
    def file_name(self) -> str:
        """The name of the model's file, for messages."""
        ...

    @property
    def prefix(self) -> str:
        """When a space is put before a segment of a text (`SentencePiece.prefix`)."""
        ...

    def kernel_model(self) -> bytes:
        """Return the serialized ModelProto that tokenizes the segments of a text."""
        ...


class SentencePieceGraph(TokenizerGraph):
    """A SentencePiece model as TensorFlow ops, created by `Tokenizer.graph()`.

    Raises:
        SettingError: The profile is unknown.
        TokenizerError: An added token is matched in a way that the graph does not implement.
    """

    def __init__(self, tokenizer: SentencePieceModel, profile: str = "reference"):
        check_profile(profile)
        super().__init__(tokenizer, added_token_patterns(tokenizer))
        self._kernel = SentencePieceKernel(tokenizer.kernel_model())
        model = proto.parse(tokenizer.kernel_model(), tokenizer.file_name)
        self._prefix = tokenizer.prefix
        spec, special = model.normalizer_spec, tokenizer.all_special_ids
        self._strips_one_space = spec.add_dummy_prefix or spec.remove_extra_whitespaces
        self._strips_all_spaces = spec.remove_extra_whitespaces
        # (id, bytes) of a piece without a space.
        self._solid_piece = next(
            (token_id, len(entry.piece.encode()))
            for token_id, entry in enumerate(model.pieces)
            if entry.type in (proto.NORMAL, proto.USER_DEFINED) and proto.SPACE not in entry.piece
        )
        with tf.init_scope():
            self._kept = tf.constant([i not in special for i in range(tokenizer.vocabulary_size)])
            self._begins_with_space = tf.constant(
                [entry.piece[:1] == proto.SPACE for entry in model.pieces]
            )
            self._is_space = tf.constant([entry.piece == proto.SPACE for entry in model.pieces])

    def detokenize(self, ids: tf.RaggedTensor) -> tf.Tensor:
        """Decode ids int32 [B, None] to UTF-8 string [B]; skip special tokens and unknown ids.

        The spaces at the start are counted here, and decoded behind another piece: the kernel is
        older than the package, and drops the space of every leading piece.
        """
        ids = filter_ids(ids, self._kept)
        token_id, size_bytes = self._solid_piece
        first = tf.fill(tf.stack([ids.nrows(), 1]), token_id)
        texts = self._kernel.detokenize(tf.concat([first, ids], 1))
        begin = tf.cast(self._count_leading_spaces(ids), tf.int32) + size_bytes
        texts = tf.strings.substr(texts, begin, tf.maximum(tf.strings.length(texts) - begin, 0))
        return tf.strings.regex_replace(texts, "^ ", "") if self._prefix in PREFIXED else texts

    def _count_leading_spaces(self, ids: tf.RaggedTensor) -> tf.Tensor:
        """int64 [B]: the spaces that are stripped at the start of each text."""
        counts = ids.row_lengths()
        if not self._strips_one_space:
            return tf.zeros_like(counts)
        position = tf.zeros_like(counts)  # of the piece that loses the last space
        if self._strips_all_spaces:
            solid = tf.where(~tf.gather(self._is_space, ids.flat_values))[:, 0]
            solid = tf.concat([solid, tf.size(ids.flat_values, out_type=tf.int64)[None]], 0)
            starts = ids.row_starts()
            first_solid = tf.gather(solid, tf.searchsorted(solid, starts, out_type=tf.int64))
            position = tf.minimum(first_solid - starts, counts)
        padded = tf.concat([ids.flat_values, [0]], 0)
        piece = tf.gather(padded, ids.row_starts() + tf.minimum(position, counts))
        loses_space = tf.gather(self._begins_with_space, piece) & (position < counts)
        return position + tf.cast(loses_space, tf.int64)

    def _tokenize_segments(self, segments: TextSegments, offsets: bool) -> SegmentTokens:
        if self._prefix not in PREFIXED:
            tokens = tokenize_segments(self._kernel, segments.strings, offsets)
            if self._prefix == "never" and offsets:
                tokens = tokens._replace(ends=tf.maximum(tokens.ends, tokens.starts + 1))
            return tokens
        spaced = needs_space(segments, self._prefix == "first")
        return tokenize_with_spaces(self._kernel, segments, spaced, offsets)


def needs_space(segments: TextSegments, first_only: bool) -> tf.Tensor:
    """Return which segments begin without a space: bool [P].

    Args:
        segments: The segments.
        first_only: Whether only the first segment of each text counts.
    """
    strings = segments.strings
    spaced = (strings != "") & ~tf.strings.regex_full_match(strings, rf"[ {proto.SPACE}]\C*")
    if first_only:
        index = tf.range(tf.size(strings, out_type=tf.int64))
        text = row_ids(segments.text_splits, tf.size(strings))
        spaced &= index == tf.gather(segments.text_splits, text)
    return spaced


def tokenize_with_spaces(
    kernel: SentencePieceKernel, segments: TextSegments, spaced: tf.Tensor, offsets: bool
) -> SegmentTokens:
    """Tokenize segments with a space put before some, which offsets do not count.

    Args:
        kernel: The model.
        segments: The segments.
        spaced: Which segments get a space, bool [P].
        offsets: Whether starts, ends and lengths are needed.
    """
    texts = tf.where(spaced, tf.strings.join([" ", segments.strings]), segments.strings)
    tokens = tokenize_segments(kernel, texts, offsets)
    if not offsets:
        return tokens
    counts = tokens.splits[1:] - tokens.splits[:-1]
    shift = tf.cast(tf.repeat(spaced, counts), tf.int32)
    starts = tf.maximum(tokens.starts - shift, 0)
    lengths = tokens.lengths - tf.cast(spaced, tf.int64)
    # A token without a character of its own (the added space, a byte) has that of the next one.
    ends = tf.maximum(tokens.ends - shift, starts + 1)
    return SegmentTokens(tokens.ids, starts, ends, tokens.splits, lengths)


def check_profile(profile: str) -> None:
    """Check the name of a profile.

    Raises:
        SettingError: It is not "reference".
    """
    if profile != "reference":
        raise SettingError(f"There is no tokenizer profile '{profile}' for SentencePiece.")


def tokenize_segments(
    kernel: SentencePieceKernel, strings: tf.Tensor, offsets: bool
) -> SegmentTokens:
    """Tokenize segments, UTF-8 string [P], without matching added tokens.

    Args:
        kernel: The model.
        strings: The segments.
        offsets: Whether starts, ends and lengths are needed.
    """
    valid = tf.strings.unicode_transcode(strings, "UTF-8", "UTF-8", replacement_char=REPLACEMENT)
    if not offsets:
        ids = kernel.tokenize(valid)
        return tokens_without_offsets(ids.flat_values, ids.row_splits)
    ids, starts, ends = kernel.tokenize_with_offsets(valid)
    decoded = tf.raw_ops.UnicodeDecode(
        input=valid, input_encoding="UTF-8", errors="replace", replacement_char=REPLACEMENT
    )
    points, text_starts = decoded.char_values, decoded.row_splits
    sizes = tf.add_n([tf.cast(points >= limit, tf.int64) for limit in (0, 0x80, 0x800, 0x10000)])
    byte_ends = tf.cumsum(sizes)  # [C]: where each code point of the batch ends
    byte_starts = tf.cumsum(tf.cast(tf.strings.length(valid), tf.int64), exclusive=True)  # [P]
    segment = row_ids(ids.row_splits, tf.size(ids.flat_values))  # [M]
    base, begin = tf.gather(byte_starts, segment), tf.gather(text_starts[:-1], segment)

    def to_code_points(offsets_bytes: tf.RaggedTensor) -> tf.Tensor:
        byte = base + tf.cast(offsets_bytes.flat_values, tf.int64)
        count = tf.searchsorted(byte_ends, byte, side="right", out_type=tf.int64)
        return tf.cast(count - begin, tf.int32)

    lengths = text_starts[1:] - text_starts[:-1]
    return SegmentTokens(
        ids.flat_values, to_code_points(starts), to_code_points(ends), ids.row_splits, lengths
    )
