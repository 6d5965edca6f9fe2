"""Byte-level BPE as TensorFlow ops, equal to the Python tokenizer id by id.

Words are cut by `splits`; each distinct word of the batch is merged once, by tf-text's
SentencePiece kernel: a BPE model whose pieces are the vocabulary's own and whose scores are the
merges' places, over the printable characters that stand for bytes.

Why that is exact: SentencePiece joins any two neighbours whose concatenation is a piece, best score
first; the reference joins only the pairs of its list, the first of the list first. Let a stretch of
a word be about to become the piece z. No join has crossed its borders so far, so inside it
everything went as it goes for z alone. So where z alone becomes [z], by its last merge (a, b), the
stretch is a, b now, in both; and where z alone does not become [z] it never comes about at all, and
is left out of the pieces. `_pieces` asks the reference for every z.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    Pieces,
    Tokens,
    insert_added_tokens,
    refuse_split_specials,
    row_ids,
    tokens_without_offsets,
)
from tfllm.tokenizers.graph.base import TokenizerGraph, filter_ids, join_utf8
from tfllm.tokenizers.graph.byte_level_pre_tokenizer import EDGE, WordCutter, parse_style
from tfllm.tokenizers.graph.nfc import Composer
from tfllm.tokenizers.graph.sentencepiece_kernel import SentencePieceKernel
from tfllm.tokenizers.hf_tokenizers import HFTokenizer

NEVER = "\U0010fffd"  # name of the piece for characters that are none of the alphabet
NEVER_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}
DIRECT = 0xF0000  # private characters: words that are looked up whole


class BytePairGraph(TokenizerGraph):
    """Byte-level BPE as TensorFlow ops; make it with `Tokenizer.graph()`."""

    def __init__(self, tokenizer: HFTokenizer, profile: str = "reference"):
        if profile != "reference":
            raise SettingError(f"There is no tokenizer profile '{profile}' for byte-level BPE.")
        refuse_split_specials(tokenizer.splits_special_tokens)
        described = tokenizer.parse_definition()
        self._style = parse_style(described)
        raw, normalized = json_added_tokens(described, self._style.nfc)
        super().__init__(tokenizer, raw)
        self._cut_normalized = AddedTokenSplitter(
            [one._replace(content=normalized_text(tokenizer, one.content)) for one in normalized]
        )
        self._compose = Composer() if self._style.nfc else None
        model = described["model"]
        if model.get("unk_token") or model.get("dropout") or model.get("byte_fallback"):
            raise TokenizerError("tokenizer.json: byte-level BPE has no unknown token or dropout.")
        pieces, direct = _pieces(tokenizer, model)
        self._cutter = WordCutter(self._style)
        token_bytes = byte_level.token_bytes(tokenizer.vocabulary)
        with tf.init_scope():
            self._merger = SentencePieceKernel(
                proto.build(pieces, proto.BPE, dummy_prefix=False).SerializeToString()
            )
            self._alphabet = tf.constant([ord(c) for c in bytes_to_unicode()])  # byte -> character
            self._bytes = tf.constant(token_bytes)
            self._sizes = tf.constant([len(value) for value in token_bytes])
            special = tokenizer.all_special_ids
            self._kept = tf.constant([i not in special for i in range(len(token_bytes))])
            self._trims: Any = _trims(tokenizer, described)
        self.trims_offsets = self._trims is not None
        if self._style.nfc and self.trims_offsets and self._style.prefix_space:
            raise TokenizerError(
                "tokenizer.json: NFC together with 'trim_offsets' and 'add_prefix_space' is not "
                "known in the graph. The tokenizer works in Python."
            )
        self.prefix_space = self._style.prefix_space
        with tf.init_scope():
            self._whole = _lookup(direct) if direct else None

    def detokenize(self, ids: tf.RaggedTensor) -> tf.Tensor:
        """Ids int32 [B, None] to UTF-8 string [B]; special tokens and unknown ids left out."""
        kept = filter_ids(ids, self._kept)
        return join_utf8(kept.with_flat_values(tf.gather(self._bytes, kept.flat_values)))

    def _tokens(self, pieces: Pieces, offsets: bool) -> Tokens:
        if self._compose is None:
            return self._merged(pieces, offsets)
        given = normalized_string.decode(pieces.strings)
        texts = self._compose(given)
        cut = self._cut_normalized(normalized_string.encode(texts.points, texts.splits))
        tokens = self._merged(cut, offsets)
        tokens = insert_added_tokens(tokens, cut) if self._cut_normalized else tokens
        splits = tf.gather(tokens.splits, cut.text_splits)
        if not offsets:
            return tokens_without_offsets(tokens.ids, splits)
        starts, ends = normalized_string.original_offsets(texts, splits, tokens.starts, tokens.ends)
        if self._trims is not None:  # added tokens too, by their places in the text as it was given
            starts, ends = self._trimmed(tokens.ids, starts, ends)
        return Tokens(tokens.ids, starts, ends, splits, given.splits[1:] - given.splits[:-1])

    def _merged(self, cut: Pieces, offsets: bool) -> Tokens:
        """Pieces of text to tokens, literal ones not looked for."""
        pieces = cut.strings
        spaced = tf.zeros(tf.shape(pieces), tf.bool)
        if self._style.prefix_space:
            spaced = (pieces != "") & (tf.strings.substr(pieces, 0, 1) != " ")
            pieces = tf.where(spaced, tf.strings.join([" ", pieces]), pieces)
        decoded = tf.raw_ops.UnicodeDecode(
            input=tf.strings.join([pieces, " "]),
            input_encoding="UTF-8",
            errors="replace",
            replacement_char=REPLACEMENT,
        )
        edges = decoded.row_splits[1:] - 1
        kinds, begins = self._cutter(decoded.char_values, edges)
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
        # The piece of a code point comes from the splits without the edges.
        count = tf.range(tf.size(pieces, out_type=tf.int64) + 1)
        text_starts = decoded.row_splits - count  # [P + 1]
        splits = tf.gather(ids.row_splits, tf.searchsorted(firsts, text_starts, out_type=tf.int64))
        if not offsets:
            return tokens_without_offsets(ids.flat_values, splits)
        piece = row_ids(splits, tf.size(ids.flat_values))
        begin = tf.gather(text_starts[:-1] + tf.cast(spaced, tf.int64), piece)
        first, last = self._code_points(points, ids.flat_values)
        least = tf.gather(tf.cast(spaced, tf.int64), piece)  # a space put before has the next place
        first, last = tf.maximum(first - begin, 0), tf.maximum(last - begin, least)
        if self._trims is not None and self._compose is None:
            place = tf.range(tf.size(pieces, out_type=tf.int64))
            text = row_ids(cut.text_splits, tf.size(pieces))
            begins_text = place == tf.gather(cut.text_splits, text)  # [P]
            first, last = self._trimmed(ids.flat_values, first, last, tf.gather(begins_text, piece))
        starts, ends = tf.cast(first, tf.int32), tf.cast(last, tf.int32)
        lengths = text_starts[1:] - text_starts[:-1] - tf.cast(spaced, tf.int64)
        return Tokens(ids.flat_values, starts, ends, splits, lengths)

    def _merge(self, words: tf.Tensor) -> tf.RaggedTensor:
        """Distinct UTF-8 words [U] to ids, ragged int32 [U, None]."""
        flat = tf.io.decode_raw(tf.strings.reduce_join(words), tf.uint8)
        sizes = tf.cast(tf.strings.length(words), tf.int64)
        spelled = tf.raw_ops.UnicodeEncode(
            input_values=tf.gather(self._alphabet, tf.cast(flat, tf.int32)),
            input_splits=tf.concat([[0], tf.cumsum(sizes)], 0),
            errors="replace",
            output_encoding="UTF-8",
            replacement_char=REPLACEMENT,
        )
        if self._whole is not None:  # words that are looked up whole
            private = self._whole.lookup(spelled)
            spelled = tf.where(private == "", spelled, private)
        return self._merger.tokenize(spelled)

    def _code_points(self, points: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """int64 [M]: tokens' first and behind their last code points, of the whole batch."""
        sizes = tf.add_n(
            [tf.cast(points >= limit, tf.int64) for limit in (0, 0x80, 0x800, 0x10000)]
        )
        byte_ends = tf.cumsum(sizes)  # [K]
        stop = tf.cumsum(tf.cast(tf.gather(self._sizes, ids), tf.int64))  # [M], bytes
        start = tf.concat([[0], stop[:-1]], 0)
        first = tf.searchsorted(byte_ends, start, side="right", out_type=tf.int64)
        return first, tf.searchsorted(byte_ends, stop, out_type=tf.int64) + 1

    def _trimmed(self, ids, first, last, in_first_piece=None) -> tuple[tf.Tensor, tf.Tensor]:
        """Offsets without the white space at tokens' ends, but for a space put before the text."""
        lead, tail = (tf.cast(tf.gather(spaces, ids), first.dtype) for spaces in self._trims)
        if self._style.prefix_space:
            lead = tf.where((first == 0) & (lead == 1) & in_first_piece, tf.zeros_like(lead), lead)
        first = tf.minimum(first + lead, last)
        return first, tf.maximum(last - tail, first)


