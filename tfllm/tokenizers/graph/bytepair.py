"""Byte-level BPE as TensorFlow ops, equal to the Python tokenizer id by id.

`byte_level_pre_tokenizer` splits texts into words. Each distinct word of the batch is merged once,
by tf-text's SentencePiece kernel: a BPE model whose pieces are the tokens of the vocabulary and
whose scores are the ranks of the merges, over the printable characters that stand for bytes.

Why that is exact: SentencePiece merges any two neighbours whose concatenation is a piece, best
score first; the reference merges only the pairs of its list, lowest rank first. Let a span of a
word be about to become the piece z. No merge has crossed its borders so far, so inside the span
all merges were those of z alone. So where z alone becomes [z], by its last merge (a, b), the span
is a, b now, in both; and where z alone does not become [z], it is never produced, and is left out
of the pieces. `_pieces` asks the reference for every z.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfllm.errors import SettingError, TokenizerError
from tfllm.tokenizers import byte_level
from tfllm.tokenizers import sentencepiece_proto as proto
from tfllm.tokenizers.byte_level import bytes_to_unicode
from tfllm.tokenizers.graph import normalized_string
from tfllm.tokenizers.graph.added_tokens import (
    REPLACEMENT,
    AddedTokenPattern,
    AddedTokenSplitter,
    SegmentTokens,
    TextSegments,
    check_split_special_tokens,
    insert_added_tokens,
    row_ids,
    tokens_without_offsets,
)
from tfllm.tokenizers.graph.base import TokenizerGraph, filter_ids, join_utf8
from tfllm.tokenizers.graph.byte_level_pre_tokenizer import EDGE, ByteLevelWordSplitter, parse_style
from tfllm.tokenizers.graph.nfc import Composer
from tfllm.tokenizers.graph.sentencepiece_kernel import SentencePieceKernel
from tfllm.tokenizers.hf_tokenizers import HFTokenizer

NEVER = "\U0010fffd"  # begins the names of pieces that no text contains
NEVER_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}
WHOLE_WORDS = 0xF0000  # private characters that stand for words which are looked up in a table


class BytePairGraph(TokenizerGraph):
    """Byte-level BPE as TensorFlow ops, created by `Tokenizer.graph()`.

    Raises:
        SettingError: The profile is unknown.
        TokenizerError: A part of the tokenizer.json is not implemented in the graph.
    """

    def __init__(self, tokenizer: HFTokenizer, profile: str = "reference"):
        if profile != "reference":
            raise SettingError(f"There is no tokenizer profile '{profile}' for byte-level BPE.")
        check_split_special_tokens(tokenizer.splits_special_tokens)
        definition = tokenizer.parse_definition()
        self._style = parse_style(definition)
        raw, normalized = json_added_tokens(definition, self._style.nfc)
        super().__init__(tokenizer, raw)
        self._split_at_normalized_tokens = AddedTokenSplitter(
            [
                token._replace(content=normalize_text(tokenizer, token.content))
                for token in normalized
            ]
        )
        self._compose = Composer() if self._style.nfc else None
        model = definition["model"]
        if model.get("unk_token") or model.get("dropout") or model.get("byte_fallback"):
            raise TokenizerError("tokenizer.json: byte-level BPE has no unknown token or dropout.")
        pieces, whole_words = _pieces(tokenizer, model)
        self._split_words = ByteLevelWordSplitter(self._style)
        token_bytes = byte_level.token_bytes(tokenizer.vocabulary)
        with tf.init_scope():
            self._kernel = SentencePieceKernel(
                proto.build(pieces, proto.BPE, dummy_prefix=False).SerializeToString()
            )
            self._alphabet = tf.constant([ord(c) for c in bytes_to_unicode()])  # byte -> character
            self._bytes = tf.constant(token_bytes)
            self._sizes = tf.constant([len(value) for value in token_bytes])
            special = tokenizer.all_special_ids
            self._kept = tf.constant([i not in special for i in range(len(token_bytes))])
            self._trims = _white_space_of_tokens(tokenizer, definition)
        self.trims_offsets = self._trims is not None
        if self._style.nfc and self.trims_offsets and self._style.prefix_space:
            raise TokenizerError(
                "tokenizer.json: NFC together with 'trim_offsets' and 'add_prefix_space' is not "
                "known in the graph. The tokenizer works in Python."
            )
        self.prefix_space = self._style.prefix_space
        with tf.init_scope():
            self._whole_words = _whole_word_table(whole_words) if whole_words else None

    def detokenize(self, ids: tf.RaggedTensor) -> tf.Tensor:
        """Decode ids int32 [B, None] to UTF-8 string [B]; skip special tokens and unknown ids."""
        kept = filter_ids(ids, self._kept)
        return join_utf8(kept.with_flat_values(tf.gather(self._bytes, kept.flat_values)))

    def _tokenize_segments(self, segments: TextSegments, offsets: bool) -> SegmentTokens:
        if self._compose is None:
            return self._tokenize_normalized(segments, offsets)
        original = normalized_string.decode(segments.strings)
        texts = self._compose(original)
        parts = self._split_at_normalized_tokens(
            normalized_string.encode(texts.points, texts.splits)
        )
        tokens = self._tokenize_normalized(parts, offsets)
        if self._split_at_normalized_tokens:
            tokens = insert_added_tokens(tokens, parts)
        splits = tf.gather(tokens.splits, parts.text_splits)
        if not offsets:
            return tokens_without_offsets(tokens.ids, splits)
        starts, ends = normalized_string.original_offsets(texts, splits, tokens.starts, tokens.ends)
        if self._trims is not None:  # of added tokens too, by their offsets in the original text
            starts, ends = self._trim(tokens.ids, starts, ends)
        lengths = original.splits[1:] - original.splits[:-1]
        return SegmentTokens(tokens.ids, starts, ends, splits, lengths)

    def _tokenize_normalized(self, segments: TextSegments, offsets: bool) -> SegmentTokens:
        """Tokenize segments of normalized text that are no added tokens."""
        strings = segments.strings
        spaced = tf.zeros(tf.shape(strings), tf.bool)
        if self._style.prefix_space:
            spaced = (strings != "") & (tf.strings.substr(strings, 0, 1) != " ")
            strings = tf.where(spaced, tf.strings.join([" ", strings]), strings)
        decoded = tf.raw_ops.UnicodeDecode(
            input=tf.strings.join([strings, " "]),
            input_encoding="UTF-8",
            errors="replace",
            replacement_char=REPLACEMENT,
        )
        edges = decoded.row_splits[1:] - 1
        kinds, begins = self._split_words(decoded.char_values, edges)
        kept = tf.where(kinds != EDGE)[:, 0]
        points, begins = tf.gather(decoded.char_values, kept), tf.gather(begins, kept)
        firsts = tf.where(begins)[:, 0]
        size = tf.size(points, out_type=tf.int64)
        words = tf.raw_ops.UnicodeEncode(
            input_values=points,
            input_splits=tf.concat([firsts, [size]], 0),
            errors="replace",
            output_encoding="UTF-8",
            replacement_char=REPLACEMENT,
        )
        distinct, index = tf.unique(words)
        ids = tf.gather(self._merge(distinct), index)
        # The segment of a code point comes from the splits without the edges.
        count = tf.range(tf.size(strings, out_type=tf.int64) + 1)
        text_starts = decoded.row_splits - count  # [P + 1]
        splits = tf.gather(ids.row_splits, tf.searchsorted(firsts, text_starts, out_type=tf.int64))
        if not offsets:
            return tokens_without_offsets(ids.flat_values, splits)
        segment = row_ids(splits, tf.size(ids.flat_values))
        begin = tf.gather(text_starts[:-1] + tf.cast(spaced, tf.int64), segment)
        first, last = self._code_points(points, ids.flat_values)
        least = tf.gather(tf.cast(spaced, tf.int64), segment)  # an added space has the next offset
        first, last = tf.maximum(first - begin, 0), tf.maximum(last - begin, least)
        if self._trims is not None and self._compose is None:
            index = tf.range(tf.size(strings, out_type=tf.int64))
            text = row_ids(segments.text_splits, tf.size(strings))
            begins_text = index == tf.gather(segments.text_splits, text)  # [P]
            in_first = tf.gather(begins_text, segment)
            first, last = self._trim(ids.flat_values, first, last, in_first)
        starts, ends = tf.cast(first, tf.int32), tf.cast(last, tf.int32)
        lengths = text_starts[1:] - text_starts[:-1] - tf.cast(spaced, tf.int64)
        return SegmentTokens(ids.flat_values, starts, ends, splits, lengths)

    def _merge(self, words: tf.Tensor) -> tf.RaggedTensor:
        """Tokenize distinct UTF-8 words [U] to ids, ragged int32 [U, None]."""
        flat = tf.io.decode_raw(tf.strings.reduce_join(words), tf.uint8)
        sizes = tf.cast(tf.strings.length(words), tf.int64)
        spelled = tf.raw_ops.UnicodeEncode(
            input_values=tf.gather(self._alphabet, tf.cast(flat, tf.int32)),
            input_splits=tf.concat([[0], tf.cumsum(sizes)], 0),
            errors="replace",
            output_encoding="UTF-8",
            replacement_char=REPLACEMENT,
        )
        if self._whole_words is not None:
            private = self._whole_words.lookup(spelled)
            spelled = tf.where(private == "", spelled, private)
        return self._kernel.tokenize(spelled)

    def _code_points(self, points: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """int64 [M]: the first code point of each token, and the end of its last one."""
        sizes = tf.add_n(
            [tf.cast(points >= limit, tf.int64) for limit in (0, 0x80, 0x800, 0x10000)]
        )
        byte_ends = tf.cumsum(sizes)  # [K]
        stop = tf.cumsum(tf.cast(tf.gather(self._sizes, ids), tf.int64))  # [M], bytes
        start = tf.concat([[0], stop[:-1]], 0)
        first = tf.searchsorted(byte_ends, start, side="right", out_type=tf.int64)
        return first, tf.searchsorted(byte_ends, stop, out_type=tf.int64) + 1

    def _trim(
        self,
        ids: tf.Tensor,
        first: tf.Tensor,
        last: tf.Tensor,
        in_first_segment: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Offsets without the white space at tokens' ends, except a space put before the text."""
        assert self._trims is not None
        leading, trailing = (tf.cast(tf.gather(count, ids), first.dtype) for count in self._trims)
        if self._style.prefix_space:
            is_prefix = (first == 0) & (leading == 1) & in_first_segment
            leading = tf.where(is_prefix, tf.zeros_like(leading), leading)
        first = tf.minimum(first + leading, last)
        return first, tf.maximum(last - trailing, first)


