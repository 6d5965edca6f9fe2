"""Learns a vocabulary from texts, streaming, the same in every process and with any threads.

Texts are gone through twice: first characters are counted, then the kind's own trainer runs. The
trainers hold what they read, so of very much text they are given an even sample of lines.

WordPiece: the trainer of `tokenizers` (0.23) takes the letters inside words ("##e") in the order of
a hash map, which is another in every process; merges of equal counts are then decided by these
numbers, so tokens differ, too. Here letters are counted first and given to it in order.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from tfllm.errors import DataError, SettingError, did_you_mean
from tfllm.tokenizers import bytepair, characters, hf_classes, sentencepiece
from tfllm.tokenizers import sentencepiece_proto as proto
from tfllm.tokenizers.base import Tokenizer
from tfllm.tokenizers.bert_normalization import BertNormalization
from tfllm.tokenizers.byte_level import bytes_to_unicode
from tfllm.tokenizers.hf_tokenizers import HFTokenizer
from tfllm.tokenizers.tokenizer_config import TokenizerConfig
from tfllm.tokenizers.wordpiece import PREFIX, BertSpecialTokens, WordPiece

# Each character of the alphabet takes two places, alone and after PREFIX; the rest are pieces.
ALPHABET_SHARE = 3
MIN_FREQUENCY = 2
BYTES = 256
UNIGRAM_SPECIALS = ("<unk>", "<s>", "</s>", "<pad>")
UNIGRAM_COVERAGE = 0.9995  # of the text, as SentencePiece has it; rarer characters become bytes
UNIGRAM_THREADS = 4  # the sums depend on it, so it is the same everywhere
SEED = 0
T5 = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}  # whose rows end so in Hugging Face, too

CODE_POINTS = 0x110000
# Trainers are given about so many characters. Sentences without spaces are hardly ever the same, so
# that all of them are held: their characters cost more.
MOST_CHARACTERS = {"wordpiece": 200_000_000, "bpe": 200_000_000, "unigram": 100_000_000}
IDEOGRAPH_COST = {"wordpiece": 1, "bpe": 70, "unigram": 5}  # measured: docs/tokenizers.md
IDEOGRAPHS = ((0x2E80, 0xA4CF), (0xF900, 0xFAFF), (0x20000, 0x323AF))  # and kana; not Hangul
COUNTED_AT_ONCE = 1 << 20
LONGEST_SENTENCE = 2000  # characters; SentencePiece leaves out longer ones, so they are cut


@dataclass(frozen=True)
class TrainerOptions:
    """What to learn; None: the kind's own default."""

    vocabulary_size: int
    """at most, special tokens included"""
    special_tokens: tuple[str, ...] = ()
    """further ones"""
    lowercase: bool | None = None
    """of WordPiece only"""
    strip_accents: bool | None = None
    min_frequency: int | None = None
    end_of_text: bool = True
    """bpe: GPT-2's <|endoftext|>, where the special tokens are not RoBERTa's; False: only the
    special tokens given"""


def train_tokenizer(
    texts: Iterable[str], kind: str, options: TrainerOptions, source: str
) -> Tokenizer:
    """A tokenizer whose vocabulary is learned from lines of text; `source` names them in errors.

    `texts` is gone through more than once, so it is a list or makes a new iterator each time. The
    same texts and options give the same vocabulary. Raises SettingError for a kind that is not
    known, and DataError where there is no text.
    """
    if kind not in KINDS:
        raise SettingError(f"--kind {kind}: no such kind. {did_you_mean(kind, KINDS)}")
    if kind != "wordpiece" and (options.lowercase or options.strip_accents):
        raise SettingError(f"--lowercase: {kind} keeps letters as they are. Leave it out.")
    tokenizer = KINDS[kind](texts, options)
    if tokenizer is None:
        raise DataError(f"{source}: no text to learn from.")
    return tokenizer