def _lookup(words: list[str]) -> tf.lookup.StaticHashTable:
    """Word -> the private character that stands for it in the SentencePiece model, else ""."""
    characters = [chr(DIRECT + place) for place in range(len(words))]
    return tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(tf.constant(words), tf.constant(characters)), ""
    )


def normalized_text(tokenizer: HFTokenizer, text: str) -> str:
    """A text as the normalizer of the tokenizer's file leaves it: so added tokens are found."""
    from tokenizers import Tokenizer

    normalizer = Tokenizer.from_str(tokenizer.definition).normalizer
    return normalizer.normalize_str(text) if normalizer else text


def json_added_tokens(
    described: dict[str, Any], normalizes: bool
) -> tuple[list[AddedTokenPattern], list[AddedTokenPattern]]:
    """The added tokens: those found before normalisation and those found after it."""
    raw: list[AddedTokenPattern] = []
    normalized: list[AddedTokenPattern] = []
    for entry in described.get("added_tokens") or []:
        if entry.get("single_word"):
            raise TokenizerError(
                f"tokenizer.json: the added token '{entry['content']}' has single_word set, which "
                "is not known in the graph. The tokenizer works in Python."
            )
        flags = bool(entry.get("lstrip")), bool(entry.get("rstrip"))
        found = AddedTokenPattern(entry["content"], entry["id"], *flags)
        (normalized if entry.get("normalized") and normalizes else raw).append(found)
    return raw, normalized


