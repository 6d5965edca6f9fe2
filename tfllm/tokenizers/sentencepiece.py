"""SentencePiece models (`.model` files) over the `sentencepiece` package.

Source: Kudo and Richardson 2018, "SentencePiece"; Kudo 2018, "Subword regularization" (unigram).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfllm.errors import TokenizerError
from tfllm.tokenizers import hf_classes, tokenizer_config
from tfllm.tokenizers import sentencepiece_proto as proto
from tfllm.tokenizers.base import (
    InGraphTokenizer,
    RowTemplate,
    bert_template,
    check_ids,
    roberta_template,
)
from tfllm.tokenizers.hf_tokenizers import HFTokenizer
from tfllm.tokenizers.mbart import LANGUAGE_CODES
from tfllm.tokenizers.rows import NamedTokenizer, TextTokens, TokenSequence, replace_surrogates
from tfllm.tokenizers.sentencepiece_internals import ModelProto, encode_with_offsets
from tfllm.tokenizers.tokenizer_config import (
    ADDED_TOKENS_DECODER,
    ADDED_TOKENS_FILE,
    AddedToken,
    SpecialTokens,
    TokenizerConfig,
    content,
)

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

    from tfllm.tokenizers.graph.sentencepiece_json import SentencePieceJsonGraph

T5_EXTRA_IDS = 100
# Hugging Face's class -> the kind of rows that it builds.
ROW_KINDS = {
    "LlamaTokenizer": "start",
    "GemmaTokenizer": "start",
    "T5Tokenizer": "end",
    hf_classes.ALBERT: "bert",
    "MT5Tokenizer": "end",
    **dict.fromkeys(hf_classes.XLMR, "roberta"),
    **dict.fromkeys(LANGUAGE_CODES, "end"),  # and a language: see `tokenizers.mbart`
}
T5_CLASSES = ("T5Tokenizer", "MT5Tokenizer")
FAIRSEQ_CLASSES = (*hf_classes.XLMR, *LANGUAGE_CODES)
FILE_NAMES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
THREADS = -1  # one for each core
BY_MODEL = "model"
# Key of tokenizer_config.json in files written here: the space before a text is as the model says,
# though the class, with which transformers puts the same special tokens around, has other rules.
OWN_PREFIX = "tfllm_prefix"
# Unicode's White_Space, which a token with `lstrip` or `rstrip` includes.
WHITE_SPACE = "[\\t-\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]*"


@dataclass(frozen=True)
class SentencePiece(NamedTokenizer):
    """A SentencePiece model, which matches special tokens in texts.

    A text is split at the special tokens in it, and each part is tokenized as a text of its own,
    except for the space before it: see `prefix`. Created by `from_proto` or `load_tokenizer`.
    """

    special_tokens: SpecialTokens
    row_template: RowTemplate
    model: bytes = field(repr=False)
    """The serialized ModelProto with the tokenizer's ids; it does not reflect `prefix`."""
    source: bytes = field(repr=False, compare=False)
    """The contents of the file."""
    file_name: str
    chat_template: str | None = field(repr=False)
    config: Mapping[str, Any] = field(repr=False, compare=False)
    vocabulary: list[str] = field(repr=False, compare=False)
    all_special_ids: frozenset[int] = field(repr=False, compare=False)
    _processor: SentencePieceProcessor = field(repr=False, compare=False)
    _ids: Mapping[str, int] = field(repr=False, compare=False)
    added: tuple[AddedToken, ...] = field(repr=False, compare=False)
    """Tokens that are matched in a text before the model tokenizes it."""
    prefix: str = BY_MODEL
    """When a space is put before a part that has none: as the model says (BY_MODEL), or as
    `hf_classes.prefix_space_scheme` says."""
    splits_special_tokens: bool = False
    """Whether special tokens written in a text are ordinary text."""
    target_template: RowTemplate | None = None

    kind = "sentencepiece"

    @property
    def matched_tokens(self) -> tuple[AddedToken, ...]:
        """The tokens at which a text is split."""
        return self.added

    @property
    def matched_token_texts(self) -> tuple[str, ...]:
        """The texts of `matched_tokens`."""
        return tuple(token.content for token in self.matched_tokens)

    def kernel_model(self) -> bytes:
        """Return the serialized ModelProto that tokenizes the parts of a text."""
        if self.prefix == BY_MODEL:
            return self.model
        return proto.without_dummy_prefix(
            proto.parse(self.model, self.file_name)
        ).SerializeToString()

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Decode ids to text: see `base.Tokenizer`."""
        check_ids(ids)
        known = [int(token_id) for token_id in ids if token_id < self.vocabulary_size]
        if skip_special_tokens:
            known = [token_id for token_id in known if token_id not in self.all_special_ids]
        texts: list[str] = []
        part: list[int] = []
        for token_id in known:
            if token_id in self.all_special_ids:
                texts += [self._decode_part(part, not texts), self.vocabulary[token_id]]
                part = []
            else:
                part.append(token_id)
        text = "".join([*texts, self._decode_part(part, not texts)])
        return text.removeprefix(" ") if self.prefix in ("first", "always") else text

    def _decode_part(self, part: list[int], first: bool) -> str:
        """Decode ids without special ones, keeping the first space of all but the first part."""
        if first or not part or self.prefix != BY_MODEL:
            return self._processor.decode(part)
        # The package drops the space of the first piece of a text.
        token_id, length = self._solid_piece
        return self._processor.decode([token_id, *part])[length:]

    @functools.cached_property
    def _solid_piece(self) -> tuple[int, int]:
        """(id, characters) of a piece without a space."""
        model = proto.parse(self.model, self.file_name)
        return next(
            (token_id, len(entry.piece))
            for token_id, entry in enumerate(model.pieces)
            if entry.type in (proto.NORMAL, proto.USER_DEFINED) and proto.SPACE not in entry.piece
        )

    def save(self, directory: str | Path) -> None:
        """Write the unchanged model, tokenizer_config.json and special_tokens_map.json."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / self.file_name).write_bytes(self.source)
        special = [self.vocabulary[token_id] for token_id in sorted(self.all_special_ids)]
        size = len(proto.parse(self.source, self.file_name).pieces)
        added = {
            token_id: token
            for token in self.added
            if (token_id := self._ids[token.content]) >= size or not token.plain
        }
        tokenizer_config.write_tokenizer_config(
            folder,
            self.special_tokens,
            special,
            self.config,
            self.chat_template,
            dict(sorted(added.items())),
        )

    def graph(self, profile: str = "reference") -> InGraphTokenizer:
        """Build the same tokenizer as TensorFlow ops: see `base.Tokenizer`."""
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
        """Each text split at the tokens in it, which have the odd indices."""
        pattern = self._pattern()
        return [pattern.split(replace_surrogates(text)) for text in texts]

    def _add_prefix(self, part: str, index: int) -> str:
        """A part of a text with the space that is put before it."""
        spaced = self.prefix == "always" or self.prefix == "first" and index == 0
        if not spaced or not part or part[0] in (" ", proto.SPACE):
            return part
        return " " + part

    def _added_token_id(self, part: str) -> int:
        """The id of a matched token, which may have white space around it."""
        token_id = self._ids.get(part)
        if token_id is None:
            return self._ids[re.sub(f"^{WHITE_SPACE}|{WHITE_SPACE}$", "", part)]
        return token_id

    def _tokenize(self, texts: Sequence[str]) -> Sequence[TokenSequence]:
        return [self._tokenize_parts(parts) for parts in self._parts(texts)]

    def _tokenize_ids(self, texts: Sequence[str]) -> list[list[int]]:
        rows = self._parts(texts)
        plain = [
            self._add_prefix(part, index)
            for row in rows
            for index, part in enumerate(row)
            if index % 2 == 0
        ]
        plain_ids = iter(self._encode_plain(plain))
        return [
            [
                token_id
                for index, part in enumerate(row)
                for token_id in ([self._added_token_id(part)] if index % 2 else next(plain_ids))
            ]
            for row in rows
        ]

    def _encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode texts without matching special tokens."""
        return self._processor.encode(list(texts), num_threads=THREADS)

    def _to_token_id(self, piece: str, piece_id: int) -> int:
        """The token id of a piece that has the id `piece_id` in the model."""
        return piece_id

    def _tokenize_parts(self, parts: Sequence[str]) -> TextTokens:
        """Tokenize texts and, at the odd indices, special tokens."""
        row = TextTokens([], [], [])
        begin, word = 0, -1
        for index, part in enumerate(parts):
            if index % 2:
                word += 1
                row.ids.append(self._added_token_id(part))
                row.offsets.append((begin, begin + len(part)))
                row.word_ids.append(word)
            elif part:
                first = True
                text = self._add_prefix(part, index)
                shift = len(text) - len(part)
                for piece, piece_id, start, end in encode_with_offsets(self._processor, text):
                    word += first or piece.startswith(proto.SPACE)
                    first = False
                    row.ids.append(self._to_token_id(piece, piece_id))
                    if self.prefix != BY_MODEL:  # as the `tokenizers` package counts them
                        start = max(start - shift, 0)
                        end = max(end - shift, start + 1)
                    row.offsets.append((begin + start, begin + end))
                    row.word_ids.append(word)
            begin += len(part)
        return row


class SentencePieceJson(HFTokenizer):
    """BPE with byte fallback or a unigram model over text whose spaces are U+2581."""

    kind = "sentencepiece"

    def _tokenize_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """As `encode` does: the package's faster function sometimes gives other ids."""
        return [list(tokens.ids) for tokens in self._tokenize(texts)]

    def graph(self, profile: str = "reference") -> SentencePieceJsonGraph:
        """Build the same tokenizer as TensorFlow ops: see `base.Tokenizer`."""
        from tfllm.tokenizers.graph.sentencepiece_json import SentencePieceJsonGraph

        return SentencePieceJsonGraph(self, profile)