def _wordpiece(texts: Iterable[str], options: TrainerOptions) -> WordPiece | None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    special_tokens = BertSpecialTokens()
    literal = list(dict.fromkeys([*astuple(special_tokens), *options.special_tokens]))
    lowercase = options.lowercase is not False
    normalization = BertNormalization(lowercase, options.strip_accents)
    _check_size(options, 2 * len(literal))
    rust = Tokenizer(models.WordPiece(unk_token=special_tokens.unk_token))
    rust.normalizer = normalization.build()
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    sample = _Sample(texts, "wordpiece")
    letters = _by_frequency(count(sample, rust.normalizer.normalize_str))
    alphabet = sorted(letters[: options.vocabulary_size // ALPHABET_SHARE])
    if not alphabet:
        return None
    # Punctuation and ideographs are words of their own and never stand inside one.
    inside = [
        PREFIX + letter
        for letter in alphabet
        if len(rust.pre_tokenizer.pre_tokenize_str(f"x{letter}x")) == 1
        and rust.normalizer.normalize_str(f"x{letter}x") == f"x{letter}x"
    ]
    trainer = trainers.WordPieceTrainer(
        vocab_size=options.vocabulary_size,
        min_frequency=options.min_frequency or MIN_FREQUENCY,
        special_tokens=[*literal, *inside],  # numbered in this order
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=PREFIX,
        show_progress=False,
    )
    rust.train_from_iterator(iter(sample), trainer)
    table = rust.get_vocab()
    first = [*literal, *alphabet, *inside]
    given = set(first)
    pieces = [token for token in sorted(table, key=table.__getitem__) if token not in given]
    # Ideographs make no pieces: where there is room left, it is for rarer ones.
    more = letters[len(alphabet) :]
    return WordPiece.from_vocabulary(
        list(dict.fromkeys([*first, *pieces, *more]))[: options.vocabulary_size],
        lowercase=lowercase,
        strip_accents=options.strip_accents,
        added=options.special_tokens,
    )


def _by_frequency(counts: np.ndarray) -> list[str]:
    """The characters that are no white space, the most frequent first."""
    codes = [int(code) for code in np.flatnonzero(counts) if not chr(code).isspace()]
    return [chr(code) for code in sorted(codes, key=lambda code: (-counts[code], code))]


def _bpe(texts: Iterable[str], options: TrainerOptions) -> bytepair.BytePair | None:
    """GPT-2's, <|endoftext|> first and every byte known; RoBERTa's where its tokens are given."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    roberta = set(hf_classes.ROBERTA_TOKENS.values()) <= set(options.special_tokens)
    end = [bytepair.ENDOFTEXT] if options.end_of_text and not roberta else []
    literal = list(dict.fromkeys([*end, *options.special_tokens]))
    _check_size(options, BYTES + len(literal))
    rust = Tokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=options.vocabulary_size,
        min_frequency=options.min_frequency or MIN_FREQUENCY,
        special_tokens=literal,
        initial_alphabet=sorted(bytes_to_unicode()),
        show_progress=False,
    )
    sample = _Sample(texts, "bpe")
    if not _has_text(sample.counts):
        return None
    rust.train_from_iterator(iter(sample), trainer)
    if not options.end_of_text:  # tokens by name, and none put around texts
        rust.decoder = decoders.ByteLevel()
        return bytepair.BytePair.from_definition(rust.to_str())
    model = json.loads(rust.to_str())["model"]
    merges = [(m[0], m[1]) for m in model["merges"]]
    named = {"additional_special_tokens": literal}
    return bytepair.from_vocabulary(
        model["vocab"], merges, TokenizerConfig({}, named), "--kind bpe"
    )


def _unigram(texts: Iterable[str], options: TrainerOptions) -> sentencepiece.SentencePiece | None:
    """SentencePiece's unigram model with byte fallback that keeps every text as it is."""
    import sentencepiece as package

    smallest = BYTES + len(UNIGRAM_SPECIALS) + len(options.special_tokens) + 1
    _check_size(options, smallest)
    lines = _Sample(texts, "unigram")
    if not _has_text(lines.counts):
        return None
    written = io.BytesIO()
    most = max(1, (options.vocabulary_size - smallest) * 3 // 4)
    sample = _ErrorCatcher(_cut(lines, dict.fromkeys(_rare(lines.counts, most), "\n")))
    package.set_random_generator_seed(SEED)
    try:
        package.SentencePieceTrainer.train(
            sentence_iterator=iter(sample),
            model_writer=written,
            model_type="unigram",
            vocab_size=options.vocabulary_size,
            hard_vocab_limit=False,
            character_coverage=1.0,  # of those that are left
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            pad_id=UNIGRAM_SPECIALS.index("<pad>"),
            control_symbols=list(options.special_tokens),
            max_sentence_length=4 * LONGEST_SENTENCE,  # bytes
            num_threads=UNIGRAM_THREADS,
            minloglevel=2,
        )
    except (RuntimeError, OSError, SystemError) as error:
        if sample.error is not None:
            raise sample.error from None
        raise SettingError(
            f"--vocabulary-size {options.vocabulary_size}: SentencePiece says: {error}"
        ) from None
    if sample.error is not None:
        raise sample.error
    # What makes transformers read the .model as SentencePiece does, with <s> before a text.
    config = {
        "tokenizer_class": "LlamaTokenizer", "legacy": True, "add_bos_token": True,
        sentencepiece.OWN_PREFIX: sentencepiece.BY_MODEL,
    }  # fmt: skip
    parsed = proto.parse(written.getvalue(), "--kind unigram")
    return sentencepiece.from_proto(parsed, TokenizerConfig(config, config))


def _rare(counts: np.ndarray, most: int) -> list[int]:
    """Code points that are to become bytes: all but `most`, and but those of nearly all text."""
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    needed = int(np.searchsorted(counts[order].cumsum(), UNIGRAM_COVERAGE * counts.sum())) + 1
    return order[min(needed, most) :].tolist()


def _characters(texts: Iterable[str], options: TrainerOptions) -> characters.Characters | None:
    """The most frequent characters, line ends too, in the order of their code points."""
    counts = count(texts)
    if not _has_text(counts):
        return None
    known = np.flatnonzero(counts)
    frequent = known[counts[known] >= (options.min_frequency or 1)]
    specials = list(dict.fromkeys(options.special_tokens))
    _check_size(options, len(specials) + 2)
    room = options.vocabulary_size - len(specials)
    left_out = len(frequent) > room or len(frequent) < len(known)
    if left_out and not set(characters.UNKNOWN_NAMES) & set(specials):
        specials.insert(0, characters.UNKNOWN)
        room -= 1
    kept = frequent[np.argsort(-counts[frequent], kind="stable")][:room]
    return characters.from_characters([chr(code) for code in sorted(kept)], specials)


KINDS: dict[str, Callable[[Iterable[str], TrainerOptions], Any]] = {
    "wordpiece": _wordpiece,
    "bpe": _bpe,
    "unigram": _unigram,
    "characters": _characters,
}


def count(texts: Iterable[str], normalize: Callable[[str], str] = str) -> np.ndarray:
    """int64 [code points]: how often each character comes; a line end after every text, too."""
    counts = np.zeros(CODE_POINTS, np.int64)

    def add(lines: list[str]) -> None:
        joined = normalize("\n".join([*lines, ""])).encode("utf-32-le", "surrogatepass")
        counts[:] += np.bincount(np.frombuffer(joined, np.uint32), minlength=CODE_POINTS)

    waiting, size = list[str](), 0
    for text in texts:
        waiting.append(text)
        size += len(text) + 1
        if size > COUNTED_AT_ONCE:
            add(waiting)
            waiting, size = [], 0
    if waiting:
        add(waiting)
    return counts


def _has_text(counts: np.ndarray) -> bool:
    return any(not chr(code).isspace() for code in np.flatnonzero(counts))


class _Sample:
    """All lines, or of too much text an even part, chosen by a hash of the line's number."""

    def __init__(self, texts: Iterable[str], kind: str):
        self.texts = texts
        self.counts = count(texts)
        ideographs = sum(int(self.counts[low : high + 1].sum()) for low, high in IDEOGRAPHS)
        cost = int(self.counts.sum()) + (IDEOGRAPH_COST[kind] - 1) * ideographs
        self.share = MOST_CHARACTERS[kind] / max(cost, 1)

    def __iter__(self) -> Iterator[str]:
        for number, text in enumerate(self.texts):
            if self.share >= 1 or zlib.crc32(number.to_bytes(8, "little")) < self.share * 2**32:
                yield text


def _cut(texts: Iterable[str], ends: dict[int, str]) -> Iterator[str]:
    """Lines that SentencePiece takes: longer ones in parts, at a space where there is one.

    `ends`: characters that no piece may hold, as line ends.
    """
    for part in (part for text in texts for part in text.translate(ends).split("\n")):
        start = 0
        while len(part) - start > LONGEST_SENTENCE:
            space = part.rfind(" ", start + 1, start + LONGEST_SENTENCE)
            end = space if space > 0 else start + LONGEST_SENTENCE
            yield part[start:end]
            start = end
        yield part[start:]


class _ErrorCatcher:
    """An iterable that keeps an error, which SentencePiece's C++ would swallow."""

    def __init__(self, lines: Iterable[str]):
        self._lines = lines
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[str]:
        try:
            yield from self._lines
        except Exception as error:
            self.error = error
            raise


def _check_size(options: TrainerOptions, smallest: int) -> None:
    if options.vocabulary_size < smallest:
        raise SettingError(
            f"--vocabulary-size {options.vocabulary_size}: give at least {smallest}."
        )


def append_eos(tokenizer: Any) -> Any:
    """A learned tokenizer that puts its end token, and nothing else, after every text.

    One whose rows end with special tokens already, as WordPiece's do, stays as it is.
    """
    if isinstance(tokenizer, HFTokenizer):
        described = {
            **tokenizer.parse_definition(),
            "post_processor": _eos_post_processor(tokenizer),
        }
        settings = TokenizerConfig(tokenizer.config, tokenizer.config, tokenizer.chat_template)
        return type(tokenizer).from_definition(json.dumps(described), settings)
    if isinstance(tokenizer, sentencepiece.SentencePiece):
        model = proto.parse(tokenizer.source, tokenizer.file_name)
        return sentencepiece.from_proto(model, TokenizerConfig(T5, T5))
    return tokenizer


def _eos_post_processor(tokenizer: HFTokenizer) -> dict[str, Any]:
    """A post-processor of the `tokenizers` package: `a </s>` and `a </s> b </s>`."""
    end = tokenizer.special_tokens.eos_token
    assert end is not None  # learned with it
    after = {"SpecialToken": {"id": end, "type_id": 0}}
    texts = [{"Sequence": {"id": name, "type_id": 0}} for name in ("A", "B")]
    known = {end: {"id": end, "ids": [tokenizer.eos_token_id], "tokens": [end]}}
    return {
        "type": "TemplateProcessing",
        "single": [texts[0], after],
        "pair": [texts[0], after, texts[1], after],
        "special_tokens": known,
    }