def _pieces(
    tokenizer: HFTokenizer, model: dict[str, Any]
) -> tuple[list[tuple[str, float, int]], list[str]]:
    """The SentencePiece model's pieces by id, and the words that are looked up whole."""
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
    places = merge_ranks(model)
    pieces: list[tuple[str, float, int]] = []
    direct: list[str] = []
    alphabet = set(bytes_to_unicode())
    for number, token in enumerate(tokenizer.vocabulary):
        known = vocabulary.get(token) == number
        if known and token in alphabet:
            pieces.append((token, 0.0, proto.NORMAL))
        elif known and token in places:
            pieces.append((token, -1.0 - places[token], proto.NORMAL))
        else:
            piece = f"{NEVER}{number}", 0.0, proto.CONTROL
            if known and model.get("ignore_merges") and set(token) <= alphabet:
                piece = chr(DIRECT + len(direct)), 0.0, proto.NORMAL
                direct.append(token)
            pieces.append(piece)
    pieces.append((NEVER, 0.0, proto.UNKNOWN))
    return pieces, direct


def merge_ranks(model: Mapping[str, Any]) -> dict[str, int]:
    """Tokens that merges make of their own spelling -> the place of the last merge."""
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    ranks: dict[str, list[int]] = {}
    for rank, (first, second) in enumerate(merges):
        ranks.setdefault(first + second, []).append(rank)
    reached = _reached(model["vocab"], merges, list(ranks))
    several = {token for token in reached if len(ranks[token]) > 1}
    rank_of = {pair: rank for rank, pair in enumerate(merges)} if several else {}
    return {
        token: _last_merge(token, rank_of) if token in several else ranks[token][0]
        for token in ranks
        if token in reached
    }


def _reached(vocabulary: dict[str, int], merges: list[Any], tokens: list[str]) -> set[str]:
    """The tokens that the reference makes of their own spelling."""
    from tokenizers import Tokenizer, models

    rust = Tokenizer(models.BPE(vocabulary, merges))
    rows = rust.encode_batch_fast(tokens, add_special_tokens=False)
    return {
        token for token, row in zip(tokens, rows, strict=True) if row.ids == [vocabulary[token]]
    }


def _last_merge(token: str, ranks: dict[Any, int]) -> int:
    """The place of the merge that makes a token of its own spelling, where several could."""
    parts, rank = list(token), 0
    while len(parts) > 1:
        found = [(ranks.get(pair, len(ranks)), place)
                 for place, pair in enumerate(zip(parts, parts[1:], strict=False))]  # fmt: skip
        rank, place = min(found)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return rank


def _trims(tokenizer: HFTokenizer, described: dict[str, Any]) -> tuple[tf.Tensor, tf.Tensor] | None:
    """White space at the ends of each token, int64 [V], where offsets leave it out."""
    processor = described.get("post_processor") or {}
    parts = processor.get("processors") or [processor]
    if not any(part.get("trim_offsets") for part in parts):
        return None
    blank = bytes_to_unicode()[ord(" ")]

    def spaces(token: str) -> int:
        return next((n for n, c in enumerate(token) if c != blank and not c.isspace()), len(token))

    lead = [spaces(token) for token in tokenizer.vocabulary]
    tail = [spaces(token[::-1]) for token in tokenizer.vocabulary]
    return tf.constant(lead, tf.int64), tf.constant(tail, tf.int64)
