"""Training of a tokenizer on texts, streaming, with the same result in every process.

The texts are read twice: first characters are counted, then the trainer of the kind runs. Trainers
hold in memory what they read, so of very much text they read an even sample of lines.

WordPiece: the trainer of `tokenizers` (0.23) numbers the letters inside words ("##e") in the order
of a hash map, which differs between processes; ties between merges are broken by these numbers, so
that tokens differ, too. Here letters are counted first and passed to it in order.
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

# Each character of the alphabet has two tokens, alone and after PREFIX: at most 2/3 of all.
ALPHABET_SHARE = 3
MIN_FREQUENCY = 2
BYTES = 256
UNIGRAM_SPECIALS = ("<unk>", "<s>", "</s>", "<pad>")
UNIGRAM_COVERAGE = 0.9995  # of the text, SentencePiece's default; rarer characters become bytes
UNIGRAM_THREADS = 4  # the sums depend on it, so it is the same everywhere
SEED = 0
T5 = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}  # the class whose rows end with </s>

CODE_POINTS = 0x110000
# The most characters that trainers read. Words of scripts without spaces are hardly ever repeated,
# so that trainers hold all of them: their characters count several times.
MOST_CHARACTERS = {"wordpiece": 200_000_000, "bpe": 200_000_000, "unigram": 100_000_000}
IDEOGRAPH_COST = {"wordpiece": 1, "bpe": 70, "unigram": 5}  # measured: docs/tokenizers.md
IDEOGRAPHS = ((0x2E80, 0xA4CF), (0xF900, 0xFAFF), (0x20000, 0x323AF))  # and kana; not Hangul
COUNTED_AT_ONCE = 1 << 20
LONGEST_SENTENCE = 2000  # characters; SentencePiece drops longer ones, so they are split


@dataclass(frozen=True)
class TrainerOptions:
    """Options of a trainer; None: the default of the kind."""

    vocabulary_size: int
    """Tokens at most, special tokens included."""
    special_tokens: tuple[str, ...] = ()
    """Special tokens besides those of the kind."""
    lowercase: bool | None = None
    """Whether texts are lowercased; WordPiece only."""
    strip_accents: bool | None = None
    """Whether accents are removed; WordPiece only."""
    min_frequency: int | None = None
    """How often a token must occur."""
    end_of_text: bool = True
    """bpe: whether GPT-2's <|endoftext|> is a special token, where the others are not RoBERTa's."""


def train_tokenizer(
    texts: Iterable[str], kind: str, options: TrainerOptions, source: str
) -> Tokenizer:
    """Train a tokenizer on lines of text. The same texts and options give the same vocabulary.

    Args:
        texts: Lines, iterated more than once: a list, or an object with a new iterator each time.
        kind: "wordpiece", "bpe", "unigram" or "characters".
        options: The options.
        source: The name of the texts, for messages.

    Raises:
        SettingError: The kind is unknown, or an option does not go with it.
        DataError: There is no text.
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

    bert_tokens = BertSpecialTokens()
    special_tokens = list(dict.fromkeys([*astuple(bert_tokens), *options.special_tokens]))
    lowercase = options.lowercase is not False
    normalization = BertNormalization(lowercase, options.strip_accents)
    _check_size(options, 2 * len(special_tokens))
    backend = Tokenizer(models.WordPiece(unk_token=bert_tokens.unk_token))
    backend.normalizer = normalization.build()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    sample = _Sample(texts, "wordpiece")
    letters = _by_frequency(count(sample, backend.normalizer.normalize_str))
    alphabet = sorted(letters[: options.vocabulary_size // ALPHABET_SHARE])
    if not alphabet:
        return None
    # Punctuation and ideographs are words of their own and never inside another.
    inside = [
        PREFIX + letter
        for letter in alphabet
        if len(backend.pre_tokenizer.pre_tokenize_str(f"x{letter}x")) == 1
        and backend.normalizer.normalize_str(f"x{letter}x") == f"x{letter}x"
    ]
    trainer = trainers.WordPieceTrainer(
        vocab_size=options.vocabulary_size,
        min_frequency=options.min_frequency or MIN_FREQUENCY,
        special_tokens=[*special_tokens, *inside],  # numbered in this order
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=PREFIX,
        show_progress=False,
    )
    backend.train_from_iterator(iter(sample), trainer)
    ids = backend.get_vocab()
    first = [*special_tokens, *alphabet, *inside]
    learned = [token for token in sorted(ids, key=ids.__getitem__) if token not in set(first)]
    # Ideographs are not merged: where there is room, rarer ones are added.
    rarer = letters[len(alphabet) :]
    return WordPiece.from_vocabulary(
        list(dict.fromkeys([*first, *learned, *rarer]))[: options.vocabulary_size],
        lowercase=lowercase,
        strip_accents=options.strip_accents,
        added=options.special_tokens,
    )


def _by_frequency(counts: np.ndarray) -> list[str]:
    """The characters that are not white space, the most frequent first."""
    codes = [int(code) for code in np.flatnonzero(counts) if not chr(code).isspace()]
    return [chr(code) for code in sorted(codes, key=lambda code: (-counts[code], code))]


def _bpe(texts: Iterable[str], options: TrainerOptions) -> bytepair.BytePair | None:
    """GPT-2's tokenizer with all bytes; RoBERTa's where its special tokens are in the options."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    roberta = set(hf_classes.ROBERTA_TOKENS.values()) <= set(options.special_tokens)
    end = [bytepair.ENDOFTEXT] if options.end_of_text and not roberta else []
    special_tokens = list(dict.fromkeys([*end, *options.special_tokens]))
    _check_size(options, BYTES + len(special_tokens))
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=options.vocabulary_size,
        min_frequency=options.min_frequency or MIN_FREQUENCY,
        special_tokens=special_tokens,
        initial_alphabet=sorted(bytes_to_unicode()),
        show_progress=False,
    )
    sample = _Sample(texts, "bpe")
    if not _has_text(sample.counts):
        return None
    backend.train_from_iterator(iter(sample), trainer)
    if not options.end_of_text:  # special tokens by their spelling, and none around texts
        backend.decoder = decoders.ByteLevel()
        return bytepair.BytePair.from_definition(backend.to_str())
    model = json.loads(backend.to_str())["model"]
    merges = [(m[0], m[1]) for m in model["merges"]]
    named = {"additional_special_tokens": special_tokens}
    return bytepair.from_vocabulary(
        model["vocab"], merges, TokenizerConfig({}, named), "--kind bpe"
    )


def _unigram(texts: Iterable[str], options: TrainerOptions) -> sentencepiece.SentencePiece | None:
    """SentencePiece's unigram model with byte fallback, without normalization."""
    import sentencepiece as package

    smallest = BYTES + len(UNIGRAM_SPECIALS) + len(options.special_tokens) + 1
    _check_size(options, smallest)
    lines = _Sample(texts, "unigram")
    if not _has_text(lines.counts):
        return None
    file = io.BytesIO()
    most = max(1, (options.vocabulary_size - smallest) * 3 // 4)
    sample = _ErrorCatcher(_split(lines, dict.fromkeys(_rare(lines.counts, most), "\n")))
    package.set_random_generator_seed(SEED)
    try:
        package.SentencePieceTrainer.train(
            sentence_iterator=iter(sample),
            model_writer=file,
            model_type="unigram",
            vocab_size=options.vocabulary_size,
            hard_vocab_limit=False,
            character_coverage=1.0,  # of those that remain
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
    # With these transformers reads the .model as SentencePiece does, with <s> before a text.
    config = {
        "tokenizer_class": "LlamaTokenizer", "legacy": True, "add_bos_token": True,
        sentencepiece.OWN_PREFIX: sentencepiece.BY_MODEL,
    }  # fmt: skip
    model = proto.parse(file.getvalue(), "--kind unigram")
    return sentencepiece.from_proto(model, TokenizerConfig(config, config))


def _rare(counts: np.ndarray, most: int) -> list[int]:
    """Code points that become bytes: those beyond the coverage, and beyond the first `most`."""
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    needed = int(np.searchsorted(counts[order].cumsum(), UNIGRAM_COVERAGE * counts.sum())) + 1
    return order[min(needed, most) :].tolist()


def _characters(texts: Iterable[str], options: TrainerOptions) -> characters.Characters | None:
    """The most frequent characters, line ends included, in the order of their code points."""
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


KINDS: dict[str, Callable[[Iterable[str], TrainerOptions], Tokenizer | None]] = {
    "wordpiece": _wordpiece,
    "bpe": _bpe,
    "unigram": _unigram,
    "characters": _characters,
}


def count(texts: Iterable[str], normalize: Callable[[str], str] = str) -> np.ndarray:
    """Count how often each character occurs, with a line end after every text.

    Args:
        texts: The texts.
        normalize: Applied before counting.

    Returns:
        int64 [code points].
    """
    counts = np.zeros(CODE_POINTS, np.int64)

    def add(lines: list[str]) -> None:
        joined = normalize("\n".join([*lines, ""])).encode("utf-32-le", "surrogatepass")
        counts[:] += np.bincount(np.frombuffer(joined, np.uint32), minlength=CODE_POINTS)

    pending, size = list[str](), 0
    for text in texts:
        pending.append(text)
        size += len(text) + 1
        if size > COUNTED_AT_ONCE:
            add(pending)
            pending, size = [], 0
    if pending:
        add(pending)
    return counts


def _has_text(counts: np.ndarray) -> bool:
    return any(not chr(code).isspace() for code in np.flatnonzero(counts))


class _Sample:
    """All lines, or of too much text an even share, chosen by a hash of the line's index."""

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


def _split(texts: Iterable[str], separators: dict[int, str]) -> Iterator[str]:
    """Lines that SentencePiece accepts: split at `separators` and, where too long, at a space."""
    for part in (part for text in texts for part in text.translate(separators).split("\n")):
        start = 0
        while len(part) - start > LONGEST_SENTENCE:
            space = part.rfind(" ", start + 1, start + LONGEST_SENTENCE)
            end = space if space > 0 else start + LONGEST_SENTENCE
            yield part[start:end]
            start = end
        yield part[start:]


class _ErrorCatcher:
    """An iterable that records an error, which SentencePiece's C++ would ignore."""

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


def append_eos(tokenizer: Tokenizer) -> Tokenizer:
    """Return a trained tokenizer whose rows are a text and its end token.

    One whose rows end with special tokens already, as WordPiece's do, is returned unchanged.
    """
    if isinstance(tokenizer, HFTokenizer):
        definition = {
            **tokenizer.parse_definition(),
            "post_processor": _eos_post_processor(tokenizer),
        }
        settings = TokenizerConfig(tokenizer.config, tokenizer.config, tokenizer.chat_template)
        return type(tokenizer).from_definition(json.dumps(definition), settings)
    if isinstance(tokenizer, sentencepiece.SentencePiece):
        model = proto.parse(tokenizer.source, tokenizer.file_name)
        return sentencepiece.from_proto(model, TokenizerConfig(T5, T5))
    return tokenizer


def _eos_post_processor(tokenizer: HFTokenizer) -> dict[str, Any]:
    """A post-processor of the `tokenizers` package: `a </s>` and `a </s> b </s>`."""
    end = tokenizer.special_tokens.eos_token
    assert end is not None, "trained tokenizers have an end token"
    after = {"SpecialToken": {"id": end, "type_id": 0}}
    texts = [{"Sequence": {"id": name, "type_id": 0}} for name in ("A", "B")]
    known = {end: {"id": end, "ids": [tokenizer.eos_token_id], "tokens": [end]}}
    return {
        "type": "TemplateProcessing",
        "single": [texts[0], after],
        "pair": [texts[0], after, texts[1], after],
        "special_tokens": known,
    }
