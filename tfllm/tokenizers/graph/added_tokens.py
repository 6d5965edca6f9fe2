"""Added tokens written in a text, matched in the graph as Hugging Face matches them.

A text is split at them, the segments between them are tokenized on their own, and the tokens of
all segments are joined.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import tensorflow as tf

from tfllm.errors import TokenizerError
from tfllm.tokenizers.base import Tokenizer
from tfllm.tokenizers.tokenizer_config import AddedToken

NEVER_IN_UTF8 = b"\xff"
REPLACEMENT = 0xFFFD  # stands for each invalid byte sequence, as in Python's errors="replace"
# Unicode's White_Space, which a token with `lstrip` or `rstrip` includes.
SPACES = r"[\t-\r \x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000}]*"


class AddedTokenPattern(NamedTuple):
    """An added token that is matched literally."""

    content: str
    token_id: int
    lstrip: bool = False
    """Whether the white space before it belongs to it."""
    rstrip: bool = False
    """Whether the white space after it belongs to it."""

    @property
    def pattern(self) -> str:
        """The regular expression of RE2 that matches it."""
        before, after = (SPACES if strip else "" for strip in (self.lstrip, self.rstrip))
        return f"{before}{re.escape(self.content)}{after}"


class MatchesAddedTokens(Tokenizer, Protocol):
    """A tokenizer that matches added tokens before it splits a text."""

    @property
    def splits_special_tokens(self) -> bool:
        """Whether special tokens written in a text are ordinary text."""
        ...

    @property
    def matched_tokens(self) -> tuple[AddedToken, ...]:
        """The tokens at which a text is split."""
        ...


def added_token_patterns(tokenizer: MatchesAddedTokens) -> list[AddedTokenPattern]:
    """Return the tokens at which a tokenizer splits a text before normalization.

    Raises:
        TokenizerError: A token is matched in a way that the graph does not implement.
    """
    check_split_special_tokens(tokenizer.splits_special_tokens)
    for token in tokenizer.matched_tokens:
        if token.normalized or token.single_word:
            flag = "normalized" if token.normalized else "single_word"
            raise TokenizerError(
                f"The added token '{token.content}' has {flag} set, which is not known in the "
                "graph. The tokenizer works in Python; add it as a special token, which is matched "
                "as it is written."
            )
    return [
        AddedTokenPattern(token.content, token_id, token.lstrip, token.rstrip)
        for token in tokenizer.matched_tokens
        if (token_id := tokenizer.token_id(token.content)) is not None
    ]


def check_split_special_tokens(splits: bool) -> None:
    """Check that special tokens written in a text are matched.

    Raises:
        TokenizerError: They are ordinary text (`split_special_tokens`).
    """
    if splits:
        raise TokenizerError(
            "tokenizer_config.json: 'split_special_tokens' is not known in the graph. The "
            "tokenizer works in Python."
        )


class TextSegments(NamedTuple):
    """B texts split at the added tokens in them: P segments of text or of one added token."""

    strings: tf.Tensor
    """string [P]; "" for an added token."""
    text_splits: tf.Tensor
    """int64 [B + 1]: the segments of each text."""
    added_ids: tf.Tensor
    """int32 [P]: the id of an added token, else -1."""
    added_lengths: tf.Tensor
    """int64 [P]: code points of an added token with the white space that belongs to it."""
    added_spaces: tf.Tensor
    """int64 [P, 2]: code points of the white space that belongs to it, before and after."""


class SegmentTokens(NamedTuple):
    """The M tokens of P segments."""

    ids: tf.Tensor
    """int32 [M]"""
    starts: tf.Tensor
    """int32 [M]: code points of the segment, or of the text once its segments are joined."""
    ends: tf.Tensor
    """int32 [M]"""
    splits: tf.Tensor
    """int64 [P + 1]: the tokens of each segment."""
    lengths: tf.Tensor
    """int64 [P]: code points of each segment."""


def tokens_without_offsets(ids: tf.Tensor, splits: tf.Tensor) -> SegmentTokens:
    """Return tokens whose offsets and lengths are not needed: zeros."""
    zeros = tf.zeros_like(ids)
    return SegmentTokens(ids, zeros, zeros, splits, tf.zeros_like(splits[1:]))


class AddedTokenSplitter:
    """Splits texts at added tokens; false where there are none."""

    def __init__(self, patterns: Sequence[AddedTokenPattern]):
        # Longest first: the alternation takes the first that matches.
        self._patterns = sorted(patterns, key=lambda token: len(token.content), reverse=True)
        self._expression = "|".join(token.pattern for token in self._patterns)

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def __call__(self, texts: tf.Tensor) -> TextSegments:
        """Split UTF-8 string [B] into segments; without any added token these are the texts.

        tf-text's regex_split would do it in one op, but it ends a text at its first NUL.
        """
        unsplit = TextSegments(
            texts,
            tf.range(tf.size(texts, out_type=tf.int64) + 1),
            tf.fill(tf.shape(texts), -1),
            tf.zeros(tf.shape(texts), tf.int64),
            tf.zeros(tf.stack([tf.size(texts), 2]), tf.int64),
        )
        if not self._patterns:
            return unsplit
        # \C is any byte: a dot would stop at invalid UTF-8.
        matches = tf.strings.regex_full_match(texts, rf"\C*(?:{self._expression})\C*")
        return tf.cond(tf.reduce_any(matches), lambda: self._split(texts), lambda: unsplit)

    def _split(self, texts: tf.Tensor) -> TextSegments:
        valid = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", replacement_char=REPLACEMENT)
        separated = NEVER_IN_UTF8 + rb"\1" + NEVER_IN_UTF8
        ragged = tf.strings.split(
            tf.strings.regex_replace(valid, f"({self._expression})", separated), NEVER_IN_UTF8
        )
        strings, splits = ragged.flat_values, ragged.row_splits
        # Text and added tokens alternate, text first.
        index = tf.range(tf.size(strings, out_type=tf.int64))
        index_in_text = index - tf.gather(splits, row_ids(splits, tf.size(strings)))
        is_added = index_in_text % 2 == 1
        where = tf.where(is_added)  # [K, 1]
        added = tf.gather_nd(strings, where)
        size = tf.size(strings, out_type=tf.int64)[None]
        lengths = _count_code_points(added)
        spaces = [
            lengths
            - _count_code_points(tf.strings.regex_replace(added, end, "", replace_global=False))
            for end in (f"^{SPACES}", f"{SPACES}$")
        ]
        return TextSegments(
            tf.where(is_added, "", strings),
            splits,
            tf.tensor_scatter_nd_update(tf.fill(size, -1), where, self._look_up(added)),
            tf.scatter_nd(where, lengths, size),
            tf.scatter_nd(where, tf.stack(spaces, 1), tf.concat([size, [2]], 0)),
        )

    def _look_up(self, added: tf.Tensor) -> tf.Tensor:
        """int32 [K]: the ids of added tokens, string [K] with the white space that they include."""
        contents = added
        for token in self._patterns:
            if token.lstrip or token.rstrip:
                contents = tf.strings.regex_replace(
                    contents, f"^{SPACES}({re.escape(token.content)}){SPACES}$", r"\1"
                )
        same = contents[:, None] == tf.constant([token.content for token in self._patterns])[None]
        ids = tf.constant([token.token_id for token in self._patterns])
        return tf.gather(ids, tf.argmax(tf.cast(same, tf.int32), 1))


def _count_code_points(strings: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.strings.length(strings, unit="UTF8_CHAR"), tf.int64)


def insert_added_tokens(
    tokens: SegmentTokens,
    segments: TextSegments,
    trim_offsets: bool = False,
    prefix_space: bool = False,
) -> SegmentTokens:
    """Insert the added tokens between the tokens of the other segments.

    Args:
        tokens: The tokens of the segments of text.
        segments: The segments.
        trim_offsets: Whether an added token's offsets leave out the white space that it includes.
        prefix_space: With `trim_offsets`: one space at the start of a text is not left out, as if
            the tokenizer had put it there.

    Returns:
        All tokens, with offsets from the start of each text.
    """
    added_ids, text_splits = segments.added_ids, segments.text_splits
    is_added = added_ids >= 0
    count = tf.concat([[0], tf.cumsum(tf.cast(is_added, tf.int64))], 0)  # [P + 1]
    splits = tokens.splits + count
    segment = row_ids(tokens.splits, tf.size(tokens.ids))  # [M]
    added = tf.where(is_added)[:, 0]  # [K]
    positions = [
        tf.range(tf.size(segment, out_type=tf.int64)) + tf.gather(count, segment),
        tf.gather(splits, added),
    ]
    lengths = tf.where(is_added, segments.added_lengths, tokens.lengths)
    ends = tf.concat([[0], tf.cumsum(lengths)], 0)  # [P + 1], code points of the whole batch
    text = row_ids(text_splits, tf.size(lengths))
    shift = tf.cast(ends[:-1] - tf.gather(tf.gather(ends, text_splits), text), tf.int32)  # [P]
    token_shift, added_start = tf.gather(shift, segment), tf.gather(shift, added)
    added_end = added_start + tf.cast(tf.gather(segments.added_lengths, added), tf.int32)
    if trim_offsets:
        spaces = tf.cast(tf.gather(segments.added_spaces, added), tf.int32)
        leading = spaces[:, 0]
        if prefix_space:
            leading = tf.where((added_start == 0) & (leading == 1), 0, leading)
        added_start, added_end = added_start + leading, added_end - spaces[:, 1]

    def merge(of_text: tf.Tensor, of_added: tf.Tensor) -> tf.Tensor:
        return tf.dynamic_stitch([tf.cast(p, tf.int32) for p in positions], [of_text, of_added])

    return SegmentTokens(
        merge(tokens.ids, tf.gather(added_ids, added)),
        merge(tokens.starts + token_shift, added_start),
        merge(tokens.ends + token_shift, added_end),
        splits,
        lengths,
    )


def row_ids(splits: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Return the row of each value: int64 [size].

    `tf.RaggedTensor.value_rowids` would need memory of rows x longest row.

    Args:
        splits: Where rows begin and end: int64 [rows + 1].
        size: Number of values.
    """
    return tf.searchsorted(
        splits[1:], tf.range(tf.cast(size, tf.int64)), side="right", out_type=tf.int64
    )
