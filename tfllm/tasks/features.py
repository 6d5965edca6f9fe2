"""Examples, and the tokenized rows of them that a task's model reads.

An example is a dict of canonical fields (`text`, `label`, `question`, ...). A row is one model
input; an example gives one row, or several (windows, pairs).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tfllm.errors import DataError

if TYPE_CHECKING:
    from tfllm.tokenizers.base import Encoding, Tokenizer

IGNORED = -100  # the target of a token that has no part in the loss

Example = Mapping[str, Any]
ClassWeights = Mapping[str, float] | Sequence[float] | None


class TokenCorpus(Protocol):
    """Tokenized documents of sentences: a `data.corpora.corpus.Corpus`, or a `MemoryCorpus`."""

    @property
    def sentence_lengths(self) -> np.ndarray:
        """int [N]: tokens of each sentence."""
        ...

    @property
    def document_starts(self) -> np.ndarray:
        """int [M + 1]: the first sentence of each document; the last entry is N."""
        ...

    @property
    def token_starts(self) -> np.ndarray:
        """int [N + 1]: the position of each sentence's first token."""
        ...

    @property
    def digest(self) -> str:
        """Identifies the tokens."""
        ...

    def tokens(self, begin: int, end: int) -> np.ndarray:
        """Return the ids at the positions from `begin` to `end`: int32 [end - begin]."""
        ...


def where(example: Example) -> str:
    """Return how an error message about an example begins: `file:line: `, or nothing."""
    return f"{example['_where']}: " if example.get("_where") else ""


def text_field(example: Example, name: str = "text") -> str:
    """Return the text in a field of an example.

    Args:
        example: The example.
        name: The field.

    Raises:
        DataError: There is no text; the message names file and line.
    """
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
    """Tokenize `text`, or `text` and `text_pair` as one row.

    Args:
        examples: Dicts with the fields `text` and, where any of them has it, `text_pair`.
        tokenizer: The model's tokenizer.
        max_length: Tokens of a row at most, special tokens included.
        pair: Whether every example must have `text_pair`.

    Returns:
        An encoding of each example.

    Raises:
        DataError: A field is missing.
    """
    texts = [text_field(example) for example in examples]
    if pair or any(example.get("text_pair") is not None for example in examples):
        pairs = [text_field(example, "text_pair") for example in examples]
        return tokenizer.encode_batch(texts, pairs, max_length=max_length)
    return tokenizer.encode_batch(texts, max_length=max_length)


@dataclass(frozen=True)
class TokenWindows(Sequence[np.ndarray]):
    """Rows that are read at access: windows of a stream of tokens."""

    begins: np.ndarray
    """int [rows]: position in the stream of each row's first token"""
    lengths: np.ndarray
    """int [rows]: tokens of each row"""
    read: Callable[[np.ndarray], np.ndarray]
    """values [T] at consecutive positions [T] of the stream"""

    def __len__(self) -> int:
        return len(self.begins)

    def __getitem__(self, row: Any) -> Any:
        begin = int(self.begins[row])
        return self.read(np.arange(begin, begin + int(self.lengths[row])))


@dataclass(frozen=True)
class LazyArrays(Sequence[np.ndarray]):
    """`size` arrays, each computed from its index at access."""

    size: int
    compute: Callable[[int], np.ndarray]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self.compute(number) for number in range(*index.indices(self.size))]
        if not -self.size <= index < self.size:
            raise IndexError(index)
        return self.compute(int(index) % self.size)


