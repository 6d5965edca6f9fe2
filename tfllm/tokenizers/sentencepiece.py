"""SentencePiece models (`.model` files) over the `sentencepiece` package.

Source: Kudo and Richardson 2018, "SentencePiece"; Kudo 2018, "Subword regularization" (unigram).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from tfllm.errors import TokenizerError
from tfllm.tokenizers import config_files, proto
from tfllm.tokenizers.base import check_ids
from tfllm.tokenizers.config_files import Names, Settings
from tfllm.tokenizers.forms import Form, bert, scalars
from tfllm.tokenizers.languages import CODES
from tfllm.tokenizers.named import NamedTokenizer

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
    **dict.fromkeys(CODES, "end"),  # and a language: see `tokenizers.languages`
}
T5_CLASSES = ("T5Tokenizer", "MT5Tokenizer")
FAIRSEQ_CLASSES = ("XLMRobertaTokenizer", *CODES)
FILE_NAMES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
THREADS = -1  # as many as there are


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

    A text is cut at the special tokens in it, and each part is tokenised as a text of its own, as
    Hugging Face does ("legacy"). Make it with `from_proto` or `tfllm.tokenizers.files.load`.
    """

    names: Names
    row_form: Form
    model: bytes = field(repr=False)
    """ModelProto whose ids are the tokenizer's"""
    source: bytes = field(repr=False, compare=False)
    """the file as it was read"""
    file_name: str
    chat_template: str | None = field(repr=False)
    config: Mapping[str, Any] = field(repr=False, compare=False)
    vocabulary: list[str] = field(repr=False, compare=False)
    special_ids: frozenset[int] = field(repr=False, compare=False)
    _processor: Any = field(repr=False, compare=False)
    _ids: Mapping[str, int] = field(repr=False, compare=False)
    target_form: Form | None = None

    kind = "sentencepiece"

    @property
    def literal_tokens(self) -> tuple[str, ...]:
        """Tokens that are recognised as they are written."""
        return tuple(self.vocabulary[number] for number in sorted(self.special_ids))

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids. Raises TokenizerError for an id outside the vocabulary.

        Without special tokens it is one call of the package; with them, each part between two.
        """
        check_ids(ids, self.vocabulary_size)
        if skip_special_tokens:
            return self._processor.decode([int(i) for i in ids if i not in self.special_ids])
        texts: list[str] = []
        part: list[int] = []
        for number in ids:
            if number in self.special_ids:
                texts += [self._processor.decode(part), self.vocabulary[number]]
                part = []
            else:
                part.append(int(number))
        return "".join([*texts, self._processor.decode(part)])

    def save(self, directory: str | Path) -> None:
        """Writes the model as it was read, tokenizer_config.json and special_tokens_map.json."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / self.file_name).write_bytes(self.source)
        config_files.write(folder, self.names, self.literal_tokens, self.config, self.chat_template)

    def graph(self, profile: str = "reference") -> Any:
        """The same tokenizer as TensorFlow ops."""
        from tfllm.tokenizers.graph_sentencepiece import SentencePieceGraph

        return SentencePieceGraph(self, profile)

    def _pattern(self) -> re.Pattern[str]:
        literal = sorted(self.literal_tokens, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, literal))})" if literal else "(?!)()")

    def _split(self, texts: Sequence[str]) -> list[Any]:
        pattern = self._pattern()
        return [self._tokens(pattern.split(scalars(text))) for text in texts]

    def _split_ids(self, texts: Sequence[str]) -> list[list[int]]:
        pattern = self._pattern()
        parts = [pattern.split(scalars(text)) for text in texts]
        ids, found = [], iter(self._encoded([part for row in parts for part in row[::2]]))
        for row in parts:
            ids.append(
                [
                    number
                    for place, part in enumerate(row)
                    for number in ([self._ids[part]] if place % 2 else next(found))
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
                row.ids.append(self._ids[part])
                row.offsets.append((begin, begin + len(part)))
                row.word_ids.append(word)
            elif part:
                first = True
                for piece, own, start, stop in _pieces(self._processor, part):
                    word += first or piece.startswith(proto.SPACE)
                    first = False
                    row.ids.append(self._number(piece, own))
                    row.offsets.append((begin + start, begin + stop))
                    row.word_ids.append(word)
            begin += len(part)
        return row


def read(path: Path, settings: Settings) -> SentencePiece:
    """From a `.model` file, ids arranged as the settings' tokenizer class has them."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read: {error.strerror}.") from None
    return from_proto(proto.parse(data, path), settings, path)


def from_proto(
    model: Any, settings: Settings = Settings(), path: Path = Path("tokenizer.model")
) -> SentencePiece:
    """A tokenizer from a ModelProto. Raises TokenizerError naming `path`."""
    source = model.SerializeToString()
    kind = settings.tokenizer_class
    if kind not in FORMS and path.name.startswith("sentencepiece.bpe"):
        if kind:
            raise TokenizerError(
                f"{path}: how {kind} numbers the tokens is not known here; use a directory with "
                "its tokenizer.json."
            )
        kind = FAIRSEQ_CLASSES[0]
    if kind == ALBERT and settings.config.get("do_lower_case", True):
        raise TokenizerError(
            f"{path}: ALBERT lowers letters and strips accents before SentencePiece, which is not "
            "in the .model file. Use a directory with its tokenizer.json."
        )
    arranged = model
    if kind in FAIRSEQ_CLASSES:
        arranged = proto.fairseq(model, path, CODES.get(kind, ()))
    arranged = proto.with_added(arranged, _added(arranged, settings, kind), path)
    table = {entry.piece: number for number, entry in enumerate(arranged.pieces)}
    controls = [
        entry.piece for entry in arranged.pieces if entry.type in (proto.CONTROL, proto.UNKNOWN)
    ]
    if len(table) != len(arranged.pieces):
        raise TokenizerError(f"{path}: the model has a piece twice.")
    names = _names(arranged, settings, controls)
    form = _form(kind, names, table, settings, path)
    special = [token for token in (*controls, *names.present()) if token in table]
    return SentencePiece(
        names=names,
        row_form=form,
        model=arranged.SerializeToString(),
        source=source,
        file_name=path.name if path.name in FILE_NAMES else FILE_NAMES[0],
        chat_template=settings.chat_template,
        config={**({} if kind else _class_of(form)), **settings.config},
        vocabulary=[entry.piece for entry in arranged.pieces],
        special_ids=frozenset(table[token] for token in special),
        _processor=processor_of(arranged, path),
        _ids=table,
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


def _class_of(form: Form) -> dict[str, Any]:
    """Settings with which Hugging Face and `read` put the same special tokens around a text."""
    if form.start and form.end:
        return {"tokenizer_class": ALBERT, "do_lower_case": False, "keep_accents": True}
    return (
        {"tokenizer_class": "LlamaTokenizer"}
        if form.start
        else {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}
    )


def processor_of(model: Any, path: Path) -> Any:
    from sentencepiece import SentencePieceProcessor

    try:
        return SentencePieceProcessor(model_proto=model.SerializeToString())
    except RuntimeError as error:
        raise TokenizerError(f"{path}: not a usable SentencePiece model: {error}") from None


def _names(model: Any, settings: Settings, controls: list[str]) -> Names:
    """As the settings name them, else as the model's own numbers do, else by their spelling."""
    names = settings.names(controls)
    spec = model.trainer_spec
    own = {"pad": spec.pad_id, "unknown": spec.unk_id, "start": spec.bos_id, "end": spec.eos_id}
    missing = {
        role: model.pieces[number].piece
        for role, number in own.items()
        if getattr(names, role) is None and 0 <= number < len(model.pieces)
    }
    return replace(names, **missing)


def _added(model: Any, settings: Settings, kind: str) -> list[tuple[str, int]]:
    """Tokens that the settings have and the model lacks, with their ids."""
    size = len(model.pieces)
    known = {entry.piece for entry in model.pieces}
    listed = settings.config.get("added_tokens_decoder")
    if isinstance(listed, dict):
        found = [(config_files.content(entry), int(number)) for number, entry in listed.items()]
        return [entry for entry in found if entry[0] not in known and entry[1] >= size]
    extra = [token for token in settings.added() if token not in known]
    if kind in T5_CLASSES:
        count = int(settings.config.get("extra_ids", T5_EXTRA_IDS))
        extra = [f"<extra_id_{count - 1 - place}>" for place in range(count)]
    named = [name for name in settings.names(()).present() if name not in known]
    return [(token, size + place) for place, token in enumerate(dict.fromkeys([*extra, *named]))]


def _form(
    kind: str, names: Names, table: Mapping[str, int], settings: Settings, path: Path
) -> Form:
    start = table.get(names.start or "")
    end = table.get(names.end or "")
    kind = FORMS.get(kind, "")
    if not kind:
        encoder = names.start == "[CLS]" and names.end == "[SEP]"
        kind = "bert" if encoder else "start" if start is not None else "end"
    if kind == "start":
        adds_start = settings.config.get("add_bos_token", True) and start is not None
        adds_end = settings.config.get("add_eos_token", False) and end is not None
        before = (start,) if adds_start and start is not None else ()
        after = (end,) if adds_end and end is not None else ()
        between = (*after, *before)
        return Form(before, between, after, (0,) * len(after) + (1,) * len(before), 1)
    if kind == "end":
        after = () if end is None else (end,)
        return Form((), after, after, (0,) * len(after), 0)
    if start is None or end is None:
        raise TokenizerError(
            f"{path}: the model lacks the special tokens that begin and end a row."
        )
    if kind == "roberta":
        return Form((start,), (end, end), (end,), (0, 0), 0)
    return bert(start, end)
