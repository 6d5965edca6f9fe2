"""Learns a vocabulary from text files, streaming."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple
from pathlib import Path

from tfllm.errors import DataError, SettingError, did_you_mean
from tfllm.tokenizers.checking import read_lines
from tfllm.tokenizers.wordpiece import PREFIX, Normalization, Specials, WordPiece

KINDS = ("wordpiece",)
LATER_KINDS = ("bpe", "unigram")
# Each character of the alphabet takes two places, alone and after PREFIX; the rest are pieces.
ALPHABET_SHARE = 3
MIN_FREQUENCY = 2

Progress = Callable[[float], None]


def train(
    paths: Sequence[str | Path],
    kind: str,
    vocabulary_size: int,
    *,
    lowercase: bool = True,
    strip_accents: bool | None = None,
    min_frequency: int = MIN_FREQUENCY,
    progress: Progress = lambda _: None,
) -> WordPiece:
    """A tokenizer whose vocabulary is learned from the lines of UTF-8 text files, `.gz` or not.

    The vocabulary has at most `vocabulary_size` tokens, special tokens included. Raises
    SettingError for a kind that is not known and DataError for files that cannot be used.
    """
    if kind not in KINDS:
        raise SettingError(
            f"--kind {kind}: only {', '.join(KINDS)} can be trained so far."
            if kind in LATER_KINDS
            else f"--kind {kind}: no such kind. {did_you_mean(kind, (*KINDS, *LATER_KINDS))}"
        )
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    specials = Specials()
    normalization = Normalization(lowercase, strip_accents)
    smallest = 2 * len(astuple(specials))
    if vocabulary_size < smallest:
        raise SettingError(f"--vocabulary-size {vocabulary_size}: give at least {smallest}.")
    rust = Tokenizer(models.WordPiece(unk_token=specials.unknown))
    rust.normalizer = normalizers.BertNormalizer(
        lowercase=normalization.lowercase, strip_accents=normalization.strip_accents
    )
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary_size,
        min_frequency=min_frequency,
        special_tokens=list(astuple(specials)),
        limit_alphabet=vocabulary_size // ALPHABET_SHARE,
        continuing_subword_prefix=PREFIX,
        show_progress=False,
    )
    rust.train_from_iterator(_texts(paths, progress), trainer)
    table = rust.get_vocab()
    if len(table) <= len(astuple(specials)):
        raise DataError(f"{', '.join(map(str, paths))}: no text to learn from.")
    return WordPiece.from_vocabulary(
        sorted(table, key=table.__getitem__), lowercase=lowercase, strip_accents=strip_accents
    )


def _texts(paths: Sequence[str | Path], progress: Progress) -> Iterator[str]:
    for path in paths:
        for number, line in enumerate(read_lines(path, progress), start=1):
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}:{number}: not UTF-8 text (byte {error.start} of the line). "
                    "Convert the file to UTF-8."
                ) from None
