"""Marian's tokenizers: a SentencePiece model for sources, one for targets, and a table of ids.

A piece of either model has the id that `vocab.json` gives it; a piece that is not there is unknown.

Source: Junczys-Dowmunt et al. 2018, "Marian"; Tiedemann and Thottingal 2020, "OPUS-MT".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tfllm.errors import TokenizerError
from tfllm.tokenizers import sentencepiece_proto as proto
from tfllm.tokenizers import tokenizer_config
from tfllm.tokenizers.base import InGraphTokenizer, RowTemplate, check_ids
from tfllm.tokenizers.sentencepiece import THREADS, SentencePiece, create_processor
from tfllm.tokenizers.sentencepiece_internals import ModelProto
from tfllm.tokenizers.tokenizer_config import (
    AddedToken,
    SpecialTokens,
    TokenizerConfig,
    content,
    read_json,
)

SOURCE, TARGET, IDS, TARGET_IDS = "source.spm", "target.spm", "vocab.json", "target_vocab.json"
FILES = (SOURCE, TARGET, IDS, TARGET_IDS)
WHITE_SPACE = " \t\n\v\f\r"  # what tf.strings.strip strips, too


@dataclass(frozen=True)
class Marian(SentencePiece):
    """The tokenizer of sources or of targets.

    Language codes (`>>fr<<`) and special tokens are matched literally. Created by `load_marian`.
    """

    table: str = field(repr=False, default="")
    """The contents of the table of ids."""
    targets: Marian | None = field(repr=False, default=None)
    """The tokenizer of targets; None where this is that tokenizer."""

    @property
    def target(self) -> Marian:
        """The tokenizer of targets."""
        return self.targets or self

    @property
    def matched_tokens(self) -> tuple[AddedToken, ...]:
        """The tokens at which a text is split."""
        return (*self.added, *(AddedToken(code) for code in language_codes(self.vocabulary)))

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Decode ids, of sources or targets, to text: see `base.Tokenizer`."""
        check_ids(ids)
        texts: list[str] = []
        part: list[str] = []
        for token_id in ids:
            if token_id >= self.vocabulary_size:
                continue
            if token_id not in self.all_special_ids:
                part.append(self.vocabulary[token_id])
            elif not skip_special_tokens:
                texts += [self._processor.decode_pieces(part), self.vocabulary[token_id], " "]
                part = []
        text = "".join([*texts, self._processor.decode_pieces(part)])
        return text.replace(proto.SPACE, " ").strip(WHITE_SPACE)

    def save(self, directory: str | Path) -> None:
        """Write both models, the tables of ids and the settings."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SOURCE).write_bytes(self.source)
        (folder / TARGET).write_bytes(self.target.source)
        (folder / IDS).write_text(self.table, encoding="utf-8", newline="\n")
        if self.target.table != self.table:
            (folder / TARGET_IDS).write_text(self.target.table, encoding="utf-8", newline="\n")
        tokenizer_config.write_tokenizer_config(
            folder, self.special_tokens, self.special_tokens.tokens(), self.config, None
        )

    def graph(self, profile: str = "reference") -> InGraphTokenizer:
        """Build the same tokenizer as TensorFlow ops: see `base.Tokenizer`."""
        from tfllm.tokenizers.graph.marian import MarianGraph

        return MarianGraph(self, profile)

    def _encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        rows = self._processor.encode(list(texts), out_type=str, num_threads=THREADS)
        return [[self._to_token_id(piece, 0) for piece in row] for row in rows]

    def _to_token_id(self, piece: str, piece_id: int) -> int:
        token_id = self._ids.get(piece, self.unk_token_id)
        assert token_id is not None, "Marian's vocabularies have an unknown token"
        return token_id


def language_codes(vocabulary: Sequence[str]) -> list[str]:
    """Return the language codes in a vocabulary, such as `>>fr<<`."""
    return [token for token in vocabulary if token.startswith(">>") and token.endswith("<<")]


def load_marian(path: Path, settings: TokenizerConfig) -> Marian:
    """Load the tokenizer of sources and, as its `target`, that of targets.

    Args:
        path: The `source.spm`; the other files are beside it.
        settings: The files beside it.

    Raises:
        TokenizerError: A file is missing or not usable.
    """
    folder = path.parent
    separate = bool(settings.config.get("separate_vocabs"))
    for name in (TARGET, IDS, *((TARGET_IDS,) if separate else ())):
        if not (folder / name).is_file():
            raise TokenizerError(
                f"'{folder}' has {path.name} and no {name}. Copy {', '.join(FILES[:3])} of one "
                "checkpoint into it."
            )
    models = [proto.parse((folder / name).read_bytes(), folder / name) for name in (SOURCE, TARGET)]
    tables = [read_json(folder / name) for name in (IDS, TARGET_IDS if separate else IDS)]
    return from_protos(models, tables, settings, folder)


def from_protos(
    models: Sequence[ModelProto],
    tables: Sequence[Mapping[str, int]],
    settings: TokenizerConfig = TokenizerConfig(),
    folder: Path = Path(),
) -> Marian:
    """Create the tokenizer of sources and, as its `target`, that of targets.

    Args:
        models: The ModelProtos of sources and of targets.
        tables: Piece -> id, of sources and of targets; the two may be equal.
        settings: The files beside them.
        folder: Their directory, for messages.

    Raises:
        TokenizerError: A model or a table is not usable.
    """
    separate = tables[0] != tables[1]
    config = {"tokenizer_class": "MarianTokenizer", **settings.config, "separate_vocabs": separate}
    names = SpecialTokens(
        pad_token=content(settings.named.get("pad_token") or "<pad>"),
        unk_token=content(settings.named.get("unk_token") or "<unk>"),
        eos_token=content(settings.named.get("eos_token") or "</s>"),
    )
    files = ((SOURCE, IDS), (TARGET, TARGET_IDS if separate else IDS))
    tokenizers: list[Marian] = []
    for model, table, (name, ids_name) in list(zip(models, tables, files, strict=True))[::-1]:
        vocabulary = _vocabulary(table, names, folder / ids_name)
        end = table[names.eos_token or ""]
        source = model.SerializeToString()
        tokenizers.append(
            Marian(
                special_tokens=names,
                row_template=RowTemplate(suffix=(end,)),
                model=source,
                source=source,
                file_name=name,
                chat_template=None,
                config=config,
                vocabulary=vocabulary,
                all_special_ids=frozenset(table[token] for token in names.tokens()),
                _processor=create_processor(model, folder / name),
                _ids=dict(table),
                table=json.dumps(dict(table), ensure_ascii=False, indent=2) + "\n",
                added=tuple(AddedToken(token) for token in names.tokens()),
                targets=tokenizers[0] if tokenizers else None,
            )
        )
    return tokenizers[1]


def _vocabulary(table: Mapping[str, int], names: SpecialTokens, path: Path) -> list[str]:
    """The pieces in the order of ids."""
    missing = [token for token in names.tokens() if token not in table]
    if missing:
        raise TokenizerError(f"{path}: the vocabulary lacks {', '.join(missing)}.")
    if not all(isinstance(token_id, int) for token_id in table.values()):
        raise TokenizerError(f"{path}: expected a table of tokens with their ids.")
    if sorted(table.values()) != list(range(len(table))):
        raise TokenizerError(
            f"{path}: the ids of {len(table)} tokens must be 0 to {len(table) - 1}, each once."
        )
    return sorted(table, key=lambda token: table[token])
