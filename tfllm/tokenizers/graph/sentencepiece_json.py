"""SentencePiece vocabularies of a tokenizer.json as TensorFlow ops.

The file's normalizers and pre-tokenizers are done one after the other, as the `tokenizers` package
does them, offsets included, and the words that come out are given to the model. What is not known
here is refused by name.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from tfllm.errors import TokenizerError
from tfllm.tokenizers import sentencepiece_proto as proto
from tfllm.tokenizers.graph import normalized_string as ns
from tfllm.tokenizers.graph.added_tokens import (
    AddedTokenSplitter,
    Pieces,
    Tokens,
    insert_added_tokens,
    refuse_split_specials,
    row_ids,
    tokens_without_offsets,
)
from tfllm.tokenizers.graph.base import TokenizerGraph, filter_ids, join_utf8
from tfllm.tokenizers.graph.bytepair import NEVER, json_added_tokens, merge_ranks, normalized_text
from tfllm.tokenizers.graph.charsmap import Charsmap
from tfllm.tokenizers.graph.normalized_string import NormalizedStrings
from tfllm.tokenizers.graph.sentencepiece import check_profile, tokenize_pieces
from tfllm.tokenizers.graph.sentencepiece_kernel import SentencePieceKernel
from tfllm.tokenizers.graph.unigram import UnigramModel
from tfllm.tokenizers.hf_tokenizers import HFTokenizer

RUNS = re.compile(r" \{(\d+),\}")  # the regular expression of runs of spaces
BLANK = ord(" ")
NEVER_ADDED, ALWAYS, FIRST = "never", "always", "first"


class SentencePieceJsonGraph(TokenizerGraph):
    """BPE with byte fallback or a unigram model; make it with `Tokenizer.graph()`."""

    def __init__(self, tokenizer: HFTokenizer, profile: str = "reference"):
        check_profile(profile)
        refuse_split_specials(tokenizer.splits_special_tokens)
        described = tokenizer.parse_definition()
        raw, normalized = json_added_tokens(described, True)
        super().__init__(tokenizer, raw)
        self._normalizers = [_normalizer(part) for part in _flat(described.get("normalizer"))]
        self._cut_normalized = AddedTokenSplitter(
            [one._replace(content=normalized_text(tokenizer, one.content)) for one in normalized]
        )
        self._pre_tokenizers = [
            _pre_tokenizer(part) for part in _flat(described.get("pre_tokenizer"))
        ]
        model = described["model"]
        if model.get("type") == "Unigram":
            self._model: Any = UnigramModel(model)
        else:
            _check_spaces(described)
            self._model = _Merges(tokenizer, model)
        self._decoder = _flat(described.get("decoder"))
        special = tokenizer.all_special_ids
        added = {entry["id"] for entry in described.get("added_tokens") or []}
        strings = [
            (token if number in added else token.replace(proto.SPACE, " ")).encode()
            for number, token in enumerate(tokenizer.vocabulary)
        ]
        is_byte = [False] * len(strings)
        falls_back = any(part.get("type") == "ByteFallback" for part in self._decoder)
        for byte, token in enumerate(proto.BYTES if falls_back else ()):
            number = tokenizer.token_id(token)
            if number is not None:
                strings[number], is_byte[number] = bytes([byte]), True
        with tf.init_scope():
            self._strings = tf.constant(strings)
            self._headless = tf.constant(
                [token.replace(proto.SPACE, "") for token in tokenizer.vocabulary]
            )
            self._is_byte = tf.constant(is_byte)
            self._kept = tf.constant([i not in special for i in range(len(strings))])

    def detokenize(self, ids: tf.RaggedTensor) -> tf.Tensor:
        """Ids int32 [B, None] to UTF-8 string [B]; special tokens and unknown ids left out.

        A run of bytes that is not valid UTF-8 becomes one U+FFFD for each byte, as in Hugging Face.
        """
        strips, headless = self._decoder_drops()
        ids = filter_ids(ids, self._kept)
        values, splits = ids.flat_values, ids.row_splits
        strings = tf.gather(self._strings, values)
        row_starts = tf.gather(splits, tf.where(splits[:-1] < splits[1:])[:, 0])
        if headless:
            firsts = tf.gather(self._headless, tf.gather(values, row_starts))
            strings = tf.tensor_scatter_nd_update(strings, row_starts[:, None], firsts)
        is_byte = tf.gather(self._is_byte, values)
        size = tf.size(values, out_type=tf.int64)
        inner = tf.concat([[False], is_byte[:-1]], 0) & is_byte
        inner = tf.tensor_scatter_nd_update(
            inner, row_starts[:, None], tf.zeros_like(row_starts, tf.bool)
        )
        run = tf.cumsum(tf.cast(~inner, tf.int64)) - 1  # [M]: bytes in a row share one number
        count = tf.reduce_sum(tf.cast(~inner, tf.int64))
        runs = tf.strings.unsorted_segment_join(strings, run, count)
        broken = ~tf.strings.regex_full_match(runs, r"\C*") | (
            tf.strings.unicode_transcode(runs, "UTF-8", "UTF-8") != runs
        )
        runs = tf.where(broken, tf.strings.regex_replace(runs, r"\C", "\ufffd"), runs)
        run_splits = tf.gather(tf.concat([run, count[None]], 0), tf.minimum(splits, size))
        texts = join_utf8(tf.RaggedTensor.from_row_splits(runs, run_splits, validate=False))
        return tf.strings.regex_replace(texts, "^ ", "") if strips else texts

    def _decoder_drops(self) -> tuple[bool, bool]:
        """Whether `decode` leaves out one space of a text's start, or all of its first token."""
        kinds = [part.get("type") for part in self._decoder]
        if kinds == ["Metaspace"] and self._decoder[0].get("replacement") == proto.SPACE:
            return False, _prefix(self._decoder[0]) != NEVER_ADDED
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

    def _tokens(self, pieces: Pieces, offsets: bool) -> Tokens:
        texts = ns.decode(pieces.strings)
        lengths = texts.splits[1:] - texts.splits[:-1]
        for normalize in self._normalizers:
            texts = normalize(texts)
        place = tf.range(tf.size(pieces.strings, out_type=tf.int64))
        begins_text = place == tf.gather(
            pieces.text_splits, row_ids(pieces.text_splits, tf.size(place))
        )
        cut = self._cut_normalized(ns.encode(texts.points, texts.splits))
        tokens = self._words(texts, cut, begins_text, offsets)
        if self._cut_normalized:
            tokens = insert_added_tokens(tokens, cut)
        splits = tf.gather(tokens.splits, cut.text_splits)
        if not offsets:
            return tokens_without_offsets(tokens.ids, splits)
        starts, ends = ns.original_offsets(texts, splits, tokens.starts, tokens.ends)
        return Tokens(tokens.ids, starts, ends, splits, lengths)

    def _words(
        self, texts: NormalizedStrings, cut: Pieces, begins_text: tf.Tensor, offsets: bool
    ) -> Tokens:
        """Tokens of the pieces of normalized texts, without those of literal ones."""
        sizes = tf.cast(tf.strings.length(cut.strings, unit="UTF8_CHAR"), tf.int64)
        sizes = tf.where(cut.added_ids >= 0, cut.added_lengths, sizes)
        parts = ns.with_own_offsets(texts._replace(splits=tf.concat([[0], tf.cumsum(sizes)], 0)))
        rows = parts.rows
        own_text = row_ids(cut.text_splits, tf.size(sizes))
        at_start = tf.gather(begins_text, own_text)
        begins = ns.first_of_texts(parts)
        # A normalized text that is not cut begins where the text does, whatever it lost there.
        uncut = tf.gather(cut.text_splits[1:] - cut.text_splits[:-1], own_text) == 1
        split = _Split(
            parts,
            begins,
            (texts.starts == 0) & tf.gather(at_start, rows),
            begins & tf.gather(at_start & uncut, rows),
        ).kept(tf.gather(cut.added_ids < 0, rows))
        for divide in self._pre_tokenizers:
            split = divide(split)
        firsts = tf.where(split.begins)[:, 0]
        edges = tf.concat([firsts, split.chars.size[None]], 0)
        words, index = tf.unique(ns.encode(split.chars.points, edges))
        own_words = tf.searchsorted(firsts, split.chars.splits, out_type=tf.int64)
        if not offsets:
            ids = tf.gather(self._model.tokenize(words), index)
            return tokens_without_offsets(ids.flat_values, tf.gather(ids.row_splits, own_words))
        ids, starts, ends = (
            tf.gather(part, index) for part in self._model.tokenize_with_offsets(words)
        )
        base = tf.gather(firsts, row_ids(ids.row_splits, tf.size(ids.flat_values)))
        first = tf.gather(split.chars.starts, base + starts.flat_values)
        last = tf.gather(split.chars.ends, base + ends.flat_values - 1)
        return Tokens(
            ids.flat_values,
            tf.cast(first, tf.int32),
            tf.cast(last, tf.int32),
            tf.gather(ids.row_splits, own_words),
            sizes,
        )


