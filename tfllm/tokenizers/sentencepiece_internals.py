"""The undocumented parts of the `sentencepiece` package that tfllm uses.

These are the generated module of its model message, and the results with offsets of an encoding,
whose form has changed between versions. setup.cfg pins the versions that they were tested with,
SENTENCEPIECE; tests/tokenizers/test_internals.py fails when another version has changed them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol, overload

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

# The tested range, as in setup.cfg: from the first, below the second. Version 0.2.2 adds scores in
# another order than tf-text's kernel, which breaks ties otherwise.
SENTENCEPIECE = ("0.2.0", "0.2.2")


class PieceProto(Protocol):
    """The message `ModelProto.SentencePiece`: one token."""

    piece: str
    score: float
    type: int
    """One of the piece types of `sentencepiece_proto`."""


class PieceList(Protocol):
    """The repeated field `ModelProto.pieces`, in the order of ids."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[PieceProto]: ...
    @overload
    def __getitem__(self, index: int) -> PieceProto: ...
    @overload
    def __getitem__(self, index: slice) -> list[PieceProto]: ...
    def __delitem__(self, index: slice) -> None: ...
    def add(self, *, piece: str, score: float, type: int) -> PieceProto:
        """Append a new piece."""
        ...

    def extend(self, pieces: Iterable[PieceProto]) -> None:
        """Append copies of pieces."""
        ...


class TrainerSpec(Protocol):
    """The fields of the message `TrainerSpec` that are read or written."""

    model_type: int
    byte_fallback: bool
    vocab_size: int
    unk_id: int
    bos_id: int
    eos_id: int
    pad_id: int
    unk_piece: str
    bos_piece: str
    eos_piece: str
    pad_piece: str


class NormalizerSpec(Protocol):
    """The fields of the message `NormalizerSpec` that are read or written."""

    name: str
    precompiled_charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool


class ModelProto(Protocol):
    """The message of a SentencePiece model (sentencepiece_model.proto)."""

    @property
    def pieces(self) -> PieceList: ...
    @property
    def trainer_spec(self) -> TrainerSpec: ...
    @property
    def normalizer_spec(self) -> NormalizerSpec: ...

    def ParseFromString(self, data: bytes, /) -> int:
        """Read a serialized message. Raises google.protobuf.message.DecodeError."""
        ...

    def SerializeToString(self) -> bytes:
        """Return the serialized message."""
        ...

    def CopyFrom(self, other: ModelProto, /) -> None:
        """Replace the contents by a copy of another message."""
        ...

    def Clear(self) -> None:
        """Remove all contents."""
        ...


class PieceSpan(NamedTuple):
    """A token of an encoding."""

    piece: str
    piece_id: int
    """Its id in the model."""
    start: int
    """Its first character in the text, in code points."""
    end: int
    """The end of that range."""


def new_model_proto() -> ModelProto:
    """Create an empty message."""
    from sentencepiece import sentencepiece_model_pb2

    return sentencepiece_model_pb2.ModelProto()


def encode_with_offsets(processor: SentencePieceProcessor, text: str) -> Iterator[PieceSpan]:
    """Yield the tokens of a text with their offsets, in the form of either version.

    Args:
        processor: The package's processor.
        text: The text.
    """
    if hasattr(processor, "EncodeAsOffsetMapping"):
        mapping = processor.encode(text, return_type="offset_mapping")
        for piece, piece_id, offsets in zip(
            mapping["pieces"], mapping["ids"], mapping["offsets"], strict=True
        ):
            yield PieceSpan(piece, piece_id, *offsets)
    else:
        for entry in processor.encode(text, out_type="immutable_proto").pieces:
            yield PieceSpan(entry.piece, entry.id, entry.begin, entry.end)
