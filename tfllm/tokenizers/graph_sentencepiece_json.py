"""SentencePiece vocabularies of a tokenizer.json as TensorFlow ops.

The file is written as the ModelProto that means the same. Hugging Face's own rules for the space
before a text and for bytes in `decode` are done around the kernel.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from tfllm.errors import TokenizerError
from tfllm.tokenizers import proto
from tfllm.tokenizers.graph_base import TextGraph, joined, without
from tfllm.tokenizers.graph_bytepair import NEVER, literals_of, merge_places
from tfllm.tokenizers.graph_sentencepiece import check_profile, needs_space, spaced_tokens
from tfllm.tokenizers.literals import (
    REPLACEMENT,
    Pieces,
    Tokens,
    refuse_added,
    refuse_split_specials,
)
from tfllm.tokenizers.sentencepiece_kernel import SentencePieceKernel
from tfllm.tokenizers.word_pieces import WHITE_SPACE

if TYPE_CHECKING:
    from tfllm.tokenizers.sentencepiece_json import SentencePieceJson

SPACES_PATTERN = " {2,}"
# When a space is put before a text.
NEVER_ADDED, ALWAYS, UNLESS_SPACE, FIRST_UNLESS_SPACE = range(4)


@dataclass(frozen=True)
class Scheme:
    """What stands around the model in a tokenizer.json."""

    prefix: int = NEVER_ADDED
    charsmap: bytes = b""
    collapses: bool = False
    """white space is one space between words and none around a text"""
    by_words: bool = False
    """no token crosses a space"""


class SentencePieceJsonGraph(TextGraph):
    """BPE with byte fallback or a unigram model; make it with `Tokenizer.graph()`.

    Offsets are the kernel's, brought to Hugging Face's rules for spaces and single bytes; where the
    normalisation changes several characters together they may still differ.
    """

    def __init__(self, tokenizer: SentencePieceJson, profile: str = "reference"):
        check_profile(profile)
        described = tokenizer.described()
        self._scheme = scheme_of(described)
        literals, normalized = literals_of(described, bool(described.get("normalizer")))
        for literal in normalized:
            refuse_added(literal.content, "normalized")
        refuse_split_specials(tokenizer.splits_special_tokens)
        super().__init__(tokenizer, literals)
        model = _model(tokenizer, described, self._scheme)
        self._model = SentencePieceKernel(model.SerializeToString())
        special = tokenizer.special_ids
        added = {entry["id"] for entry in described.get("added_tokens") or []}
        strings = [
            (token if number in added else token.replace(proto.SPACE, " ")).encode()
            for number, token in enumerate(tokenizer.vocabulary)
        ]
        is_byte = [False] * len(strings)
        for byte, token in enumerate(
            proto.BYTES if described["model"].get("byte_fallback") else ()
        ):
            number = tokenizer.token_id(token)
            if number is not None:
                strings[number], is_byte[number] = bytes([byte]), True
        self._strips = _decoder_drops_space(described)
        with tf.init_scope():
            self._strings = tf.constant(strings)
            self._is_byte = tf.constant(is_byte)
            self._kept = tf.constant([i not in special for i in range(len(strings))])

    def detokenize(self, ids: tf.RaggedTensor) -> tf.Tensor:
        """Ids int32 [B, None] to UTF-8 string [B]; special tokens and unknown ids left out.

        A run of bytes that is not valid UTF-8 becomes one U+FFFD for each byte, as in Hugging Face.
        """
        ids = without(ids, self._kept)
        values, splits = ids.flat_values, ids.row_splits
        is_byte = tf.gather(self._is_byte, values)
        size = tf.size(values, out_type=tf.int64)
        inner = tf.concat([[False], is_byte[:-1]], 0) & is_byte
        row_starts = tf.gather(splits, tf.where(splits[:-1] < splits[1:])[:, 0])
        inner = tf.tensor_scatter_nd_update(
            inner, row_starts[:, None], tf.zeros_like(row_starts, tf.bool)
        )
        run = tf.cumsum(tf.cast(~inner, tf.int64)) - 1  # [M]: bytes in a row share one number
        count = tf.reduce_sum(tf.cast(~inner, tf.int64))
        runs = tf.strings.unsorted_segment_join(tf.gather(self._strings, values), run, count)
        broken = ~tf.strings.regex_full_match(runs, r"\C*") | (
            tf.strings.unicode_transcode(runs, "UTF-8", "UTF-8") != runs
        )
        runs = tf.where(broken, tf.strings.regex_replace(runs, r"\C", "\ufffd"), runs)
        run_splits = tf.gather(tf.concat([run, count[None]], 0), tf.minimum(splits, size))
        texts = joined(tf.RaggedTensor.from_row_splits(runs, run_splits, validate=False))
        return tf.strings.regex_replace(texts, "^ ", "") if self._strips else texts

    def _tokens(self, pieces: Pieces, offsets: bool) -> Tokens:
        spaced = self._spaced(pieces)
        tokens = spaced_tokens(self._model, pieces, spaced, offsets)
        if not offsets or not self._scheme.collapses:
            return tokens
        counts = tokens.splits[1:] - tokens.splits[:-1]
        starts = _after_spaces(pieces.strings, tokens.starts, counts)
        return tokens._replace(starts=starts, ends=tf.maximum(tokens.ends, starts + 1))

    def _spaced(self, pieces: Pieces) -> tf.Tensor:
        """bool [P]: whether a space is put before each piece."""
        scheme, strings = self._scheme, pieces.strings
        if scheme.prefix == NEVER_ADDED or scheme.collapses:  # the kernel does it
            return tf.zeros(tf.shape(strings), tf.bool)
        if scheme.prefix == ALWAYS:
            return strings != ""
        return needs_space(pieces, scheme.prefix == FIRST_UNLESS_SPACE)


def _after_spaces(texts: tf.Tensor, starts: tf.Tensor, counts: tf.Tensor) -> tf.Tensor:
    """Tokens' starts int32 [M] moved behind the white space there; `counts` int64 [P] of tokens."""
    decoded = tf.raw_ops.UnicodeDecode(
        input=texts, input_encoding="UTF-8", errors="replace", replacement_char=REPLACEMENT
    )
    points = decoded.char_values
    inside = [(points >= first) & (points <= last) for first, last in WHITE_SPACE]
    solid = tf.where(~functools.reduce(tf.logical_or, inside))[:, 0]
    solid = tf.concat([solid, decoded.row_splits[-1:]], 0)
    begin = tf.repeat(decoded.row_splits[:-1], counts)
    place = begin + tf.cast(starts, tf.int64)
    moved = tf.gather(solid, tf.searchsorted(solid, place, out_type=tf.int64))
    return tf.cast(moved - begin, tf.int32)