def _whole_word_table(words: list[str]) -> tf.lookup.StaticHashTable:
    """Word -> the private character that stands for it in the SentencePiece model, else ""."""
    characters = [chr(WHOLE_WORDS + index) for index in range(len(words))]
    return tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(tf.constant(words), tf.constant(characters)), ""
    )


def normalize_text(tokenizer: HFTokenizer, text: str) -> str:
    """Normalize a text as the tokenizer's file says, as it does for normalized added tokens.

    Args:
        tokenizer: The tokenizer.
        text: The text.
    """
    from tokenizers import Tokenizer

    normalizer = Tokenizer.from_str(tokenizer.definition).normalizer
    return normalizer.normalize_str(text) if normalizer else text


def json_added_tokens(
    definition: Mapping[str, Any], normalizes: bool
) -> tuple[list[AddedTokenPattern], list[AddedTokenPattern]]:
    """Return the added tokens of a tokenizer.json.

    Args:
        definition: The parsed file.
        normalizes: Whether the file has a normalizer.

    Returns:
        The tokens that are matched before normalization, and those that are matched after it.

    Raises:
        TokenizerError: A token has `single_word` set, which the graph does not implement.
    """
    raw: list[AddedTokenPattern] = []
    normalized: list[AddedTokenPattern] = []
    for entry in definition.get("added_tokens") or []:
        if entry.get("single_word"):
            raise TokenizerError(
                f"tokenizer.json: the added token '{entry['content']}' has single_word set, which "
                "is not known in the graph. The tokenizer works in Python."
            )
        flags = bool(entry.get("lstrip")), bool(entry.get("rstrip"))
        pattern = AddedTokenPattern(entry["content"], entry["id"], *flags)
        (normalized if entry.get("normalized") and normalizes else raw).append(pattern)
    return raw, normalized


