"""Marian's tokenizers: a SentencePiece model for sources, one for targets, and a table of ids.

Source: Junczys-Dowmunt et al. 2018, "Marian"; Tiedemann and Thottingal 2020, "OPUS-MT". A piece has
the id that `vocab.json` gives it, whichever model it came from; what is not there is unknown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfllm.errors import TokenizerError
from tfllm.tokenizers import sentencepiece_proto as proto
from tfllm.tokenizers import tokenizer_config
from tfllm.tokenizers.base import RowTemplate, check_ids
from tfllm.tokenizers.sentencepiece import THREADS, SentencePiece, make_processor
from tfllm.tokenizers.tokenizer_config import (
    AddedToken,
    SpecialTokens,
    TokenizerConfig,
    content,
    read_json,
)

SOURCE, TARGET, IDS, TARGET_IDS = "source.spm", "target.spm", "vocab.json", "target_vocab.json"
FILES = (SOURCE, TARGET, IDS, TARGET_IDS)
WHITE_SPACE = " \t\n\v\f\r"  # what tf.strings.strip takes too


@dataclass(frozen=True)
class Marian(SentencePiece):
    """One side of a pair: texts by its model, ids by its table.

    Language codes (`>>fr<<`) and special tokens are recognised as they are written. Make it with
    `load_marian`.
    """

    table: str = field(repr=False, default="")
    """the table of ids as it was read"""
    targets: Marian | None = field(repr=False, default=None)
    """the other side; None of the targets' own"""

    @property
    def target(self) -> Marian:
        return self.targets or self

    @property
    def matched_tokens(self) -> tuple[AddedToken, ...]:
        return (*self.added, *(AddedToken(code) for code in language_codes(self.vocabulary)))

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids, of either side. Raises TokenizerError for a negative id."""
        check_ids(ids)
        texts: list[str] = []
        part: list[str] = []
        for number in ids:
            if number >= self.vocabulary_size:
                continue
            if number not in self.all_special_ids:
                part.append(self.vocabulary[number])
            elif not skip_special_tokens:
                texts += [self._processor.decode_pieces(part), self.vocabulary[number], " "]
                part = []
        text = "".join([*texts, self._processor.decode_pieces(part)])
        return text.replace(proto.SPACE, " ").strip(WHITE_SPACE)

    def save(self, directory: str | Path) -> None:
        """Writes both models, the tables of ids and the settings."""
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

    def graph(self, profile: str = "reference") -> Any:
        """The same tokenizer as TensorFlow ops."""
        from tfllm.tokenizers.graph.marian import MarianGraph

        return MarianGraph(self, profile)

    def _encoded(self, texts: Sequence[str]) -> list[list[int]]:
        rows = self._processor.encode(list(texts), out_type=str, num_threads=THREADS)
        return [[self._number(piece, 0) for piece in row] for row in rows]

    def _number(self, piece: str, number: int) -> int:
        found = self._ids.get(piece, self.unk_token_id)
        assert found is not None
        return found


def language_codes(vocabulary: Sequence[str]) -> list[str]:
    """The language codes in a vocabulary."""
    return [token for token in vocabulary if token.startswith(">>") and token.endswith("<<")]


def load_marian(path: Path, settings: TokenizerConfig) -> Marian:
    """From the directory of a `source.spm`. Raises TokenizerError naming the file."""
    folder = path.parent
    apart = bool(settings.config.get("separate_vocabs"))
    for name in (TARGET, IDS, *((TARGET_IDS,) if apart else ())):
        if not (folder / name).is_file():
            raise TokenizerError(
                f"'{folder}' has {path.name} and no {name}. Copy {', '.join(FILES[:3])} of one "
                "checkpoint into it."
            )
    models = [proto.parse((folder / name).read_bytes(), folder / name) for name in (SOURCE, TARGET)]
    tables = [read_json(folder / name) for name in (IDS, TARGET_IDS if apart else IDS)]
    return from_protos(models, tables, settings, folder)


def from_protos(
    models: Sequence[Any],
    tables: Sequence[Mapping[str, int]],
    settings: TokenizerConfig = TokenizerConfig(),
    folder: Path = Path(),
) -> Marian:
    """From the ModelProtos and the tables of ids (which may be one) of sources and of targets.

    Raises TokenizerError naming the file of `folder`.
    """
    apart = tables[0] != tables[1]
    config = {"tokenizer_class": "MarianTokenizer", **settings.config, "separate_vocabs": apart}
    names = SpecialTokens(
        pad_token=content(settings.named.get("pad_token") or "<pad>"),
        unk_token=content(settings.named.get("unk_token") or "<unk>"),
        eos_token=content(settings.named.get("eos_token") or "</s>"),
    )
    files = ((SOURCE, IDS), (TARGET, TARGET_IDS if apart else IDS))
    sides: list[Marian] = []
    for model, table, (name, ids) in list(zip(models, tables, files, strict=True))[::-1]:
        vocabulary = _vocabulary(table, names, folder / ids)
        end = table[names.eos_token or ""]
        source = model.SerializeToString()
        sides.append(
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
                _processor=make_processor(model, folder / name),
                _ids=dict(table),
                table=json.dumps(dict(table), ensure_ascii=False, indent=2) + "\n",
                added=tuple(AddedToken(token) for token in names.tokens()),
                targets=sides[0] if sides else None,
            )
        )
    return sides[1]


def _vocabulary(table: Mapping[str, int], names: SpecialTokens, path: Path) -> list[str]:
    """id -> piece."""
    missing = [token for token in names.tokens() if token not in table]
    if missing:
        raise TokenizerError(f"{path}: the vocabulary lacks {', '.join(missing)}.")
    if not all(isinstance(number, int) for number in table.values()):
        raise TokenizerError(f"{path}: expected a table of tokens with their ids.")
    if sorted(table.values()) != list(range(len(table))):
        raise TokenizerError(
            f"{path}: the ids of {len(table)} tokens must be 0 to {len(table) - 1}, each once."
        )
    return sorted(table, key=lambda token: table[token])
