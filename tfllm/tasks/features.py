"""Examples, and the tokenized rows of them that a task's model reads.

An example is a dict of canonical fields (`text`, `label`, `question`, ...). A row is one model
input; an example gives one row, or several (windows, pairs).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tfllm.errors import DataError

if TYPE_CHECKING:
    from tfllm.tokenizers.base import Encoding, Tokenizer

IGNORED = -100  # the target of a token that has no part in the loss

Example = Mapping[str, Any]


def where(example: Example) -> str:
    """The start of an error message about an example: `file:line: `, or nothing."""
    return f"{example['_where']}: " if example.get("_where") else ""


def text_field(example: Example, name: str = "text") -> str:
    """The text in the field `name`. Raises DataError when there is none."""
    value = example.get(name)
    if isinstance(value, str):
        return value
    raise DataError(
        f"{where(example)}the field '{name}' is missing or not a text "
        f"(fields here: {', '.join(sorted(k for k in example if k != '_where')) or 'none'}). "
        f"Name its column under data.columns, for example '{name}: sentence'."
    )


def encode_texts(
    examples: Sequence[Example], tokenizer: Tokenizer, max_length: int, *, pair: bool = False
) -> list[Encoding]:
    """Rows of `text`, or of `text` and `text_pair` where all examples have both (`pair`: must)."""
    texts = [text_field(example) for example in examples]
    if pair or any(example.get("text_pair") is not None for example in examples):
        pairs = [text_field(example, "text_pair") for example in examples]
        return tokenizer.encode_batch(texts, pairs, max_length=max_length)
    return tokenizer.encode_batch(texts, max_length=max_length)


@dataclass(frozen=True)
class TokenWindows(Sequence[np.ndarray]):
    """Rows made when asked for: row i is `make` of the places begins[i] ... + lengths[i]."""

    begins: np.ndarray
    lengths: np.ndarray
    make: Callable[[np.ndarray], np.ndarray]

    def __len__(self) -> int:
        return len(self.begins)

    def __getitem__(self, row):
        begin = int(self.begins[row])
        return self.make(np.arange(begin, begin + int(self.lengths[row])))


@dataclass(frozen=True)
class LazyArrays(Sequence[np.ndarray]):
    """`size` arrays, each made by its number when asked for."""

    size: int
    make: Callable[[int], np.ndarray]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, row):
        if isinstance(row, slice):
            return [self.make(number) for number in range(*row.indices(self.size))]
        if not -self.size <= row < self.size:
            raise IndexError(row)
        return self.make(int(row) % self.size)


@dataclass(frozen=True)
class Features:
    """Tokenised rows with their targets. Rows of one example follow one another.

    `group` rows (pairs of an embedding task: 2) belong together: a batch has them as one line, so
    that nothing that shuffles or divides batches can part them. Who chooses rows works on the lines
    of `units` and needs no special case:

        rows = features.units[order].ravel()      # order: any choice of range(len(features.units))
        inputs, targets = features.batch(rows)    # int32 [B, T]; of a group [B, group, T]
    """

    token_ids: Sequence[np.ndarray]  # int32 [T_i] per row, special tokens included
    segment_ids: Sequence[np.ndarray] | None  # int32 [T_i]; None: all 0
    example: np.ndarray  # int [rows]: the index of the example that each row came from
    targets: Sequence[np.ndarray] | None  # per row: [], [C], [T_i] or [2]; None without labels
    details: list[dict[str, Any]]  # per row: what `answers` needs (offsets, words, text)
    pad_id: int | None
    group: int = 1
    per_token: bool = False  # targets are [T_i]: padded with IGNORED
    document_ids: Sequence[np.ndarray] | None = None  # int32 [T_i]: documents of a row; None: all 1
    shift: int = 0  # rows may be moved along their text by less than this, anew in every epoch
    row_lengths: np.ndarray | None = None  # int [rows], where counting them would make the rows
    digest: str | None = None  # names the data, where reading all tokens would take long
    source_lengths: np.ndarray | None = None  # int [rows]: tokens of sources, where rows have them

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of every row: int [rows]."""
        if self.row_lengths is not None:
            return self.row_lengths
        if isinstance(self.token_ids, TokenWindows):
            return self.token_ids.lengths
        return np.array([len(ids) for ids in self.token_ids], dtype=np.int64)

    @property
    def units(self) -> np.ndarray:
        """Row numbers [len(self) / group, group]: the rows of one line stay together."""
        return np.arange(len(self)).reshape(-1, self.group)

    def batch(
        self, rows: Sequence[int] | np.ndarray, length: int | None = None
    ) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """Rows padded to `length`, or to their longest: inputs int32 [B, T], and targets.

        Targets are [B], [B, C], [B, 2], or [B, T] padded with -100; None without labels. With a
        `group` the rows must be whole lines of `units`, B is their number, and inputs are
        [B, group, T]. A row longer than `length` is cut.
        """
        lines = np.asarray(rows).reshape(-1, self.group)
        if (lines != lines[:, :1] - lines[:, :1] % self.group + np.arange(self.group)).any():
            raise DataError(
                f"{self.group} rows each belong together, and these do not stand so: {list(rows)}. "
                "Choose among the lines of features.units."
            )
        inputs = self._arrays(rows, length)
        if self.group > 1:
            inputs = {
                name: array.reshape(-1, self.group, array.shape[-1])
                for name, array in inputs.items()
            }
        if self.targets is None:
            return inputs, None
        chosen = [self.targets[row] for row in lines[:, 0]]
        size = inputs["token_ids"].shape[-1]
        return inputs, pad_arrays(chosen, size, IGNORED) if self.per_token else np.stack(chosen)

    def inputs(
        self, rows: Sequence[int] | np.ndarray, length: int | None = None
    ) -> dict[str, np.ndarray]:
        """The inputs of any rows, each on its own, as a model that answers takes them: [B, T]."""
        return self.batch(rows, length)[0] if self.group == 1 else self._arrays(rows, length)

    def _arrays(
        self, rows: Sequence[int] | np.ndarray, length: int | None
    ) -> dict[str, np.ndarray]:
        if length is None:
            length = max((len(self.token_ids[row]) for row in rows), default=1)
        return {
            "token_ids": pad_arrays(
                [self.token_ids[row] for row in rows], length, self.pad_id or 0
            ),
            "segment_ids": np.zeros((len(rows), length), np.int32)
            if self.segment_ids is None
            else pad_arrays([self.segment_ids[row] for row in rows], length, 0),
            "padding_mask": pad_arrays([self._mask(row) for row in rows], length, 0),
        }

    def _mask(self, row: int) -> np.ndarray:
        if self.document_ids is not None:
            return self.document_ids[row]
        return np.ones(len(self.token_ids[row]))


def features_from_encodings(
    encodings: Sequence[Encoding], tokenizer: Tokenizer, **more: Any
) -> Features:
    """Features of encodings, one row each; `more` are fields of Features that differ."""
    fields: dict[str, Any] = {
        "example": np.arange(len(encodings)),
        "targets": None,
        "details": [{} for _ in encodings],
    }
    return Features(
        token_ids=[np.asarray(encoding.ids, np.int32) for encoding in encodings],
        segment_ids=[np.asarray(encoding.type_ids, np.int32) for encoding in encodings],
        pad_id=tokenizer.pad_token_id,
        **{**fields, **more},
    )


def pad_arrays(arrays: Sequence[np.ndarray], length: int, value: int) -> np.ndarray:
    """Arrays [T_i], cut to `length`, as one int32 [B, length]."""
    result = np.full((len(arrays), length), value, np.int32)
    for row, array in zip(result, arrays, strict=True):
        row[: len(array)] = array[:length]
    return result