def _pieces(
    tokenizer: HFTokenizer, model: Mapping[str, Any]
) -> tuple[list[tuple[str, float, int]], list[str]]:
    """The SentencePiece model's pieces by id, and the words that are looked up in a table."""
    vocabulary = model["vocab"]
    lacking = [
        byte
        for byte, character in enumerate(bytes_to_unicode())
        if character not in vocabulary and byte not in NEVER_IN_UTF8
    ]
    if lacking:
        raise TokenizerError(
            f"tokenizer.json: the vocabulary lacks {len(lacking)} of the bytes of UTF-8, so that "
            "some texts cannot be spelled. Learn it with the whole byte alphabet."
        )
    ranks = merge_ranks(model)
    pieces: list[tuple[str, float, int]] = []
    whole_words: list[str] = []
    alphabet = set(bytes_to_unicode())
    for token_id, token in enumerate(tokenizer.vocabulary):
        in_model = vocabulary.get(token) == token_id
        if in_model and token in alphabet:
            pieces.append((token, 0.0, proto.NORMAL))
        elif in_model and token in ranks:
            pieces.append((token, -1.0 - ranks[token], proto.NORMAL))
        else:
            piece = f"{NEVER}{token_id}", 0.0, proto.CONTROL
            if in_model and model.get("ignore_merges") and set(token) <= alphabet:
                piece = chr(WHOLE_WORDS + len(whole_words)), 0.0, proto.NORMAL
                whole_words.append(token)
            pieces.append(piece)
    pieces.append((NEVER, 0.0, proto.UNKNOWN))
    return pieces, whole_words


