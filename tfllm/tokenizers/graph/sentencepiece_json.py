"""SentencePiece vocabularies of a tokenizer.json as TensorFlow ops.

The normalizers and pre-tokenizers of the file run one after the other, offsets included, as in the
`tokenizers` package; the model tokenizes the words that they produce. A part that is not
implemented here is refused by name.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

import tensorflow as tf

from tfllm.errors import TokenizerError
from tfllm.tokenizers import sentencepiece_proto as proto
from tfllm.tokenizers.graph import normalized_string as ns
from tfllm.tokenizers.graph.added_tokens import (
    AddedTokenSplitter,
    SegmentTokens,
    TextSegments,
    check_split_special_tokens,
    insert_added_tokens,
    row_ids,
    tokens_without_offsets,
)
from tfllm.tokenizers.graph.base import TokenizerGraph, filter_ids, join_utf8
from tfllm.tokenizers.graph.bytepair import NEVER, json_added_tokens, merge_ranks, normalize_text
from tfllm.tokenizers.graph.charsmap import Charsmap, code_point_map
from tfllm.tokenizers.graph.normalized_string import NormalizedStrings
from tfllm.tokenizers.graph.sentencepiece import check_profile, tokenize_segments
from tfllm.tokenizers.graph.sentencepiece_kernel import SentencePieceKernel
from tfllm.tokenizers.graph.unigram import RaggedTokens, UnigramModel
from tfllm.tokenizers.hf_tokenizers import HFTokenizer

RUNS = re.compile(r" \{(\d+),\}")  # matches the regular expression of runs of spaces
BLANK = ord(" ")
NEVER_ADDED, ALWAYS, FIRST = "never", "always", "first"


class SentencePieceJsonGraph(TokenizerGraph):
    """BPE with byte fallback or a unigram model, created by `Tokenizer.graph()`.

    Raises:
        SettingError: The profile is unknown.
        TokenizerError: A part of the file is not implemented in the graph.
    """

    def __init__(self, tokenizer: HFTokenizer, profile: str = "reference"):
        check_profile(profile)
        check_split_special_tokens(tokenizer.splits_special_tokens)
        definition = tokenizer.parse_definition()
        raw, normalized = json_added_tokens(definition, True)
        super().__init__(tokenizer, raw)
        parts = _flatten(definition.get("normalizer"))
        self._normalizers = [
            _normalizer(*pair) for pair in zip(parts, [*parts, {}][1:], strict=True)
        ]
        self._split_at_normalized_tokens = AddedTokenSplitter(
            [
                token._replace(content=normalize_text(tokenizer, token.content))
                for token in normalized
            ]
        )
        self._pre_tokenizers = [_pre_tokenizer(part) for part in _pre_tokenizers(definition)]
        model = definition["model"]
        if model.get("type") == "Unigram":
            self._model: UnigramModel | _BpeModel = UnigramModel(model)
        else:
            _check_spaces(definition)
            self._model = _BpeModel(tokenizer, model)
        self._decoder = _flatten(definition.get("decoder"))
        special = tokenizer.all_special_ids
        added = {entry["id"] for entry in definition.get("added_tokens") or []}
        strings = [
            (token if token_id in added else token.replace(proto.SPACE, " ")).encode()
            for token_id, token in enumerate(tokenizer.vocabulary)
        ]
        is_byte = [False] * len(strings)
        byte_fallback = any(part.get("type") == "ByteFallback" for part in self._decoder)
        for byte, token in enumerate(proto.BYTES if byte_fallback else ()):
            byte_id = tokenizer.token_id(token)
            if byte_id is not None:
                strings[byte_id], is_byte[byte_id] = bytes([byte]), True
        with tf.init_scope():
            self._strings = tf.constant(strings)
            self._strings_without_spaces = tf.constant(
                [token.replace(proto.SPACE, "") for token in tokenizer.vocabulary]
            )
            self._is_byte = tf.constant(is_byte)
            self._kept = tf.constant([i not in special for i in range(len(strings))])

    def detokenize(self, ids: tf.RaggedTensor) -> tf.Tensor:
        """Decode ids int32 [B, None] to UTF-8 string [B]; skip special tokens and unknown ids.

        A run of bytes that is not valid UTF-8 becomes one U+FFFD for each byte, as in Hugging Face.
        """
        strips_one, strips_first_token = self._stripped_spaces()
        ids = filter_ids(ids, self._kept)
        values, splits = ids.flat_values, ids.row_splits
        strings = tf.gather(self._strings, values)
        row_starts = tf.gather(splits, tf.where(splits[:-1] < splits[1:])[:, 0])
        if strips_first_token:
            firsts = tf.gather(self._strings_without_spaces, tf.gather(values, row_starts))
            strings = tf.tensor_scatter_nd_update(strings, row_starts[:, None], firsts)
        is_byte = tf.gather(self._is_byte, values)
        size = tf.size(values, out_type=tf.int64)
        continues = tf.concat([[False], is_byte[:-1]], 0) & is_byte
        continues = tf.tensor_scatter_nd_update(
            continues, row_starts[:, None], tf.zeros_like(row_starts, tf.bool)
        )
        run = tf.cumsum(tf.cast(~continues, tf.int64)) - 1  # [M]: the run of bytes of each token
        count = tf.reduce_sum(tf.cast(~continues, tf.int64))
        runs = tf.strings.unsorted_segment_join(strings, run, count)
        invalid = ~tf.strings.regex_full_match(runs, r"\C*") | (
            tf.strings.unicode_transcode(runs, "UTF-8", "UTF-8") != runs
        )
        runs = tf.where(invalid, tf.strings.regex_replace(runs, r"\C", "\ufffd"), runs)
        run_splits = tf.gather(tf.concat([run, count[None]], 0), tf.minimum(splits, size))
        texts = join_utf8(tf.RaggedTensor.from_row_splits(runs, run_splits, validate=False))
        return tf.strings.regex_replace(texts, "^ ", "") if strips_one else texts

    def _stripped_spaces(self) -> tuple[bool, bool]:
        """Whether `decode` strips one space at a text's start, or all of its first token."""
        kinds = [part.get("type") for part in self._decoder]
        if kinds == ["Metaspace"] and self._decoder[0].get("replacement") == proto.SPACE:
            return False, _prepend_scheme(self._decoder[0]) != NEVER_ADDED
        if kinds[:3] == ["Replace", "ByteFallback", "Fuse"]:
            first, after = self._decoder[0], self._decoder[3:]
            strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
            replaces = (first["pattern"].get("String"), first["content"]) == (
                proto.SPACE,
                " ",
            )
            if replaces and after in ([], [strip]):
                return bool(after), False
        return _refuse("decoder", {"decoders": self._decoder})

    def _tokenize_segments(self, segments: TextSegments, offsets: bool) -> SegmentTokens:
        texts = ns.decode(segments.strings)
        lengths = texts.splits[1:] - texts.splits[:-1]
        for normalize in self._normalizers:
            texts = normalize(texts)
        index = tf.range(tf.size(segments.strings, out_type=tf.int64))
        begins_text = index == tf.gather(
            segments.text_splits, row_ids(segments.text_splits, tf.size(index))
        )
        parts = self._split_at_normalized_tokens(ns.encode(texts.points, texts.splits))
        tokens = self._tokenize_normalized(texts, parts, begins_text, offsets)
        if self._split_at_normalized_tokens:
            tokens = insert_added_tokens(tokens, parts)
        splits = tf.gather(tokens.splits, parts.text_splits)
        if not offsets:
            return tokens_without_offsets(tokens.ids, splits)
        starts, ends = ns.original_offsets(texts, splits, tokens.starts, tokens.ends)
        return SegmentTokens(tokens.ids, starts, ends, splits, lengths)

    def _tokenize_normalized(
        self, texts: NormalizedStrings, parts: TextSegments, begins_text: tf.Tensor, offsets: bool
    ) -> SegmentTokens:
        """Tokenize the parts of normalized texts that are no added tokens."""
        sizes = tf.cast(tf.strings.length(parts.strings, unit="UTF8_CHAR"), tf.int64)
        sizes = tf.where(parts.added_ids >= 0, parts.added_lengths, sizes)
        chars = ns.with_own_offsets(texts._replace(splits=tf.concat([[0], tf.cumsum(sizes)], 0)))
        rows = chars.rows
        text = row_ids(parts.text_splits, tf.size(sizes))
        at_start = tf.gather(begins_text, text)
        begins = ns.first_of_texts(chars)
        # A normalized text that is not split begins where the text does, whatever it lost there.
        unsplit = tf.gather(parts.text_splits[1:] - parts.text_splits[:-1], text) == 1
        split = _Split(
            chars,
            begins,
            (texts.starts == 0) & tf.gather(at_start, rows),
            begins & tf.gather(at_start & unsplit, rows),
        ).select(tf.gather(parts.added_ids < 0, rows))
        for pre_tokenize in self._pre_tokenizers:
            split = pre_tokenize(split)
        firsts = tf.where(split.begins)[:, 0]
        edges = tf.concat([firsts, split.chars.size[None]], 0)
        words, index = tf.unique(ns.encode(split.chars.points, edges))
        part_words = tf.searchsorted(firsts, split.chars.splits, out_type=tf.int64)
        if not offsets:
            ids = tf.gather(self._model.tokenize(words), index)
            return tokens_without_offsets(ids.flat_values, tf.gather(ids.row_splits, part_words))
        ids, starts, ends = (
            tf.gather(part, index) for part in self._model.tokenize_with_offsets(words)
        )
        base = tf.gather(firsts, row_ids(ids.row_splits, tf.size(ids.flat_values)))
        first = tf.gather(split.chars.starts, base + starts.flat_values)
        last = tf.gather(split.chars.ends, base + ends.flat_values - 1)
        return SegmentTokens(
            ids.flat_values,
            tf.cast(first, tf.int32),
            tf.cast(last, tf.int32),
            tf.gather(ids.row_splits, part_words),
            sizes,
        )


