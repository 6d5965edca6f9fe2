"""SentencePiece models (`.model` files) over the `sentencepiece` package.

Source: Kudo and Richardson 2018, "SentencePiece"; Kudo 2018, "Subword regularization" (unigram).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from tfllm.errors import TokenizerError
from tfllm.tokenizers import hf_classes, tokenizer_config
from tfllm.tokenizers import sentencepiece_proto as proto
from tfllm.tokenizers.base import RowTemplate, bert_template, check_ids
from tfllm.tokenizers.hf_tokenizers import HFTokenizer
from tfllm.tokenizers.mbart import LANGUAGE_CODES
from tfllm.tokenizers.rows import NamedTokenizer, replace_surrogates
from tfllm.tokenizers.tokenizer_config import (
    ADDED_TOKENS_DECODER,
    ADDED_TOKENS_FILE,
    AddedToken,
    SpecialTokens,
    TokenizerConfig,
    content,
)

ALBERT = "AlbertTokenizer"
T5_EXTRA_IDS = 100
# Hugging Face's class -> the special tokens it puts around a text, by role.
FORMS = {
    "LlamaTokenizer": "start",
    "GemmaTokenizer": "start",
    "T5Tokenizer": "end",
    ALBERT: "bert",
    "MT5Tokenizer": "end",
    "XLMRobertaTokenizer": "roberta",
    **dict.fromkeys(LANGUAGE_CODES, "end"),  # and a language: see `tokenizers.mbart`
}
T5_CLASSES = ("T5Tokenizer", "MT5Tokenizer")
FAIRSEQ_CLASSES = ("XLMRobertaTokenizer", *LANGUAGE_CODES)
FILE_NAMES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
THREADS = -1  # as many as there are
BY_MODEL = "model"
# Key of tokenizer_config.json in files written here: the space before a text is as the model says,
# though the class, which makes transformers put the same special tokens around, has other rules.
OWN_PREFIX = "tfllm_prefix"
# Unicode's White_Space, which a token with `lstrip` or `rstrip` takes along.
WHITE_SPACE = "[\\t-\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]*"


class Tokens(NamedTuple):
    """One text's tokens."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    word_ids: list[int | None]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class SentencePiece(NamedTokenizer):
    """A SentencePiece model, its special tokens recognised where they are written.

    A text is cut at the special tokens in it, and each part is tokenised as a text of its own, but
    for the space before it: see `prefix`. Make it with `from_proto` or
    `load_tokenizer`.
    """

    special_tokens: SpecialTokens
    row_template: RowTemplate
    model: bytes = field(repr=False)
    """ModelProto whose ids are the tokenizer's, `prefix` aside"""
    source: bytes = field(repr=False, compare=False)
    """the file as it was read"""
    file_name: str
    chat_template: str | None = field(repr=False)
    config: Mapping[str, Any] = field(repr=False, compare=False)
    vocabulary: list[str] = field(repr=False, compare=False)
    all_special_ids: frozenset[int] = field(repr=False, compare=False)
    _processor: Any = field(repr=False, compare=False)
    _ids: Mapping[str, int] = field(repr=False, compare=False)
    added: tuple[AddedToken, ...] = field(repr=False, compare=False)
    """tokens that are found in a text before the model sees it"""
    prefix: str = BY_MODEL
    """When a space is put before a part that has none: as the model says, for every part, or as
    `classes.prefix_space_scheme` says."""
    splits_special_tokens: bool = False
    """Whether special tokens written in a text are ordinary text."""
    target_template: RowTemplate | None = None

    kind = "sentencepiece"

    @property
    def matched_tokens(self) -> tuple[AddedToken, ...]:
        """Tokens at which a text is cut."""
        return self.added

    @property
    def matched_token_texts(self) -> tuple[str, ...]:
        """The texts of `matched_tokens`."""
        return tuple(token.content for token in self.matched_tokens)

    def kernel_model(self) -> bytes:
        """The ModelProto that the parts of a text are given to."""
        if self.prefix == BY_MODEL:
            return self.model
        return proto.without_dummy_prefix(
            proto.parse(self.model, self.file_name)
        ).SerializeToString()

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids. Raises TokenizerError for a negative id.

        Without special tokens it is one call of the package; with them, each part between two.
        """
        check_ids(ids)
        known = [int(i) for i in ids if i < self.vocabulary_size]
        if skip_special_tokens:
            known = [i for i in known if i not in self.all_special_ids]
        texts: list[str] = []
        part: list[int] = []
        for number in known:
            if number in self.all_special_ids:
                texts += [self._text(part, not texts), self.vocabulary[number]]
                part = []
            else:
                part.append(number)
        text = "".join([*texts, self._text(part, not texts)])
        return text.removeprefix(" ") if self.prefix in ("first", "always") else text

    def _text(self, part: list[int], first: bool) -> str:
        """The text of ids without special ones. A part that is not the first keeps the space that
        it begins with, which the package drops at the start of a text."""
        if first or not part or self.prefix != BY_MODEL:
            return self._processor.decode(part)
        number, letters = self._fence
        return self._processor.decode([number, *part])[letters:]

    @functools.cached_property
    def _fence(self) -> tuple[int, int]:
        """(id, characters) of a piece without a space."""
        model = proto.parse(self.model, self.file_name)
        return next(
            (number, len(entry.piece))
            for number, entry in enumerate(model.pieces)
            if entry.type in (proto.NORMAL, proto.USER_DEFINED) and proto.SPACE not in entry.piece
        )

    def save(self, directory: str | Path) -> None:
        """Writes the model as it was read, tokenizer_config.json and special_tokens_map.json."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / self.file_name).write_bytes(self.source)
        special = [self.vocabulary[number] for number in sorted(self.all_special_ids)]
        size = len(proto.parse(self.source, self.file_name).pieces)
        further = {
            number: token
            for token in self.added
            if (number := self._ids[token.content]) >= size or not token.plain
        }
        tokenizer_config.write_tokenizer_config(
            folder,
            self.special_tokens,
            special,
            self.config,
            self.chat_template,
            dict(sorted(further.items())),
        )

    def graph(self, profile: str = "reference") -> Any:
        """The same tokenizer as TensorFlow ops."""
        from tfllm.tokenizers.graph.sentencepiece import SentencePieceGraph

        return SentencePieceGraph(self, profile)

    def _pattern(self) -> re.Pattern[str]:
        tokens = [
            token
            for token in self.matched_tokens
            if not (token.special and self.splits_special_tokens)
        ]
        tokens.sort(key=lambda token: len(token.content), reverse=True)
        texts = [
            (WHITE_SPACE if token.lstrip else "")
            + re.escape(token.content)
            + (WHITE_SPACE if token.rstrip else "")
            for token in tokens
        ]
        return re.compile(f"({'|'.join(texts)})" if texts else "(?!)()")

    def _parts(self, texts: Sequence[str]) -> list[list[str]]:
        """Each text cut at the tokens in it, which stand at the odd places."""
        pattern = self._pattern()
        return [pattern.split(replace_surrogates(text)) for text in texts]

    def _given(self, part: str, place: int) -> str:
        """A part of a text as the package takes it."""
        spaced = self.prefix == "always" or self.prefix == "first" and place == 0
        if not spaced or not part or part[0] in (" ", proto.SPACE):
            return part
        return " " + part

    def _id_of(self, part: str) -> int:
        """The id of a token, which may have white space around it."""
        found = self._ids.get(part)
        return (
            self._ids[re.sub(f"^{WHITE_SPACE}|{WHITE_SPACE}$", "", part)]
            if found is None
            else found
        )

    def _split(self, texts: Sequence[str]) -> list[Any]:
        return [self._tokens(parts) for parts in self._parts(texts)]

    def _split_ids(self, texts: Sequence[str]) -> list[list[int]]:
        rows = self._parts(texts)
        given = [
            self._given(part, place)
            for row in rows
            for place, part in enumerate(row)
            if place % 2 == 0
        ]
        ids, found = [], iter(self._encoded(given))
        for row in rows:
            ids.append(
                [
                    number
                    for place, part in enumerate(row)
                    for number in ([self._id_of(part)] if place % 2 else next(found))
                ]
            )
        return ids

    def _encoded(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of texts in which no special token is looked for."""
        return self._processor.encode(list(texts), num_threads=THREADS)

    def _number(self, piece: str, number: int) -> int:
        """The id of a piece that has this number in the model."""
        return number

    def _tokens(self, parts: Sequence[str]) -> Tokens:
        """Texts and, at the odd places, special tokens, to the tokens of all."""
        row = Tokens([], [], [])
        begin, word = 0, -1
        for place, part in enumerate(parts):
            if place % 2:
                word += 1
                row.ids.append(self._id_of(part))
                row.offsets.append((begin, begin + len(part)))
                row.word_ids.append(word)
            elif part:
                first = True
                given = self._given(part, place)
                shift = len(given) - len(part)
                for piece, own, start, stop in _pieces(self._processor, given):
                    word += first or piece.startswith(proto.SPACE)
                    first = False
                    row.ids.append(self._number(piece, own))
                    if self.prefix != BY_MODEL:  # as the `tokenizers` package counts them
                        start = max(start - shift, 0)
                        stop = max(stop - shift, start + 1)
                    row.offsets.append((begin + start, begin + stop))
                    row.word_ids.append(word)
            begin += len(part)
        return row


class SentencePieceJson(HFTokenizer):
    """BPE with byte fallback or a unigram model over text whose spaces are U+2581."""

    kind = "sentencepiece"

    def _split_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """By the same road as `encode`: the package's faster one gives other ids here and there."""
        return [list(tokens.ids) for tokens in self._split(texts)]

    def graph(self, profile: str = "reference") -> Any:
        """The same tokenizer as TensorFlow ops."""
        from tfllm.tokenizers.graph.sentencepiece_json import SentencePieceJsonGraph

        return SentencePieceJsonGraph(self, profile)


def load_sentencepiece(path: Path, settings: TokenizerConfig) -> SentencePiece:
    """From a `.model` file, ids arranged as the settings' tokenizer class has them."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read: {error.strerror}.") from None
    return from_proto(proto.parse(data, path), settings, path)


def from_proto(
    model: Any, settings: TokenizerConfig = TokenizerConfig(), path: Path = Path("tokenizer.model")
) -> SentencePiece:
    """A tokenizer from a ModelProto. Raises TokenizerError naming `path`."""
    source = model.SerializeToString()
    if settings.tokenizer_class or not path.name.startswith("sentencepiece.bpe"):
        settings = hf_classes.with_class_defaults(settings, "sentencepiece", path, False)
    else:
        settings = settings.of_class(FAIRSEQ_CLASSES[0])
        settings = hf_classes.with_class_defaults(settings, "sentencepiece", path, False)
    kind = settings.tokenizer_class
    _refuse_unknown(kind, settings, model.trainer_spec.model_type == proto.UNIGRAM, path)
    arranged = model
    if kind in FAIRSEQ_CLASSES:
        arranged = proto.to_fairseq_ids(model, path, LANGUAGE_CODES.get(kind, ()))
    arranged = proto.append_pieces(arranged, _added(arranged, settings, kind, path), path)
    table = {entry.piece: number for number, entry in enumerate(arranged.pieces)}
    controls = [
        entry.piece for entry in arranged.pieces if entry.type in (proto.CONTROL, proto.UNKNOWN)
    ]
    if len(table) != len(arranged.pieces):
        raise TokenizerError(f"{path}: the model has a piece twice.")
    names = _names(arranged, settings, controls)
    template = _row_template(kind, names, table, settings, path)
    found = {token: AddedToken(token) for token in (*controls, *names.tokens())}
    found |= {token.content: token for token in settings.special_tokens()}
    found |= {
        token.content: replace(token, special=token.special or token.content in found)
        for token in settings.added_tokens.values()
    }
    added = [token for token in found.values() if token.content in table]
    # A unigram model of Llama's class is read as the package reads it, as by transformers 4.
    bpe = model.trainer_spec.model_type == proto.BPE
    by_class = kind in hf_classes.LLAMA and bpe and OWN_PREFIX not in settings.config
    prefix = hf_classes.prefix_space_scheme(settings) if by_class else BY_MODEL
    made = arranged if prefix == BY_MODEL else proto.without_dummy_prefix(arranged)
    return SentencePiece(
        special_tokens=names,
        row_template=template,
        model=arranged.SerializeToString(),
        source=source,
        file_name=path.name if path.name in FILE_NAMES else FILE_NAMES[0],
        chat_template=settings.chat_template,
        config={**settings.own_config(), **({} if kind else _class_of(template))},
        vocabulary=[entry.piece for entry in arranged.pieces],
        all_special_ids=frozenset(table[token.content] for token in added if token.special),
        _processor=make_processor(made, path),
        _ids=table,
        added=tuple(sorted(added, key=lambda token: table[token.content])),
        prefix=prefix,
        splits_special_tokens=settings.splits_special_tokens,
    )


def _refuse_unknown(kind: str, settings: TokenizerConfig, unigram: bool, path: Path) -> None:
    """Raises TokenizerError for settings that a `.model` file alone does not carry out."""
    config = settings.config
    if kind == ALBERT and (config.get("do_lower_case", True) or not config.get("keep_accents")):
        raise TokenizerError(
            f"{path}: ALBERT lowers letters and strips accents before SentencePiece, which is not "
            "in the .model file. Use a directory with its tokenizer.json."
        )
    if settings.splits_special_tokens and unigram:
        raise TokenizerError(
            f"{path}: 'split_special_tokens' is not known for a unigram model. Use a directory "
            "with its tokenizer.json."
        )
    if kind == "XLMRobertaTokenizer" and config.get("add_prefix_space") is False:
        raise TokenizerError(
            f"{path}: 'add_prefix_space' false is not known beside a .model file. Use a directory "
            "with its tokenizer.json."
        )
    if (config.get("sp_model_kwargs") or {}).get("enable_sampling"):
        raise TokenizerError(
            f"{path}: 'sp_model_kwargs' asks for another split at random each time, which is not "
            "known here. Remove 'enable_sampling'."
        )
    usual = hf_classes.ROBERTA_TOKENS.items() if kind in FAIRSEQ_CLASSES else ()
    for key, text in usual:
        if (entry := settings.named.get(key)) is not None and content(entry) != text:
            raise TokenizerError(
                f"{path}: '{key}' is {content(entry)!r}, and beside a .model file a "
                f"{kind} is only known with {text!r}. Use a directory with its tokenizer.json."
            )
    for token in settings.added_tokens.values():
        if token.single_word:
            raise TokenizerError(
                f"{path}: the added token '{token.content}' has single_word set, which is not "
                "known beside a .model file. Use a directory with its tokenizer.json."
            )


def _pieces(processor: Any, text: str) -> Iterator[tuple[str, int, int, int]]:
    """Piece, id, start and end in code points; the package's newer versions name this otherwise."""
    if hasattr(processor, "EncodeAsOffsetMapping"):
        found = processor.encode(text, return_type="offset_mapping")
        for piece, number, offsets in zip(
            found["pieces"], found["ids"], found["offsets"], strict=True
        ):
            yield piece, number, *offsets
    else:
        for entry in processor.encode(text, out_type="immutable_proto").pieces:
            yield entry.piece, entry.id, entry.begin, entry.end


def _class_of(template: RowTemplate) -> dict[str, Any]:
    """Settings with which transformers and tfllm put the same special tokens around a text."""
    if template.prefix and template.suffix:
        return {"tokenizer_class": ALBERT, "do_lower_case": False, "keep_accents": True}
    return (
        {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, OWN_PREFIX: BY_MODEL}
        if template.prefix
        else {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}
    )


def make_processor(model: Any, path: Path) -> Any:
    from sentencepiece import SentencePieceProcessor

    try:
        return SentencePieceProcessor(model_proto=model.SerializeToString())
    except RuntimeError as error:
        raise TokenizerError(f"{path}: not a usable SentencePiece model: {error}") from None


def _names(model: Any, settings: TokenizerConfig, controls: list[str]) -> SpecialTokens:
    """As the settings name them, else as the model's own numbers do, else by their spelling."""
    names = settings.role_tokens(controls)
    spec = model.trainer_spec
    own = {
        "pad_token": spec.pad_id,
        "unk_token": spec.unk_id,
        "bos_token": spec.bos_id,
        "eos_token": spec.eos_id,
    }
    missing = {
        role: model.pieces[number].piece
        for role, number in own.items()
        if getattr(names, role) is None and 0 <= number < len(model.pieces)
    }
    return replace(names, **missing)


def _added(
    model: Any, settings: TokenizerConfig, kind: str, path: Path
) -> list[tuple[str, int, int]]:
    """Tokens that the settings have and the model lacks: text, id, type of piece."""
    known = {entry.piece: number for number, entry in enumerate(model.pieces)}
    special = {token.content for token in settings.special_tokens()}
    listed = {token.content: number for number, token in settings.added_tokens.items()}
    kinds = dict.fromkeys(_sentinels(settings, kind), proto.CONTROL)
    for added in settings.added_tokens.values():
        control = added.special or added.content in special
        kinds[added.content] = proto.CONTROL if control else proto.USER_DEFINED
    # Sentinels come first where nothing is said of them; then ids as given, then in order.
    places = {token: len(known) + place for place, token in enumerate(_sentinels(settings, kind))}
    found: dict[str, int] = {}
    for token, number in {**places, **listed}.items():
        if known.get(token, number) != number:
            raise TokenizerError(
                f"{path}: '{token}' has the id {known[token]}, and {ADDED_TOKENS_DECODER} or "
                f"{ADDED_TOKENS_FILE} gives it {number}. Use the files that belong together."
            )
        if token not in known:
            found[token] = number
    last = max([len(known) - 1, *found.values()])
    for token in (one.content for one in settings.special_tokens()):
        if token not in known and token not in found:
            last += 1
            found[token] = last
    return [(token, number, kinds.get(token, proto.CONTROL)) for token, number in found.items()]


def _sentinels(settings: TokenizerConfig, kind: str) -> list[str]:
    """T5's tokens for what was left out of a text, in the order of ids."""
    count = int(settings.config.get("extra_ids", T5_EXTRA_IDS)) if kind in T5_CLASSES else 0
    return [f"<extra_id_{count - 1 - place}>" for place in range(count)]


def _row_template(
    kind: str, names: SpecialTokens, table: Mapping[str, int], settings: TokenizerConfig, path: Path
) -> RowTemplate:
    start = table.get(names.bos_token or "")
    end = table.get(names.eos_token or "")
    kind = FORMS.get(kind, "")
    if not kind:
        encoder = names.bos_token == "[CLS]" and names.eos_token == "[SEP]"
        kind = "bert" if encoder else "start" if start is not None else "end"
    if kind == "start":
        adds_start = settings.config.get("add_bos_token", True) and start is not None
        adds_end = settings.config.get("add_eos_token", False) and end is not None
        before = (start,) if adds_start and start is not None else ()
        after = (end,) if adds_end and end is not None else ()
        between = (*after, *before)
        return RowTemplate(before, between, after, (0,) * len(after) + (1,) * len(before), 1)
    if kind == "end":
        after = () if end is None else (end,)
        return RowTemplate((), after, after, (0,) * len(after), 0)
    if start is None or end is None:
        raise TokenizerError(
            f"{path}: the model lacks the special tokens that begin and end a row."
        )
    if kind == "roberta":
        named = (settings.named.get(key) for key in ("bos_token", "eos_token"))
        start, end = (table.get(content(entry or "")) for entry in named)
        assert start is not None and end is not None  # the class names them
        return RowTemplate((start,), (end, end), (end,), (0, 0), 0)
    return bert_template(start, end)
