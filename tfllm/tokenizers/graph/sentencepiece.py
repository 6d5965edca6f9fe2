"""SentencePiece as TensorFlow ops: tf-text's kernel, which is the same C++ as the Python package.

Its `FastSentencepieceTokenizer` is not used: on a BPE model it gives wrong ids without a word.
"""

from __future__ import annotations

from typing import Protocol

import tensorflow as tf

from tfllm.errors import SettingError
from tfllm.tokenizers import sentencepiece_proto as proto
from tfllm.tokenizers.graph.added_tokens import (
    REPLACEMENT,
    MatchesAddedTokens,
    Pieces,
    Tokens,
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
    def file_name(self) -> str: ...
    @property
    def prefix(self) -> str:
        """When a space is put before a part of a text (`SentencePiece.prefix`)."""
        ...

    def kernel_model(self) -> bytes:
        """The ModelProto that the parts of a text are given to, serialized."""
        ...


class SentencePieceGraph(TokenizerGraph):
    """A SentencePiece model as TensorFlow ops; make it with `Tokenizer.graph()`."""

    def __init__(self, tokenizer: SentencePieceModel, profile: str = "reference"):
        check_profile(profile)
        super().__init__(tokenizer, added_token_patterns(tokenizer))
        self._model = SentencePieceKernel(tokenizer.kernel_model())
        model = proto.parse(tokenizer.kernel_model(), tokenizer.file_name)
        self._prefix = tokenizer.prefix
        spec, special = model.normalizer_spec, tokenizer.all_special_ids
        self._strips = spec.add_dummy_prefix or spec.remove_extra_whitespaces
        self._strips_all = spec.remove_extra_whitespaces
        self._fence = next(
            (number, len(entry.piece.encode()))
            for number, entry in enumerate(model.pieces)
            if entry.type in (proto.NORMAL, proto.USER_DEFINED) and proto.SPACE not in entry.piece
        )
        with tf.init_scope():
            self._kept = tf.constant([i not in special for i in range(tokenizer.vocabulary_size)])
            self._spaced = tf.constant([entry.piece[:1] == proto.SPACE for entry in model.pieces])
            self._blank = tf.constant([entry.piece == proto.SPACE for entry in model.pieces])

    def detokenize(self, ids: tf.RaggedTensor) -> tf.Tensor:
        """Ids int32 [B, None] to UTF-8 string [B]; special tokens and unknown ids left out.

        Spaces at the start are counted here, behind a piece put before: the kernel is of an older
        version than the package, in which every leading piece lost its space.
        """
        ids = filter_ids(ids, self._kept)
        number, size_bytes = self._fence
        fences = tf.fill(tf.stack([ids.nrows(), 1]), number)
        texts = self._model.detokenize(tf.concat([fences, ids], 1))
        begin = tf.cast(self._leading(ids), tf.int32) + size_bytes
        texts = tf.strings.substr(texts, begin, tf.maximum(tf.strings.length(texts) - begin, 0))
        return tf.strings.regex_replace(texts, "^ ", "") if self._prefix in PREFIXED else texts

    def _leading(self, ids: tf.RaggedTensor) -> tf.Tensor:
        """int64 [B]: the spaces that a text loses at its start."""
        counts = ids.row_lengths()
        if not self._strips:
            return tf.zeros_like(counts)
        place = tf.zeros_like(counts)  # of the piece that loses the last one
        if self._strips_all:
            solid = tf.where(~tf.gather(self._blank, ids.flat_values))[:, 0]
            solid = tf.concat([solid, tf.size(ids.flat_values, out_type=tf.int64)[None]], 0)
            starts = ids.row_starts()
            found = tf.gather(solid, tf.searchsorted(solid, starts, out_type=tf.int64))
            place = tf.minimum(found - starts, counts)
        padded = tf.concat([ids.flat_values, [0]], 0)
        piece = tf.gather(padded, ids.row_starts() + tf.minimum(place, counts))
        loses = tf.gather(self._spaced, piece) & (place < counts)
        return place + tf.cast(loses, tf.int64)

    def _tokens(self, pieces: Pieces, offsets: bool) -> Tokens:
        if self._prefix not in PREFIXED:
            tokens = tokenize_pieces(self._model, pieces.strings, offsets)
            if self._prefix == "never" and offsets:
                tokens = tokens._replace(ends=tf.maximum(tokens.ends, tokens.starts + 1))
            return tokens
        spaced = needs_space(pieces, self._prefix == "first")
        return spaced_tokens(self._model, pieces, spaced, offsets)


def needs_space(pieces: Pieces, first_alone: bool) -> tf.Tensor:
    """bool [P]: pieces that begin without a space; with `first_alone` only those that begin a
    text."""
    strings = pieces.strings
    spaced = (strings != "") & ~tf.strings.regex_full_match(strings, rf"[ {proto.SPACE}]\C*")
    if first_alone:
        place = tf.range(tf.size(strings, out_type=tf.int64))
        text = row_ids(pieces.text_splits, tf.size(strings))
        spaced &= place == tf.gather(pieces.text_splits, text)
    return spaced


def spaced_tokens(
    model: SentencePieceKernel, pieces: Pieces, spaced: tf.Tensor, offsets: bool
) -> Tokens:
    """Tokens of pieces with a space before those that `spaced` bool [P] names; offsets do not
    count it."""
    texts = tf.where(spaced, tf.strings.join([" ", pieces.strings]), pieces.strings)
    tokens = tokenize_pieces(model, texts, offsets)
    if not offsets:
        return tokens
    counts = tokens.splits[1:] - tokens.splits[:-1]
    shift = tf.cast(tf.repeat(spaced, counts), tf.int32)
    starts = tf.maximum(tokens.starts - shift, 0)
    lengths = tokens.lengths - tf.cast(spaced, tf.int64)
    # A token without a character of its own (a space put before, a byte) has the next one's.
    ends = tf.maximum(tokens.ends - shift, starts + 1)
    return Tokens(tokens.ids, starts, ends, tokens.splits, lengths)


def check_profile(profile: str) -> None:
    """Raises SettingError for any profile but the reference."""
    if profile != "reference":
        raise SettingError(f"There is no tokenizer profile '{profile}' for SentencePiece.")


def tokenize_pieces(model: SentencePieceKernel, pieces: tf.Tensor, offsets: bool) -> Tokens:
    """UTF-8 string [P] to tokens, literal ones not looked for."""
    valid = tf.strings.unicode_transcode(pieces, "UTF-8", "UTF-8", replacement_char=REPLACEMENT)
    if not offsets:
        ids = model.tokenize(valid)
        return tokens_without_offsets(ids.flat_values, ids.row_splits)
    ids, starts, ends = model.tokenize_with_offsets(valid)
    decoded = tf.raw_ops.UnicodeDecode(
        input=valid, input_encoding="UTF-8", errors="replace", replacement_char=REPLACEMENT
    )
    points, text_starts = decoded.char_values, decoded.row_splits
    sizes = tf.add_n([tf.cast(points >= limit, tf.int64) for limit in (0, 0x80, 0x800, 0x10000)])
    byte_ends = tf.cumsum(sizes)  # [C]: where each code point of the batch ends
    byte_starts = tf.cumsum(tf.cast(tf.strings.length(valid), tf.int64), exclusive=True)  # [P]
    piece = row_ids(ids.row_splits, tf.size(ids.flat_values))  # [M]
    base, begin = tf.gather(byte_starts, piece), tf.gather(text_starts[:-1], piece)

    def code_points(places: tf.RaggedTensor) -> tf.Tensor:
        place = base + tf.cast(places.flat_values, tf.int64)
        count = tf.searchsorted(byte_ends, place, side="right", out_type=tf.int64)
        return tf.cast(count - begin, tf.int32)

    lengths = text_starts[1:] - text_starts[:-1]
    return Tokens(ids.flat_values, code_points(starts), code_points(ends), ids.row_splits, lengths)