def scheme_of(described: Mapping[str, Any]) -> Scheme:
    """Raises TokenizerError for parts of a tokenizer.json that the graph does not know."""
    scheme = Scheme()
    for part in _flat(described.get("normalizer"), "normalizers"):
        kind, pattern = part.get("type"), part.get("pattern") or {}
        if kind == "Prepend" and part.get("prepend") == proto.SPACE:
            scheme = replace(scheme, prefix=ALWAYS)
        elif kind == "Precompiled":
            scheme = replace(scheme, charsmap=base64.b64decode(part["precompiled_charsmap"]))
        elif kind == "Strip" or kind == "Replace" and pattern.get("Regex") == SPACES_PATTERN:
            scheme = replace(scheme, collapses=True)
        elif not (kind == "Replace" and pattern.get("String") == " "
                  and part.get("content") == proto.SPACE):  # fmt: skip
            _refuse("normalizer", part)
    for part in _flat(described.get("pre_tokenizer"), "pretokenizers"):
        if part.get("type") == "WhitespaceSplit":
            scheme = replace(scheme, collapses=True, by_words=True)
        elif part.get("type") == "Metaspace" and part.get("replacement") == proto.SPACE:
            prefix = _prefix(part)
            scheme = replace(scheme, prefix=prefix, by_words=part.get("split", True))
        else:
            _refuse("pre_tokenizer", part)
    return scheme