class _Split(NamedTuple):
    """Code points of texts that are divided into words."""

    chars: NormalizedStrings
    begins: tf.Tensor
    """bool [C]: a word begins here"""
    at_zero: tf.Tensor
    """bool [C]: the code point came from the start of the whole text"""
    of_text: tf.Tensor
    """bool [C]: the word that begins here is a text that was not divided, from its start"""

    def kept(self, flags: tf.Tensor) -> _Split:
        places = tf.where(flags)[:, 0]
        others = (tf.gather(part, places) for part in self[1:])
        return _Split(ns.select(self.chars, flags), *others)


class _Merges(tf.Module):
    """BPE with byte fallback, by tf-text's SentencePiece kernel (see `graph_bytepair`)."""

    def __init__(self, tokenizer: HFTokenizer, model: Mapping[str, Any]):
        super().__init__()
        vocabulary = model["vocab"]
        settings = ("ignore_merges", "dropout", "continuing_subword_prefix", "end_of_word_suffix")
        lacking = not model.get("byte_fallback") or any(b not in vocabulary for b in proto.BYTES)
        if lacking or any(model.get(key) for key in settings):
            shown = ("byte_fallback", *settings)
            _refuse("model", {key: model[key] for key in shown if key in model})
        places = merge_ranks(model)
        scored = {token: -1.0 - place for token, place in places.items()}
        scored = {**{token: 0.0 for token in vocabulary if len(token) == 1}, **scored}
        pieces = []
        for number, token in enumerate(tokenizer.vocabulary):
            if token in proto.BYTES:
                pieces.append((token, 0.0, proto.BYTE))
            elif number not in tokenizer.all_special_ids and token in scored:
                pieces.append((token, scored[token], proto.NORMAL))
            else:
                pieces.append((f"{NEVER}{number}", 0.0, proto.CONTROL))
        pieces.append((NEVER, 0.0, proto.UNKNOWN))
        built = proto.build(pieces, proto.BPE, byte_fallback=True, dummy_prefix=False)
        self._kernel = SentencePieceKernel(built.SerializeToString())

    def tokenize(self, words: tf.Tensor) -> tf.RaggedTensor:
        """UTF-8 string [U] to ids, ragged int32 [U, None]."""
        return self._kernel.tokenize(words)

    def tokenize_with_offsets(self, words: tf.Tensor) -> tuple[tf.RaggedTensor, ...]:
        """UTF-8 string [U] to ids, starts and ends in code points: ragged [U, None]."""
        tokens = tokenize_pieces(self._kernel, words, True)
        starts = tf.cast(tokens.starts, tf.int64)
        # A byte's offsets are those of its character.
        ends = tf.maximum(tf.cast(tokens.ends, tf.int64), starts + 1)
        ids, starts, ends = (
            tf.RaggedTensor.from_row_splits(values, tokens.splits, validate=False)
            for values in (tokens.ids, starts, ends)
        )
        return ids, starts, ends


