"""Learns a vocabulary from text files, streaming."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from tfllm.errors import DataError, SettingError, did_you_mean
from tfllm.tokenizers import bytepair, characters, proto, sentencepiece
from tfllm.tokenizers.base import Tokenizer
from tfllm.tokenizers.checking import read_lines
from tfllm.tokenizers.config_files import Settings
from tfllm.tokenizers.wordpiece import PREFIX, Normalization, Specials, WordPiece

# Each character of the alphabet takes two places, alone and after PREFIX; the rest are pieces.
ALPHABET_SHARE = 3
MIN_FREQUENCY = 2
BYTES = 256
UNIGRAM_SPECIALS = ("<unk>", "<s>", "</s>", "<pad>")
# SentencePiece holds these in memory, drawn evenly from a longer text.
UNIGRAM_SENTENCES = 2_000_000
UNIGRAM_THREADS = 4  # the sums depend on it, so it is the same everywhere
SEED = 0

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Options:
    """What to learn; None: the kind's own default."""

    vocabulary_size: int
    """at most, special tokens included"""
    special_tokens: tuple[str, ...] = ()
    """further ones"""
    lowercase: bool | None = None
    """of WordPiece only"""
    strip_accents: bool | None = None
    min_frequency: int | None = None
    column: str | None = None
    """of JSON lines: the field with the text, a string or a list of strings"""
    end_of_text: bool = True
    """bpe: GPT-2's <|endoftext|>, where the special tokens are not RoBERTa's; False: only the
    special tokens given"""


def train(
    paths: Sequence[str | Path],
    kind: str,
    options: Options,
    *,
    progress: Progress = lambda _: None,
) -> Tokenizer:
    """A tokenizer whose vocabulary is learned from the lines of UTF-8 text files, `.gz` or not.

    The same files and options give the same vocabulary. Raises SettingError for a kind that is not
    known and DataError for files that cannot be used.
    """
    source = ", ".join(map(str, paths))
    return learned(_texts(paths, options.column, progress), kind, options, source)


def learned(texts: Iterator[str], kind: str, options: Options, source: str) -> Tokenizer:
    """A tokenizer of texts that are read already; `source` names them in errors."""
    if kind not in KINDS:
        raise SettingError(f"--kind {kind}: no such kind. {did_you_mean(kind, KINDS)}")
    if kind != "wordpiece" and (options.lowercase or options.strip_accents):
        raise SettingError(f"--lowercase: {kind} keeps letters as they are. Leave it out.")
    tokenizer = KINDS[kind](texts, options)
    if tokenizer is None:
        raise DataError(f"{source}: no text to learn from.")
    return tokenizer


def _wordpiece(lines: Iterator[str], options: Options) -> WordPiece | None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    specials = Specials()
    literal = [*astuple(specials), *options.special_tokens]
    lowercase = options.lowercase is not False
    normalization = Normalization(lowercase, options.strip_accents)
    _check_size(options, 2 * len(literal))
    rust = Tokenizer(models.WordPiece(unk_token=specials.unknown))
    rust.normalizer = normalizers.BertNormalizer(
        lowercase=normalization.lowercase, strip_accents=normalization.strip_accents
    )
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=options.vocabulary_size,
        min_frequency=options.min_frequency or MIN_FREQUENCY,
        special_tokens=literal,
        limit_alphabet=options.vocabulary_size // ALPHABET_SHARE,
        continuing_subword_prefix=PREFIX,
        show_progress=False,
    )
    rust.train_from_iterator(lines, trainer)
    table = rust.get_vocab()
    if len(table) <= len(literal):
        return None
    return WordPiece.from_vocabulary(
        sorted(table, key=table.__getitem__),
        lowercase=lowercase,
        strip_accents=options.strip_accents,
        added=options.special_tokens,
    )