class _Split(NamedTuple):
    """Code points of texts that are split into words."""

    chars: NormalizedStrings
    begins: tf.Tensor
    """bool [C]: a word begins here."""
    at_zero: tf.Tensor
    """bool [C]: the code point came from the start of the whole text."""
    of_text: tf.Tensor
    """bool [C]: the word that begins here is an unsplit text from its start."""

    def select(self, mask: tf.Tensor) -> _Split:
        """Keep the code points where `mask` bool [C] is true."""
        indices = tf.where(mask)[:, 0]
        others = (tf.gather(part, indices) for part in self[1:])
        return _Split(ns.select(self.chars, mask), *others)


class _BpeModel(tf.Module):
    """BPE with byte fallback, by tf-text's SentencePiece kernel (see `graph.bytepair`)."""

    def __init__(self, tokenizer: HFTokenizer, model: Mapping[str, Any]):
        super().__init__()
        vocabulary = model["vocab"]
        settings = ("ignore_merges", "dropout", "continuing_subword_prefix", "end_of_word_suffix")
        lacking = not model.get("byte_fallback") or any(b not in vocabulary for b in proto.BYTES)
        if lacking or any(model.get(key) for key in settings):
            shown = ("byte_fallback", *settings)
            _refuse("model", {key: model[key] for key in shown if key in model})
        scores = {token: 0.0 for token in vocabulary if len(token) == 1}
        scores |= {token: -1.0 - rank for token, rank in merge_ranks(model).items()}
        pieces = []
        for token_id, token in enumerate(tokenizer.vocabulary):
            if token in proto.BYTES:
                pieces.append((token, 0.0, proto.BYTE))
            elif token_id not in tokenizer.all_special_ids and token in scores:
                pieces.append((token, scores[token], proto.NORMAL))
            else:
                pieces.append((f"{NEVER}{token_id}", 0.0, proto.CONTROL))
        pieces.append((NEVER, 0.0, proto.UNKNOWN))
        built = proto.build(pieces, proto.BPE, byte_fallback=True, dummy_prefix=False)
        self._kernel = SentencePieceKernel(built.SerializeToString())

    def tokenize(self, words: tf.Tensor) -> tf.RaggedTensor:
        """Tokenize UTF-8 words, string [U], to ids, ragged int32 [U, None]."""
        return self._kernel.tokenize(words)

    def tokenize_with_offsets(self, words: tf.Tensor) -> RaggedTokens:
        """Tokenize UTF-8 words, string [U], to ids and offsets."""
        tokens = tokenize_segments(self._kernel, words, True)
        starts = tf.cast(tokens.starts, tf.int64)
        # A byte's offsets are those of its character.
        ends = tf.maximum(tf.cast(tokens.ends, tf.int64), starts + 1)
        ids, starts, ends = (
            tf.RaggedTensor.from_row_splits(values, tokens.splits, validate=False)
            for values in (tokens.ids, starts, ends)
        )
        return RaggedTokens(ids, starts, ends)