def load_sentencepiece(path: Path, settings: TokenizerConfig) -> SentencePiece:
    """Load a `.model` file, with the ids of the tokenizer class in the settings.

    Args:
        path: The file.
        settings: The files beside it.

    Raises:
        TokenizerError: The file is not usable, or contradicts the settings.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read: {error.strerror}.") from None
    return from_proto(proto.parse(data, path), settings, path)


def from_proto(
    model: ModelProto,
    settings: TokenizerConfig = TokenizerConfig(),
    path: Path = Path("tokenizer.model"),
) -> SentencePiece:
    """Create a tokenizer from a ModelProto.

    Args:
        model: The message.
        settings: The files beside it.
        path: Its file, for the file name and for messages.

    Raises:
        TokenizerError: The model is not usable, or contradicts the settings.
    """
    source = model.SerializeToString()
    if settings.tokenizer_class or not path.name.startswith("sentencepiece.bpe"):
        settings = hf_classes.with_class_defaults(settings, "sentencepiece", path, False)
    else:
        settings = settings.of_class(FAIRSEQ_CLASSES[0])
        settings = hf_classes.with_class_defaults(settings, "sentencepiece", path, False)
    kind = settings.tokenizer_class
    _check_supported(kind, settings, model.trainer_spec.model_type == proto.UNIGRAM, path)
    full = model
    if kind in FAIRSEQ_CLASSES:
        first = proto.CAMEMBERT if kind == "CamembertTokenizer" else proto.FAIRSEQ
        full = proto.to_fairseq_ids(model, path, first, LANGUAGE_CODES.get(kind, ()))
    full = proto.append_pieces(full, _missing_tokens(full, settings, kind, path), path)
    ids = {entry.piece: token_id for token_id, entry in enumerate(full.pieces)}
    controls = [
        entry.piece for entry in full.pieces if entry.type in (proto.CONTROL, proto.UNKNOWN)
    ]
    if len(ids) != len(full.pieces):
        raise TokenizerError(f"{path}: the model has a piece twice.")
    names = _special_tokens(full, settings, controls)
    template = _row_template(kind, names, ids, settings, path)
    tokens = {token: AddedToken(token) for token in (*controls, *names.tokens())}
    tokens |= {token.content: token for token in settings.special_tokens()}
    tokens |= {
        token.content: replace(token, special=token.special or token.content in tokens)
        for token in settings.added_tokens.values()
    }
    added = [token for token in tokens.values() if token.content in ids]
    # A unigram model of Llama's class is read as the package reads it, as by transformers 4.
    bpe = model.trainer_spec.model_type == proto.BPE
    by_class = kind in hf_classes.LLAMA and bpe and OWN_PREFIX not in settings.config
    prefix = hf_classes.prefix_space_scheme(settings) if by_class else BY_MODEL
    kernel_model = full if prefix == BY_MODEL else proto.without_dummy_prefix(full)
    return SentencePiece(
        special_tokens=names,
        row_template=template,
        model=full.SerializeToString(),
        source=source,
        file_name=path.name if path.name in FILE_NAMES else FILE_NAMES[0],
        chat_template=settings.chat_template,
        config={**settings.own_config(), **({} if kind else _class_config(template))},
        vocabulary=[entry.piece for entry in full.pieces],
        all_special_ids=frozenset(ids[token.content] for token in added if token.special),
        _processor=create_processor(kernel_model, path),
        _ids=ids,
        added=tuple(sorted(added, key=lambda token: ids[token.content])),
        prefix=prefix,
        splits_special_tokens=settings.splits_special_tokens,
    )


def _check_supported(kind: str, settings: TokenizerConfig, unigram: bool, path: Path) -> None:
    """Refuse settings that are not implemented beside a `.model` file."""
    config = settings.config
    as_written = not config.get("do_lower_case", True) and config.get("keep_accents")
    if kind == hf_classes.ALBERT and not as_written:
        raise TokenizerError(
            f"{path}: ALBERT lowers letters and strips accents before SentencePiece, which is not "
            "in the .model file. Use a directory with its tokenizer.json."
        )
    if kind in hf_classes.XLMR and not unigram:
        raise TokenizerError(
            f"{path}: the tokenizer's class {kind} reads unigram models, and this is a BPE model. "
            "Use the files that belong together."
        )
    if settings.splits_special_tokens and unigram:
        raise TokenizerError(
            f"{path}: 'split_special_tokens' is not known for a unigram model. Use a directory "
            "with its tokenizer.json."
        )
    if kind in hf_classes.XLMR and config.get("add_prefix_space") is False:
        raise TokenizerError(
            f"{path}: 'add_prefix_space' false is not known beside a .model file. Use a directory "
            "with its tokenizer.json."
        )
    if (config.get("sp_model_kwargs") or {}).get("enable_sampling"):
        raise TokenizerError(
            f"{path}: 'sp_model_kwargs' turns on subword regularization, which is not supported. "
            "Remove 'enable_sampling'."
        )
    expected = hf_classes.ROBERTA_TOKENS.items() if kind in FAIRSEQ_CLASSES else ()
    for key, text in expected:
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


def _class_config(template: RowTemplate) -> dict[str, Any]:
    """Settings with which transformers and tfllm put the same special tokens around a text."""
    if template.prefix and template.suffix:
        return {"tokenizer_class": hf_classes.ALBERT, "do_lower_case": False, "keep_accents": True}
    return (
        {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, OWN_PREFIX: BY_MODEL}
        if template.prefix
        else {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}
    )


def create_processor(model: ModelProto, path: Path) -> SentencePieceProcessor:
    """Create the package's processor of a model.

    Args:
        model: The message.
        path: Its file, for messages.

    Raises:
        TokenizerError: The package cannot use the model.
    """
    from sentencepiece import SentencePieceProcessor

    try:
        return SentencePieceProcessor(model_proto=model.SerializeToString())
    except RuntimeError as error:
        raise TokenizerError(f"{path}: not a usable SentencePiece model: {error}") from None


def _special_tokens(
    model: ModelProto, settings: TokenizerConfig, controls: list[str]
) -> SpecialTokens:
    """The special tokens that the settings name, else by their spelling, else by the model."""
    names = settings.role_tokens(controls)
    spec = model.trainer_spec
    ids = {
        "pad_token": spec.pad_id,
        "unk_token": spec.unk_id,
        "bos_token": spec.bos_id,
        "eos_token": spec.eos_id,
    }
    missing = {
        role: model.pieces[token_id].piece
        for role, token_id in ids.items()
        if getattr(names, role) is None and 0 <= token_id < len(model.pieces)
    }
    return replace(names, **missing)


def _missing_tokens(
    model: ModelProto, settings: TokenizerConfig, kind: str, path: Path
) -> list[tuple[str, int, int]]:
    """Tokens that the settings have and the model lacks: text, id, type of piece."""
    known = {entry.piece: token_id for token_id, entry in enumerate(model.pieces)}
    special = {token.content for token in settings.special_tokens()}
    listed = {token.content: token_id for token_id, token in settings.added_tokens.items()}
    kinds = dict.fromkeys(_sentinels(settings, kind), proto.CONTROL)
    for added in settings.added_tokens.values():
        control = added.special or added.content in special
        kinds[added.content] = proto.CONTROL if control else proto.USER_DEFINED
    # Sentinels come first where no file lists them; then tokens with ids, then all others.
    sentinels = {token: len(known) + i for i, token in enumerate(_sentinels(settings, kind))}
    missing: dict[str, int] = {}
    for token, token_id in {**sentinels, **listed}.items():
        if known.get(token, token_id) != token_id:
            raise TokenizerError(
                f"{path}: '{token}' has the id {known[token]}, and {ADDED_TOKENS_DECODER} or "
                f"{ADDED_TOKENS_FILE} gives it {token_id}. Use the files that belong together."
            )
        if token not in known:
            missing[token] = token_id
    last = max([len(known) - 1, *missing.values()])
    for token in (each.content for each in settings.special_tokens()):
        if token not in known and token not in missing:
            last += 1
            missing[token] = last
    return [
        (token, token_id, kinds.get(token, proto.CONTROL)) for token, token_id in missing.items()
    ]


def _sentinels(settings: TokenizerConfig, kind: str) -> list[str]:
    """T5's sentinel tokens, which stand for removed spans, in the order of ids."""
    count = int(settings.config.get("extra_ids", T5_EXTRA_IDS)) if kind in T5_CLASSES else 0
    return [f"<extra_id_{count - 1 - index}>" for index in range(count)]


def _row_template(
    kind: str, names: SpecialTokens, ids: Mapping[str, int], settings: TokenizerConfig, path: Path
) -> RowTemplate:
    start = ids.get(names.bos_token or "")
    end = ids.get(names.eos_token or "")
    kind = ROW_KINDS.get(kind, "")
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
        start, end = (ids.get(content(entry or "")) for entry in named)
        assert start is not None and end is not None  # the class names them
        return roberta_template(start, end)
    return bert_template(start, end)