def _check_spaces(described: Mapping[str, Any]) -> None:
    """The kernel takes a space for its mark, so none may be left. Raises TokenizerError."""
    normalizers = _flat(described.get("normalizer"))
    replaced = any((part.get("pattern") or {}).get("String") == " " for part in normalizers)
    if not replaced and not _flat(described.get("pre_tokenizer")):
        _refuse("normalizer", described.get("normalizer") or {})


def _normalizer(part: Mapping[str, Any]) -> Callable[[NormalizedStrings], NormalizedStrings]:
    """One of a file's normalizers as a function of texts."""
    kind = part.get("type")
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


def _pre_tokenizer(part: Mapping[str, Any]) -> Callable[[_Split], _Split]:
    """One of a file's pre-tokenizers as a function of texts divided into words."""
    if part.get("type") == "WhitespaceSplit":
        return _at_white_space
    if part.get("type") == "Metaspace" and part.get("replacement") == proto.SPACE:
        scheme, splits = _prefix(part), part.get("split", True)
        return lambda split: _at_marks(split, scheme, splits)
    return _refuse("pre_tokenizer", part)


def _at_white_space(split: _Split) -> _Split:
    white = ns.is_white(split.chars.points)
    begins = split.begins | tf.concat([[False], white[:-1]], 0)
    none = tf.zeros_like(begins)
    return split._replace(begins=begins, of_text=none).kept(~white)


def _at_marks(split: _Split, scheme: str, divides: bool) -> _Split:
    """Spaces as marks, one before each word that has none as `scheme` says; words at the marks."""
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
    if divides:
        begins |= chars.points == mark
    return _Split(chars, begins, at_zero, of_text)


def _prefix(part: Mapping[str, Any]) -> str:
    given = part.get("prepend_scheme") or (
        ALWAYS if part.get("add_prefix_space", True) else NEVER_ADDED
    )
    return str(given)


def _flat(part: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """A part of a tokenizer.json, or those of a Sequence."""
    if part is None:
        return []
    if part.get("type") != "Sequence":
        return [part]
    inner = next(part[key] for key in ("normalizers", "pretokenizers", "decoders") if key in part)
    return [one for entry in inner for one in _flat(entry)]


def _refuse(key: str, part: Mapping[str, Any]) -> Any:
    raise TokenizerError(
        f"tokenizer.json: in the graph '{key}' {str(part)[:300]} is not known for SentencePiece "
        "vocabularies. The tokenizer works in Python; or use the checkpoint's .model file."
    )