def _check_spaces(definition: Mapping[str, Any]) -> None:
    """Refuse files that leave spaces in a text: the kernel takes them for its own mark."""
    normalizers = _flatten(definition.get("normalizer"))
    replaced = any((part.get("pattern") or {}).get("String") == " " for part in normalizers)
    if not replaced and not _flatten(definition.get("pre_tokenizer")):
        _refuse("normalizer", definition.get("normalizer") or {})


def _normalizer(
    part: Mapping[str, Any], following: Mapping[str, Any]
) -> Callable[[NormalizedStrings], NormalizedStrings]:
    """One of a file's normalizers as a function of texts, and the one that follows it."""
    kind = part.get("type")
    if kind in ("Lowercase", "StripAccents"):
        return code_point_map(kind)
    if kind == "NFKD" and following.get("type") == "StripAccents":  # removes what it would order
        return code_point_map(kind)
    if kind == "Precompiled":
        return Charsmap(base64.b64decode(part["precompiled_charsmap"]))
    if kind == "Strip":
        left, right = bool(part.get("strip_left")), bool(part.get("strip_right"))
        return lambda texts: ns.strip(texts, left, right)
    if kind == "Prepend":
        content = part["prepend"]
        return lambda texts: ns.prepend(texts, ns.first_of_texts(texts), content)[0]
    if kind == "Replace":
        content, pattern = part["content"], part["pattern"]
        runs = RUNS.fullmatch(pattern.get("Regex") or "")
        if runs and int(runs[1]):
            return lambda texts: ns.replace_runs(texts, " ", int(runs[1]), content)
        text = pattern.get("String") or ""
        if len(set(text)) == 1:
            count = len(text)
            return lambda texts: ns.replace_all(texts, text[0], count, content)
    return _refuse("normalizer", part)