@dataclass(frozen=True)
class Features:
    """Tokenized rows with their targets. Rows of one example follow one another.

    `group` rows (pairs of an embedding task: 2) belong together: a batch has them as one entry, so
    that nothing that shuffles or divides batches can part them. Who chooses rows works on the
    entries of `units` and needs no special case:

        rows = features.units[order].ravel()      # order: any choice of range(len(features.units))
        inputs, targets = features.batch(rows)    # int32 [B, T]; of a group [B, group, T]
    """

    token_ids: Sequence[np.ndarray]
    """int32 [T_i] per row, special tokens included"""
    segment_ids: Sequence[np.ndarray] | None
    """int32 [T_i] per row; None: all 0"""
    example: np.ndarray
    """int [rows]: the index of the example that each row came from"""
    targets: Sequence[np.ndarray] | None
    """per row [], [C], [T_i] or [2]; None without labels"""
    details: list[dict[str, Any]]
    """per row what `answers` needs: offsets, words, text"""
    pad_id: int | None
    group: int = 1
    per_token: bool = False
    """targets are [T_i]: padded with IGNORED"""
    document_ids: Sequence[np.ndarray] | None = None
    """int32 [T_i] per row: the number of each token's document in the row, from 1, which is then
    the padding mask; None: all 1"""
    shift: int = 0
    """windows may be moved along their text by less than this, differently in every epoch"""
    row_lengths: np.ndarray | None = None
    """int [rows], where counting tokens would compute the rows"""
    digest: str | None = None
    """identifies the data, where reading all tokens would take long"""
    source_lengths: np.ndarray | None = None
    """int [rows]: tokens of sources, where rows have them"""

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
        """Row numbers [len(self) / group, group]: the rows of one entry stay together."""
        return np.arange(len(self)).reshape(-1, self.group)

    def batch(
        self, rows: Sequence[int] | np.ndarray, length: int | None = None
    ) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """Pad rows into a batch.

        Args:
            rows: Row numbers; with a `group`, whole entries of `units`, of which there are B.
            length: Tokens that rows are padded or cut to; unset, those of the longest.

        Returns:
            Inputs int32 [B, T], or [B, group, T]; and targets [B], [B, C], [B, 2], or [B, T]
            padded with -100, None without labels.

        Raises:
            DataError: Rows of a group are apart.
        """
        entries = np.asarray(rows).reshape(-1, self.group)
        if (entries != entries[:, :1] - entries[:, :1] % self.group + np.arange(self.group)).any():
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
        targets = [self.targets[row] for row in entries[:, 0]]
        size = inputs["token_ids"].shape[-1]
        return inputs, pad_arrays(targets, size, IGNORED) if self.per_token else np.stack(targets)

    def inputs(
        self, rows: Sequence[int] | np.ndarray, length: int | None = None
    ) -> dict[str, np.ndarray]:
        """Return the inputs of any rows, each on its own, for a model that predicts.

        Args:
            rows: Indices of rows.
            length: Tokens that rows are padded to; None: as `batch` has them.

        Returns:
            Inputs by name: int32 [B, T].
        """
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
    encodings: Sequence[Encoding], tokenizer: Tokenizer, **fields: Any
) -> Features:
    """Return features of encodings, one row each.

    Args:
        encodings: A row each.
        tokenizer: The model's tokenizer.
        **fields: Fields of Features that differ from the defaults, such as `targets`.
    """
    defaults: dict[str, Any] = {
        "example": np.arange(len(encodings)),
        "targets": None,
        "details": [{} for _ in encodings],
    }
    return Features(
        token_ids=[np.asarray(encoding.ids, np.int32) for encoding in encodings],
        segment_ids=[np.asarray(encoding.type_ids, np.int32) for encoding in encodings],
        pad_id=tokenizer.pad_token_id,
        **{**defaults, **fields},
    )


def pad_arrays(arrays: Sequence[np.ndarray], length: int, value: int) -> np.ndarray:
    """Truncate or pad arrays to one length: int32 [B, length].

    Args:
        arrays: Of any lengths: [T_i].
        length: The length.
        value: Fills the end of shorter arrays.
    """
    result = np.full((len(arrays), length), value, np.int32)
    for row, array in zip(result, arrays, strict=True):
        row[: len(array)] = array[:length]
    return result
