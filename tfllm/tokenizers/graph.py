"""The WordPiece tokenizer as TensorFlow ops, equal to the Python one id by id and offset by offset.

Only core ops and tf-text kernels that TF Serving links; no Python, no XLA, no table resource. All
tables are constants of the module, held once however many functions use them.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import tensorflow as tf

from tfllm.errors import SettingError, did_you_mean
from tfllm.tokenizers import rows
from tfllm.tokenizers.codepoints import (
    CODE_POINTS,
    SURROGATES,
    Table,
    identity_table,
    reference_table,
)
from tfllm.tokenizers.words import REPLACEMENT, WordSplitter

if TYPE_CHECKING:
    from tfllm.tokenizers.wordpiece import WordPiece

PROFILES = ("reference", "mediapipe")
NO_LIMIT_BYTES = 2**30
NEVER_IN_UTF8 = b"\xff"
PRIVATE_USE = range(0xE000, 0xF900)

# MediaPipe's word splitting (tasks/cc/text/tokenizers/bert_tokenizer.h): RE2's \s, which is ASCII
# only, drops out; punctuation and ideographs are words of their own.
MEDIAPIPE_SPACE = r"\s"
MEDIAPIPE_ALONE = (
    r"[!-/:-@\[-`{-~]|\p{P}|[\x{4E00}-\x{9FFF}]|[\x{3400}-\x{4DBF}]|[\x{20000}-\x{2A6DF}]"
    r"|[\x{2A700}-\x{2B73F}]|[\x{2B740}-\x{2B81F}]|[\x{2B820}-\x{2CEAF}]|[\x{F900}-\x{FAFF}]"
    r"|[\x{2F800}-\x{2FA1F}]"
)
MEDIAPIPE_MAX_WORD_BYTES = 100


class GraphTokenizer(tf.Module):
    """Texts to token ids as TensorFlow ops; make it with `Tokenizer.graph()`.

    Text is UTF-8; each invalid byte sequence counts as one U+FFFD, as in Python's
    errors="replace". Its methods work eagerly and inside `tf.function`, and save with the module
    that holds them. Profile "mediapipe" splits as MediaPipe's C++ does and knows no special tokens
    written in the text.
    """

    def __init__(self, tokenizer: WordPiece, profile: str = "reference"):
        import tensorflow_text

        super().__init__()
        if profile not in PROFILES:
            raise SettingError(
                f"There is no tokenizer profile '{profile}'. {did_you_mean(profile, PROFILES)}"
            )
        mediapipe = profile == "mediapipe"
        model = tokenizer.vocabulary[: tokenizer.model_size]
        self.profile = profile
        self.tokenizer = tokenizer  # the vocabulary, for whoever turns ids back into tokens
        self.ids = rows.Ids(tokenizer.form, tokenizer.pad_id)
        self._unknown_id = tokenizer.unknown_id
        self._max_word_characters = None if mediapipe else tokenizer.max_word_characters
        self._unknown_word = _unknown_word(model)
        literal = () if mediapipe else tokenizer.literal_tokens
        self._literal = {token: tokenizer.token_id(token) for token in literal}
        # Longest first: the alternation takes the first that matches.
        self._pattern = "|".join(map(re.escape, sorted(literal, key=len, reverse=True)))
        self._split = WordSplitter(
            _mediapipe_table() if mediapipe else reference_table(tokenizer.normalization)
        )
        with tf.init_scope():
            self._wordpiece = tensorflow_text.FastWordpieceTokenizer(
                model,
                max_bytes_per_word=MEDIAPIPE_MAX_WORD_BYTES if mediapipe else NO_LIMIT_BYTES,
                unknown_token=tokenizer.specials.unknown,
                no_pretokenization=True,
                token_out_type=tf.int32,
            )
        # One function, so that a saved model holds these ops once however many signatures use them.
        self._tokenize = tf.function(
            self._tokenize_with_offsets,
            input_signature=[tf.TensorSpec([None], tf.string)],
            autograph=False,
        )

    def __call__(
        self, texts: tf.Tensor, pairs: tf.Tensor | None = None, *, max_length: int
    ) -> dict[str, tf.Tensor]:
        """UTF-8 string [B] to rows of model input, as `pack` describes them."""
        second = None if pairs is None else self.tokenize(pairs)
        return self.pack(self.tokenize(texts), second, max_length=max_length)

    def tokenize(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """UTF-8 string [B] to ids int32 [B, None], no special tokens around them."""
        return self.tokenize_with_offsets(texts)[0]

    def tokenize_with_offsets(
        self, texts: tf.Tensor
    ) -> tuple[tf.RaggedTensor, tf.RaggedTensor, tf.RaggedTensor]:
        """UTF-8 string [B] to ids, starts, ends: ragged int32 [B, None].

        Starts and ends count code points of the text as it was given.
        """
        return self._tokenize(tf.convert_to_tensor(texts, tf.string))

    def _tokenize_with_offsets(self, texts: tf.Tensor) -> tuple[tf.RaggedTensor, ...]:
        pieces, text_splits = self._pieces(texts)
        literal_ids, literal_lengths = self._literal_pieces(pieces)
        is_literal = literal_ids >= 0
        tokens = self._tokens(tf.where(is_literal, "", pieces) if self._literal else pieces)
        if self._literal:
            tokens = tf.cond(
                tf.reduce_any(is_literal),
                lambda: _with_literals(tokens, literal_ids, literal_lengths, text_splits),
                lambda: tokens,
            )
        splits = tf.gather(tokens.splits, text_splits)
        ids, starts, ends = (
            tf.RaggedTensor.from_row_splits(values, splits, validate=False)
            for values in (tokens.ids, tokens.starts, tokens.ends)
        )
        return ids, starts, ends

    def pack(
        self, first: tf.RaggedTensor, second: tf.RaggedTensor | None = None, *, max_length: int
    ) -> dict[str, tf.Tensor]:
        """Ids to "token_ids", "token_types", "mask": int32 [B, T], T the longest row of the batch.

        No row passes `max_length`, special tokens included; pairs are cut longest-first.
        """
        return rows.pack(first, second, max_length, self.ids)

    def windows(
        self, questions: tf.Tensor, contexts: tf.Tensor, *, max_length: int, stride: int
    ) -> dict[str, tf.Tensor]:
        """UTF-8 strings [B] to R rows whose windows over the context overlap by `stride` tokens.

        int32 [R, T]: "token_ids", "token_types", "mask", "starts", "ends" (code points of the
        context, -1 outside of it); int32 [R]: "example", the index of each row's example.
        """
        context, starts, ends = self.tokenize_with_offsets(contexts)
        question = self.tokenize(questions)
        return rows.windows(question, context, starts, ends, max_length, stride, self.ids)

    def _pieces(self, texts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Texts [B] cut at the literal tokens in them: pieces [P] and int64 [B + 1] splits.

        Without any literal token the pieces are the texts. tf-text's regex_split would do it in one
        op, but it ends a text at its first NUL.
        """
        whole = texts, tf.range(tf.size(texts, out_type=tf.int64) + 1)
        if not self._literal:
            return whole

        def cut() -> tuple[tf.Tensor, tf.Tensor]:
            valid = tf.strings.unicode_transcode(
                texts, "UTF-8", "UTF-8", replacement_char=REPLACEMENT
            )
            fenced = tf.strings.regex_replace(
                valid,
                f"({self._pattern})",
                NEVER_IN_UTF8 + rb"\1" + NEVER_IN_UTF8,
            )
            pieces = tf.strings.split(fenced, NEVER_IN_UTF8)
            return pieces.flat_values, pieces.row_splits

        # \C is any byte: a dot would stop at invalid UTF-8.
        found = tf.strings.regex_full_match(texts, rf"\C*(?:{self._pattern})\C*")
        return tf.cond(tf.reduce_any(found), cut, lambda: whole)

    def _literal_pieces(self, pieces: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """For pieces [P] that are a literal token its id, else -1; and its length (int64)."""
        ids = tf.fill(tf.shape(pieces), -1)
        lengths = tf.zeros_like(ids, tf.int64)
        for token, number in self._literal.items():
            found = pieces == token
            ids = tf.where(found, number, ids)
            lengths = tf.where(found, tf.constant(len(token), tf.int64), lengths)
        return ids, lengths

    def _tokens(self, pieces: tf.Tensor) -> _Tokens:
        """UTF-8 string [P] to tokens, literal ones not looked for."""
        words = self._split(pieces)
        strings = words.strings
        if self._max_word_characters is not None:
            size = words.code_point_splits[1:] - words.code_point_splits[:-1]
            too_long = size > self._max_word_characters
            strings = tf.cond(
                tf.reduce_any(too_long),
                lambda: tf.where(too_long, self._unknown_word, strings),
                lambda: strings,
            )
        ids, starts, ends = self._wordpiece.tokenize_with_offsets(strings)
        word = _rows_of(ids.row_splits, tf.size(ids.flat_values))  # [M]
        first, last = self._code_points(words, word, ids.flat_values, starts, ends)
        splits = tf.gather(ids.row_splits, words.splits)
        lengths = words.text_starts[1:] - words.text_starts[:-1] - 1  # without the space put after
        piece = _rows_of(splits, tf.size(word))
        begin = tf.gather(words.text_starts, piece)
        first = tf.gather(words.origins, first) - begin
        last = tf.gather(words.origins, last) - begin
        return _Tokens(
            ids.flat_values,
            tf.cast(first, tf.int32),
            tf.cast(last + 1, tf.int32),
            splits,
            lengths,
        )

    def _code_points(self, words, word, ids, starts, ends) -> tuple[tf.Tensor, tf.Tensor]:
        """Tokens' byte ranges within their words to their first and last code points, int64 [M]."""
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


class _Tokens(NamedTuple):
    """The M tokens of P pieces of text."""

    ids: tf.Tensor
    """int32 [M]"""
    starts: tf.Tensor
    """int32 [M]: code points of the piece, or of the text once the pieces are joined"""
    ends: tf.Tensor
    splits: tf.Tensor
    """int64 [P + 1]: the tokens of each piece"""
    lengths: tf.Tensor
    """int64 [P]: code points of each piece"""


def _with_literals(
    tokens: _Tokens, literal_ids: tf.Tensor, literal_lengths: tf.Tensor, text_splits: tf.Tensor
) -> _Tokens:
    """The tokens with the literal ones put between, offsets counted from each text's start."""
    is_literal = literal_ids >= 0
    count = tf.concat([[0], tf.cumsum(tf.cast(is_literal, tf.int64))], 0)  # [P + 1]
    splits = tokens.splits + count
    piece = _rows_of(tokens.splits, tf.size(tokens.ids))
    literal = tf.where(is_literal)[:, 0]
    places = [
        tf.range(tf.size(piece, out_type=tf.int64)) + tf.gather(count, piece),
        tf.gather(splits, literal),
    ]
    lengths = tf.where(is_literal, literal_lengths, tokens.lengths)
    ends = tf.concat([[0], tf.cumsum(lengths)], 0)  # [P + 1], code points of the whole batch
    text = _rows_of(text_splits, tf.size(lengths))
    shift = tf.cast(ends[:-1] - tf.gather(tf.gather(ends, text_splits), text), tf.int32)  # [P]
    of_token, of_literal = tf.gather(shift, piece), tf.gather(shift, literal)
    literal_size = tf.cast(tf.gather(literal_lengths, literal), tf.int32)

    def merged(own: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
        return tf.dynamic_stitch([tf.cast(place, tf.int32) for place in places], [own, others])

    return _Tokens(
        merged(tokens.ids, tf.gather(literal_ids, literal)),
        merged(tokens.starts + of_token, of_literal),
        merged(tokens.ends + of_token, of_literal + literal_size),
        splits,
        lengths,
    )


def _rows_of(splits: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """int64 [size]: each value's row. `value_rowids` would need memory of rows x longest row."""
    return tf.searchsorted(
        splits[1:], tf.range(tf.cast(size, tf.int64)), side="right", out_type=tf.int64
    )


def _unknown_word(vocabulary: list[str]) -> str:
    """A word that no vocabulary piece begins: it stands for words that are too long."""
    used = {character for token in vocabulary for character in token}
    return next(chr(point) for point in PRIVATE_USE if chr(point) not in used)


@functools.cache
def _mediapipe_table() -> Table:
    """RE2's own answers, for every code point."""
    points = [point for point in range(CODE_POINTS) if point not in SURROGATES]
    with tf.init_scope():
        characters = tf.strings.unicode_encode(tf.constant(points)[:, None], "UTF-8")
        space = tf.strings.regex_full_match(characters, MEDIAPIPE_SPACE).numpy()
        alone = tf.strings.regex_full_match(characters, MEDIAPIPE_ALONE).numpy()
    table = np.array(points)
    return identity_table(table[space], table[alone], lower_ascii=True)
