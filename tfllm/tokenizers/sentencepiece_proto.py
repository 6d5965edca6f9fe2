"""SentencePiece's ModelProto: read, arranged as Hugging Face numbers the tokens, or built.

Everything that `sentencepiece` and tf-text's SentencePiece op know is in this one message, so a
vocabulary from anywhere else becomes exact in both by writing the message that means it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tfllm.errors import TokenizerError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE = 1, 2
SPACE = "\u2581"  # stands for a space inside pieces
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
# XLM-R's arrangement (to_fairseq_ids's): these first, then the model's pieces from the fourth on.
FAIRSEQ = ("<s>", "<pad>", "</s>", "<unk>")
LLAMA2C_SPECIALS = ("<unk>", "<s>", "</s>")


def parse(data: bytes, source: str | Path) -> Any:
    """The message. Raises TokenizerError naming `source`."""
    from google.protobuf.message import DecodeError

    model = _empty()
    try:
        model.ParseFromString(data)
    except DecodeError:
        model.Clear()
    if not model.pieces:
        raise TokenizerError(f"{source}: not a SentencePiece model. Copy the file again.")
    if model.trainer_spec.model_type not in (UNIGRAM, BPE):
        raise TokenizerError(f"{source}: neither a unigram nor a BPE model of SentencePiece.")
    return model


def build(
    pieces: Iterable[tuple[str, float, int]],
    model_type: int,
    *,
    byte_fallback: bool = False,
    dummy_prefix: bool = True,
    remove_extra_spaces: bool = False,
    charsmap: bytes = b"",
) -> Any:
    """A message from (piece, score, type) in the order of ids."""
    model = _empty()
    model.trainer_spec.model_type = model_type
    model.trainer_spec.byte_fallback = byte_fallback
    for number, (piece, score, kind) in enumerate(pieces):
        model.pieces.add(piece=piece, score=score, type=kind)
        if kind == UNKNOWN:
            model.trainer_spec.unk_id = number
            model.trainer_spec.unk_piece = piece
    model.trainer_spec.vocab_size = len(model.pieces)
    model.trainer_spec.bos_id = model.trainer_spec.eos_id = model.trainer_spec.pad_id = -1
    normalizer = model.normalizer_spec
    normalizer.name = "identity"
    normalizer.precompiled_charsmap = charsmap
    normalizer.add_dummy_prefix = dummy_prefix
    normalizer.remove_extra_whitespaces = remove_extra_spaces
    normalizer.escape_whitespaces = True
    return model


def _empty() -> Any:
    from sentencepiece import sentencepiece_model_pb2

    messages: Any = sentencepiece_model_pb2
    return messages.ModelProto()


def append_pieces(model: Any, tokens: Sequence[tuple[str, int, int]], source: str | Path) -> Any:
    """The model with pieces at the end for tokens that Hugging Face adds: text, id, type."""
    arranged = type(model)()
    arranged.CopyFrom(model)
    for token, number, kind in sorted(tokens, key=lambda entry: entry[1]):
        if number != len(arranged.pieces):
            raise TokenizerError(
                f"{source}: the added token '{token}' has the id {number}, and the model has "
                f"{len(arranged.pieces)} tokens. Ids must follow each other without a gap."
            )
        arranged.pieces.add(piece=token, score=0.0, type=kind)
    return arranged


def without_dummy_prefix(model: Any) -> Any:
    """The model without the space that it puts before a text."""
    changed = type(model)()
    changed.CopyFrom(model)
    changed.normalizer_spec.add_dummy_prefix = False
    return changed


def to_fairseq_ids(model: Any, source: str | Path, codes: Iterable[str] = ()) -> Any:
    """XLM-R's ids: <s> <pad> </s> <unk>, the pieces from the fourth on, <mask>. mBART has its
    languages' codes before the last."""
    if [entry.piece for entry in model.pieces[:3]] != ["<unk>", "<s>", "</s>"]:
        raise TokenizerError(f"{source}: XLM-R's model begins with <unk>, <s>, </s>.")
    arranged = type(model)()
    arranged.CopyFrom(model)
    del arranged.pieces[:]
    for piece in FAIRSEQ:
        kind = UNKNOWN if piece == "<unk>" else CONTROL
        arranged.pieces.add(piece=piece, score=0.0, type=kind)
    arranged.pieces.extend(model.pieces[3:])
    for code in codes:
        arranged.pieces.add(piece=code, score=0.0, type=CONTROL)
    arranged.pieces.add(piece="<mask>", score=0.0, type=CONTROL)
    arranged.trainer_spec.unk_id = FAIRSEQ.index("<unk>")
    arranged.trainer_spec.bos_id, arranged.trainer_spec.pad_id = 0, 1
    arranged.trainer_spec.eos_id = 2
    return arranged


def from_llama2c(path: Path) -> Any:
    """The vocabulary of a llama2.c tokenizer file (tokenizer.c, `build_tokenizer` of run.c).

    Its encoder joins the neighbours with the best score until none is left, which is
    SentencePiece's BPE with byte fallback: <unk> <s> </s>, 256 bytes, then the pieces.
    """
    data = path.read_bytes()
    pieces: list[tuple[str, float, int]] = []
    place = 4  # the longest token's length comes first
    try:
        while place < len(data):
            score, size = struct.unpack_from("<fi", data, place)
            if size < 0 or place + 8 + size > len(data):
                raise ValueError
            piece = data[place + 8 : place + 8 + size].decode("utf-8")
            place += 8 + size
            number = len(pieces)
            if number < len(LLAMA2C_SPECIALS):
                kind = UNKNOWN if number == 0 else CONTROL
                pieces.append((LLAMA2C_SPECIALS[number], 0.0, kind))
            elif number < len(LLAMA2C_SPECIALS) + 256:
                pieces.append((BYTES[number - len(LLAMA2C_SPECIALS)], 0.0, BYTE))
            else:
                pieces.append((piece.replace(" ", SPACE), score, NORMAL))
    except (ValueError, struct.error):
        pieces = []
    if len(pieces) <= len(LLAMA2C_SPECIALS) + 256:
        raise TokenizerError(
            f"{path}: not a tokenizer file of llama2.c (byte {place} of {len(data)})."
        )
    model = build(pieces, BPE, byte_fallback=True)
    model.trainer_spec.bos_id, model.trainer_spec.eos_id = 1, 2
    model.trainer_spec.bos_piece, model.trainer_spec.eos_piece = "<s>", "</s>"
    return model