def _prefix(part: Mapping[str, Any]) -> int:
    given = part.get("prepend_scheme") or (
        "always" if part.get("add_prefix_space", True) else "never"
    )
    return {"never": NEVER_ADDED, "always": UNLESS_SPACE, "first": FIRST_UNLESS_SPACE}[given]


def _flat(part: Mapping[str, Any] | None, key: str) -> list[Mapping[str, Any]]:
    if part is None:
        return []
    return list(part[key]) if part.get("type") == "Sequence" else [part]


def _refuse(key: str, part: Mapping[str, Any]) -> None:
    raise TokenizerError(
        f"tokenizer.json: in the graph '{key}' {str(part)[:300]} is not known for SentencePiece "
        "vocabularies. The tokenizer works in Python; or use the checkpoint's .model file."
    )


def _decoder_drops_space(described: Mapping[str, Any]) -> bool:
    """Whether `decode` leaves out a space at the start of a text."""
    for part in _flat(described.get("decoder"), "decoders"):
        if part.get("type") == "Metaspace":
            return _prefix(part) != NEVER_ADDED
        if part.get("type") == "Strip" and part.get("start"):
            return True
    return False


def _model(tokenizer: SentencePieceJson, described: Mapping[str, Any], scheme: Scheme) -> Any:
    if scheme.collapses and scheme.prefix not in (ALWAYS, UNLESS_SPACE):
        _refuse("pre_tokenizer", described["pre_tokenizer"])
    model = described["model"]
    unigram = model.get("type") == "Unigram"
    scored = _unigram(model) if unigram else _bpe(model, scheme)
    falls_back = bool(model.get("byte_fallback"))
    pieces = []
    unknown = None
    for number, token in enumerate(tokenizer.vocabulary):
        kind, score = proto.CONTROL, 0.0
        if number == model.get("unk_id") or token == model.get("unk_token"):
            kind, unknown = proto.UNKNOWN, number
        elif number in tokenizer.special_ids:
            pass
        elif falls_back and token in proto.BYTES:
            kind = proto.BYTE
        elif token in scored:
            kind, score = proto.NORMAL, scored[token]
        name = token if kind != proto.CONTROL else f"{NEVER}{number}"
        pieces.append((name, score, kind))
    if unknown is None:
        pieces.append((NEVER, 0.0, proto.UNKNOWN))
    return proto.build(
        pieces,
        proto.UNIGRAM if unigram else proto.BPE,
        byte_fallback=falls_back,
        dummy_prefix=scheme.collapses,
        remove_extra_spaces=scheme.collapses,
        charsmap=scheme.charsmap,
    )


def _unigram(model: Mapping[str, Any]) -> dict[str, float]:
    return {token: score for token, score in model["vocab"] if token}


def _bpe(model: Mapping[str, Any], scheme: Scheme) -> dict[str, float]:
    vocabulary = model["vocab"]
    lacking = not model.get("byte_fallback") or any(b not in vocabulary for b in proto.BYTES)
    if lacking or model.get("ignore_merges") or model.get("dropout"):
        _refuse("model", {key: model.get(key) for key in ("byte_fallback", "ignore_merges")})
    places = merge_places(model)
    crossing = {t for t in places if scheme.by_words and proto.SPACE in t[1:]}
    scored = {token: -1.0 - place for token, place in places.items() if token not in crossing}
    return {**{token: 0.0 for token in vocabulary if len(token) == 1}, **scored}