def _pre_tokenizers(definition: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return a file's pre-tokenizers, without Gemma's: it splits at spaces, and its only normalizer
    leaves none."""
    parts = _flatten(definition.get("pre_tokenizer"))
    spaces = {"pattern": {"String": " "}, "content": proto.SPACE}
    normalizers = [
        {"pattern": part.get("pattern"), "content": part.get("content")}
        for part in _flatten(definition.get("normalizer"))
    ]
    if normalizers != [spaces]:
        return parts
    return [
        part
        for part in parts
        if (part.get("type"), part.get("pattern")) != ("Split", {"String": " "})
    ]


def _pre_tokenizer(part: Mapping[str, Any]) -> Callable[[_Split], _Split]:
    """One of a file's pre-tokenizers as a function of texts split into words."""
    if part.get("type") == "WhitespaceSplit":
        return _split_at_white_space
    if part.get("type") == "Metaspace" and part.get("replacement") == proto.SPACE:
        scheme, splits = _prepend_scheme(part), part.get("split", True)
        return lambda split: _metaspace(split, scheme, splits)
    return _refuse("pre_tokenizer", part)


def _split_at_white_space(split: _Split) -> _Split:
    white = ns.is_white(split.chars.points)
    begins = split.begins | tf.concat([[False], white[:-1]], 0)
    none = tf.zeros_like(begins)
    return split._replace(begins=begins, of_text=none).select(~white)


def _metaspace(split: _Split, scheme: str, splits: bool) -> _Split:
    """Replace spaces by marks, put one before words as `scheme` says, and split at the marks."""
    chars, begins, at_zero, of_text = split
    mark = ord(proto.SPACE)
    chars = chars._replace(points=tf.where(chars.points == BLANK, mark, chars.points))
    if scheme != NEVER_ADDED:
        lacking = begins & (chars.points != mark)
        if scheme == FIRST:
            lacking &= of_text | at_zero
        chars, index, added = ns.prepend(chars, lacking, proto.SPACE)
        begins = added | tf.gather(begins & ~lacking, index)
        at_zero, of_text = tf.gather(at_zero, index), tf.gather(of_text, index)
    if splits:
        begins |= chars.points == mark
    return _Split(chars, begins, at_zero, of_text)


def _prepend_scheme(part: Mapping[str, Any]) -> str:
    """The `prepend_scheme` of a Metaspace part, in older files `add_prefix_space`."""
    scheme = part.get("prepend_scheme") or (
        ALWAYS if part.get("add_prefix_space", True) else NEVER_ADDED
    )
    return str(scheme)


def _flatten(part: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The parts inside a part of a tokenizer.json that is a Sequence; else the part itself."""
    if part is None:
        return []
    if part.get("type") != "Sequence":
        return [part]
    inner = next(part[key] for key in ("normalizers", "pretokenizers", "decoders") if key in part)
    return [inner_part for entry in inner for inner_part in _flatten(entry)]


def _refuse(key: str, part: Mapping[str, Any]) -> NoReturn:
    raise TokenizerError(
        f"tokenizer.json: in the graph '{key}' {str(part)[:300]} is not known for SentencePiece "
        "vocabularies. The tokenizer works in Python; or use the checkpoint's .model file."
    )
