"""Special tokens written in a text, found in the graph as Hugging Face finds them.

A text is cut at them, the parts between are tokenised each on its own, and the tokens are put
together again.
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
# Unicode's White_Space, which a token with `lstrip` or `rstrip` takes along.
SPACES = r"[\t-\r \x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000}]*"


class AddedTokenPattern(NamedTuple):
    """A token that is matched as it is written."""

    content: str
    number: int
    """its id"""
    lstrip: bool = False
    """the white space before it belongs to it"""
    rstrip: bool = False

    @property
    def pattern(self) -> str:
        """As a regular expression of RE2."""
        before, after = (SPACES if strip else "" for strip in (self.lstrip, self.rstrip))
        return f"{before}{re.escape(self.content)}{after}"


class MatchesAddedTokens(Tokenizer, Protocol):
    """A tokenizer that matches added tokens itself before it splits a text."""

    @property
    def splits_special_tokens(self) -> bool:
        """Whether special tokens written in a text are ordinary text."""
        ...

    @property
    def matched_tokens(self) -> tuple[AddedToken, ...]:
        """The tokens at which a text is cut."""
        ...


def added_token_patterns(tokenizer: MatchesAddedTokens) -> list[AddedTokenPattern]:
    """The tokens at which a tokenizer cuts a text before normalisation.

    Raises TokenizerError for those that are found otherwise, which the graph does not know.
    """
    refuse_split_specials(tokenizer.splits_special_tokens)
    for token in tokenizer.matched_tokens:
        if token.normalized or token.single_word:
            refuse_added(token.content, "normalized" if token.normalized else "single_word")
    return [
        AddedTokenPattern(token.content, number, token.lstrip, token.rstrip)
        for token in tokenizer.matched_tokens
        if (number := tokenizer.token_id(token.content)) is not None
    ]


def refuse_split_specials(splits: bool) -> None:
    """Raises TokenizerError where special tokens in a text are ordinary text."""
    if splits:
        raise TokenizerError(
            "tokenizer_config.json: 'split_special_tokens' is not known in the graph. The "
            "tokenizer works in Python."
        )


def refuse_added(token: str, flag: str) -> None:
    """Raises TokenizerError: the graph does not find such an added token."""
    raise TokenizerError(
        f"The added token '{token}' has {flag} set, which is not known in the graph. The "
        "tokenizer works in Python; add it as a special token, which is matched as it is written."
    )


class Pieces(NamedTuple):
    """Texts [B] cut at the literal tokens in them."""

    strings: tf.Tensor
    """string [P]; "" at the literal tokens"""
    text_splits: tf.Tensor
    """int64 [B + 1]: the pieces of each text"""
    added_ids: tf.Tensor
    """int32 [P]: the id of a literal token, else -1"""
    added_lengths: tf.Tensor
    """int64 [P]: code points of a literal token, white space that it took included"""
    added_spaces: tf.Tensor
    """int64 [P, 2]: code points of the white space that it took, before and after"""


class Tokens(NamedTuple):
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


def tokens_without_offsets(ids: tf.Tensor, splits: tf.Tensor) -> Tokens:
    """Tokens whose offsets and lengths nobody asks for: zeros."""
    zeros = tf.zeros_like(ids)
    return Tokens(ids, zeros, zeros, splits, tf.zeros_like(splits[1:]))


class AddedTokenSplitter:
    """Cuts texts at literal tokens."""

    def __init__(self, literals: Sequence[AddedTokenPattern]):
        # Longest first: the alternation takes the first that matches.
        self._literals = sorted(literals, key=lambda token: len(token.content), reverse=True)
        self._pattern = "|".join(token.pattern for token in self._literals)

    def __bool__(self) -> bool:
        return bool(self._literals)

    def __call__(self, texts: tf.Tensor) -> Pieces:
        """UTF-8 string [B] to pieces; without any literal token they are the texts.

        tf-text's regex_split would do it in one op, but it ends a text at its first NUL.
        """
        whole = Pieces(
            texts,
            tf.range(tf.size(texts, out_type=tf.int64) + 1),
            tf.fill(tf.shape(texts), -1),
            tf.zeros(tf.shape(texts), tf.int64),
            tf.zeros(tf.stack([tf.size(texts), 2]), tf.int64),
        )
        if not self._literals:
            return whole
        # \C is any byte: a dot would stop at invalid UTF-8.
        found = tf.strings.regex_full_match(texts, rf"\C*(?:{self._pattern})\C*")
        return tf.cond(tf.reduce_any(found), lambda: self._cut(texts), lambda: whole)

    def _cut(self, texts: tf.Tensor) -> Pieces:
        valid = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", replacement_char=REPLACEMENT)
        fence = NEVER_IN_UTF8 + rb"\1" + NEVER_IN_UTF8
        ragged = tf.strings.split(
            tf.strings.regex_replace(valid, f"({self._pattern})", fence), NEVER_IN_UTF8
        )
        pieces, splits = ragged.flat_values, ragged.row_splits
        # Text and literal tokens take turns, text first.
        place = tf.range(tf.size(pieces, out_type=tf.int64))
        inner = place - tf.gather(splits, row_ids(splits, tf.size(pieces)))
        is_literal = inner % 2 == 1
        where = tf.where(is_literal)  # [K, 1]
        own = tf.gather_nd(pieces, where)
        size = tf.size(pieces, out_type=tf.int64)[None]
        lengths = _characters(own)
        spaces = [
            lengths - _characters(tf.strings.regex_replace(own, end, "", replace_global=False))
            for end in (f"^{SPACES}", f"{SPACES}$")
        ]
        return Pieces(
            tf.where(is_literal, "", pieces),
            splits,
            tf.tensor_scatter_nd_update(tf.fill(size, -1), where, self._ids_of(own)),
            tf.scatter_nd(where, lengths, size),
            tf.scatter_nd(where, tf.stack(spaces, 1), tf.concat([size, [2]], 0)),
        )

    def _ids_of(self, found: tf.Tensor) -> tf.Tensor:
        """int32 [K]: the ids of texts that each are a literal token."""
        contents = found
        for token in self._literals:
            if token.lstrip or token.rstrip:
                contents = tf.strings.regex_replace(
                    contents, f"^{SPACES}({re.escape(token.content)}){SPACES}$", r"\1"
                )
        same = contents[:, None] == tf.constant([token.content for token in self._literals])[None]
        numbers = tf.constant([token.number for token in self._literals])
        return tf.gather(numbers, tf.argmax(tf.cast(same, tf.int32), 1))


def _characters(strings: tf.Tensor) -> tf.Tensor:
    """int64: the code points of each."""
    return tf.cast(tf.strings.length(strings, unit="UTF8_CHAR"), tf.int64)


def insert_added_tokens(
    tokens: Tokens, pieces: Pieces, trimmed: bool = False, prefix_space: bool = False
) -> Tokens:
    """The tokens with the literal ones put between, offsets counted from each text's start.

    `trimmed`: the white space that a literal token took is not in its offsets; with `prefix_space`
    a single one that begins the text is, as if it had been put there.
    """
    added_ids, text_splits = pieces.added_ids, pieces.text_splits
    is_literal = added_ids >= 0
    count = tf.concat([[0], tf.cumsum(tf.cast(is_literal, tf.int64))], 0)  # [P + 1]
    splits = tokens.splits + count
    piece = row_ids(tokens.splits, tf.size(tokens.ids))
    literal = tf.where(is_literal)[:, 0]
    places = [
        tf.range(tf.size(piece, out_type=tf.int64)) + tf.gather(count, piece),
        tf.gather(splits, literal),
    ]
    lengths = tf.where(is_literal, pieces.added_lengths, tokens.lengths)
    ends = tf.concat([[0], tf.cumsum(lengths)], 0)  # [P + 1], code points of the whole batch
    text = row_ids(text_splits, tf.size(lengths))
    shift = tf.cast(ends[:-1] - tf.gather(tf.gather(ends, text_splits), text), tf.int32)  # [P]
    of_token, of_literal = tf.gather(shift, piece), tf.gather(shift, literal)
    literal_end = of_literal + tf.cast(tf.gather(pieces.added_lengths, literal), tf.int32)
    if trimmed:
        spaces = tf.cast(tf.gather(pieces.added_spaces, literal), tf.int32)
        lead = spaces[:, 0]
        if prefix_space:
            lead = tf.where((of_literal == 0) & (lead == 1), 0, lead)
        of_literal, literal_end = of_literal + lead, literal_end - spaces[:, 1]

    def merged(own: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
        return tf.dynamic_stitch([tf.cast(place, tf.int32) for place in places], [own, others])

    return Tokens(
        merged(tokens.ids, tf.gather(added_ids, literal)),
        merged(tokens.starts + of_token, of_literal),
        merged(tokens.ends + of_token, literal_end),
        splits,
        lengths,
    )


def row_ids(splits: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """int64 [size]: each value's row. `value_rowids` would need memory of rows x longest row."""
    return tf.searchsorted(
        splits[1:], tf.range(tf.cast(size, tf.int64)), side="right", out_type=tf.int64
    )