def merge_ranks(model: Mapping[str, Any]) -> dict[str, int]:
    """Return the rank of the last merge of each token that merges produce from its own text.

    Args:
        model: The value of "model" in a tokenizer.json, of type BPE.
    """
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    merges = [(first, second) for first, second in pairs]
    ranks: dict[str, list[int]] = {}
    for rank, (first, second) in enumerate(merges):
        ranks.setdefault(first + second, []).append(rank)
    producible = _producible_tokens(model["vocab"], merges, list(ranks))
    several = {token for token in producible if len(ranks[token]) > 1}
    rank_of = {pair: rank for rank, pair in enumerate(merges)} if several else {}
    return {
        token: _last_merge(token, rank_of) if token in several else ranks[token][0]
        for token in ranks
        if token in producible
    }


def _producible_tokens(
    vocabulary: dict[str, int], merges: Sequence[tuple[str, str]], tokens: list[str]
) -> set[str]:
    """The tokens that the reference produces from their own text."""
    from tokenizers import Tokenizer, models

    reference = Tokenizer(models.BPE(vocabulary, merges))
    rows = reference.encode_batch_fast(tokens, add_special_tokens=False)
    return {
        token for token, row in zip(tokens, rows, strict=True) if row.ids == [vocabulary[token]]
    }


def _last_merge(token: str, ranks: Mapping[tuple[str, str], int]) -> int:
    """The rank of the merge that produces a token from its own text, where several could."""
    parts, rank = list(token), 0
    while len(parts) > 1:
        candidates = [
            (ranks.get(pair, len(ranks)), index)
            for index, pair in enumerate(zip(parts, parts[1:], strict=False))
        ]
        rank, index = min(candidates)
        parts[index : index + 2] = [parts[index] + parts[index + 1]]
    return rank


def _white_space_of_tokens(
    tokenizer: HFTokenizer, definition: Mapping[str, Any]
) -> tuple[tf.Tensor, tf.Tensor] | None:
    """White space at the ends of each token, int64 [V] each; None where offsets include it."""
    processor = definition.get("post_processor") or {}
    parts = processor.get("processors") or [processor]
    if not any(part.get("trim_offsets") for part in parts):
        return None
    blank = bytes_to_unicode()[ord(" ")]

    def count(token: str) -> int:
        return next((n for n, c in enumerate(token) if c != blank and not c.isspace()), len(token))

    leading = [count(token) for token in tokenizer.vocabulary]
    trailing = [count(token[::-1]) for token in tokenizer.vocabulary]
    return tf.constant(leading, tf.int64), tf.constant(trailing, tf.int64)