def _bpe(lines: Iterator[str], options: Options) -> bytepair.BytePair | None:
    """GPT-2's, <|endoftext|> first and every byte known; RoBERTa's where its tokens are given."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    roberta = set(bytepair.ROBERTA_NAMES.values()) <= set(options.special_tokens)
    end = [bytepair.ENDOFTEXT] if options.end_of_text and not roberta else []
    literal = list(dict.fromkeys([*end, *options.special_tokens]))
    _check_size(options, BYTES + len(literal))
    rust = Tokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=options.vocabulary_size,
        min_frequency=options.min_frequency or MIN_FREQUENCY,
        special_tokens=literal,
        initial_alphabet=sorted(bytepair.byte_characters()),
        show_progress=False,
    )
    counted = _Counted(lines)
    rust.train_from_iterator(counted, trainer)
    if not counted.any:
        return None
    if not options.end_of_text:  # tokens by name, and none put around texts
        rust.decoder = decoders.ByteLevel()
        return bytepair.BytePair.from_definition(rust.to_str())
    model = json.loads(rust.to_str())["model"]
    merges = [(m[0], m[1]) for m in model["merges"]]
    named = {"additional_special_tokens": literal}
    return bytepair.from_vocabulary(model["vocab"], merges, Settings({}, named), "--kind bpe")


def _unigram(lines: Iterator[str], options: Options) -> sentencepiece.SentencePiece | None:
    """SentencePiece's unigram model with byte fallback that keeps every text as it is."""
    import sentencepiece as package

    _check_size(options, BYTES + len(UNIGRAM_SPECIALS) + len(options.special_tokens) + 1)
    written = io.BytesIO()
    counted = _Counted(lines)
    package.set_random_generator_seed(SEED)
    try:
        package.SentencePieceTrainer.train(
            sentence_iterator=iter(counted),
            model_writer=written,
            model_type="unigram",
            vocab_size=options.vocabulary_size,
            hard_vocab_limit=False,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            pad_id=UNIGRAM_SPECIALS.index("<pad>"),
            control_symbols=list(options.special_tokens),
            input_sentence_size=UNIGRAM_SENTENCES,
            shuffle_input_sentence=True,
            num_threads=UNIGRAM_THREADS,
            minloglevel=2,
        )
    except (RuntimeError, OSError, SystemError) as error:
        if counted.error is not None:
            raise counted.error from None
        if not counted.any:
            return None
        raise SettingError(
            f"--vocabulary-size {options.vocabulary_size}: SentencePiece says: {error}"
        ) from None
    if counted.error is not None:
        raise counted.error
    if not counted.any:
        return None
    return sentencepiece.from_proto(proto.parse(written.getvalue(), "--kind unigram"))


def _characters(lines: Iterator[str], options: Options) -> characters.Characters | None:
    """The most frequent characters, line ends too, in the order of their code points."""
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(line)
        counts["\n"] += 1
    if not any(character.strip() for character in counts):
        return None
    frequent = [c for c, n in counts.items() if n >= (options.min_frequency or 1)]
    specials = list(dict.fromkeys(options.special_tokens))
    _check_size(options, len(specials) + 2)
    room = options.vocabulary_size - len(specials)
    left_out = len(frequent) > room or len(frequent) < len(counts)
    if left_out and not set(characters.UNKNOWN_NAMES) & set(specials):
        specials.insert(0, characters.UNKNOWN)
        room -= 1
    kept = sorted(frequent, key=lambda c: (-counts[c], c))[:room]
    return characters.from_characters(sorted(kept), specials)


KINDS: dict[str, Callable[[Iterator[str], Options], Any]] = {
    "wordpiece": _wordpiece,
    "bpe": _bpe,
    "unigram": _unigram,
    "characters": _characters,
}


class _Counted:
    """An iterable that knows whether there was text, and keeps an error that C++ would swallow."""

    def __init__(self, lines: Iterable[str]):
        self._lines = lines
        self.any = False
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[str]:
        try:
            for line in self._lines:
                self.any = self.any or bool(line.strip())
                yield line
        except Exception as error:
            self.error = error
            raise


def _check_size(options: Options, smallest: int) -> None:
    if options.vocabulary_size < smallest:
        raise SettingError(
            f"--vocabulary-size {options.vocabulary_size}: give at least {smallest}."
        )


def _texts(paths: Sequence[str | Path], column: str | None, progress: Progress) -> Iterator[str]:
    for path in paths:
        for number, line in enumerate(read_lines(path, progress), start=1):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}:{number}: not UTF-8 text (byte {error.start} of the line). "
                    "Convert the file to UTF-8."
                ) from None
            if column is None:
                yield text
            elif text.strip():
                yield from _field(text, column, f"{path}:{number}").split("\n")


def _field(line: str, column: str, where: str) -> str:
    try:
        value = json.loads(line)[column]
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON: {error.msg}. --column is for JSON lines.") from None
    except (KeyError, TypeError, IndexError):
        raise DataError(f"{where}: there is no field '{column}'. Name another --column.") from None
    parts = value if isinstance(value, list) else [value]
    if not all(isinstance(part, str) for part in parts):
        raise DataError(f"{where}: the field '{column}' is neither text nor a list of texts.")
    return "\n".join(parts)
