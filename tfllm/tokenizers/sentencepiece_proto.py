"""SentencePiece's ModelProto: read, renumbered as Hugging Face numbers the tokens, or built.

All that `sentencepiece` and tf-text's SentencePiece operations know is in this one message, so a
vocabulary from elsewhere becomes exact in both by building the message for it.

Source: github.com/google/sentencepiece, src/sentencepiece_model.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

from tfllm.errors import TokenizerError
from tfllm.tokenizers.sentencepiece_internals import ModelProto, new_model_proto

# ModelProto.SentencePiece.Type and TrainerSpec.ModelType.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE = 1, 2
SPACE = "\u2581"  # the mark of a space inside pieces
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
# The first tokens of XLM-R and CamemBERT; all other pieces of the model follow.
FAIRSEQ = ("<s>", "<pad>", "</s>", "<unk>")
CAMEMBERT = ("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED")
LLAMA2C_SPECIALS = ("<unk>", "<s>", "</s>")


def parse(data: bytes, source: str | Path) -> ModelProto:
    """Parse a serialized ModelProto.

    Args:
        data: The contents of a `.model` file.
        source: The file, for messages.

    Raises:
        TokenizerError: It is no SentencePiece model, or neither a unigram nor a BPE model.
    """
    from google.protobuf.message import DecodeError

    model = new_model_proto()
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
) -> ModelProto:
    """Build a message.

    Args:
        pieces: (piece, score, type) in the order of ids.
        model_type: UNIGRAM or BPE.
        byte_fallback: Whether unknown characters become bytes.
        dummy_prefix: Whether a space is put before a text.
        remove_extra_spaces: Whether runs of spaces become one.
        charsmap: The precompiled charsmap of the normalizer.
    """
    model = new_model_proto()
    model.trainer_spec.model_type = model_type
    model.trainer_spec.byte_fallback = byte_fallback
    for piece_id, (piece, score, kind) in enumerate(pieces):
        model.pieces.add(piece=piece, score=score, type=kind)
        if kind == UNKNOWN:
            model.trainer_spec.unk_id = piece_id
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


def _copy(model: ModelProto) -> ModelProto:
    copied = new_model_proto()
    copied.CopyFrom(model)
    return copied


def append_pieces(
    model: ModelProto, tokens: Sequence[tuple[str, int, int]], source: str | Path
) -> ModelProto:
    """Return a copy with pieces at the end for the tokens that Hugging Face adds.

    Args:
        model: The model.
        tokens: (text, id, type of piece) of each token.
        source: The file, for messages.

    Raises:
        TokenizerError: The ids leave a gap after those of the model.
    """
    extended = _copy(model)
    for token, token_id, kind in sorted(tokens, key=lambda entry: entry[1]):
        if token_id != len(extended.pieces):
            raise TokenizerError(
                f"{source}: the added token '{token}' has the id {token_id}, and the model has "
                f"{len(extended.pieces)} tokens. Ids must follow each other without a gap."
            )
        extended.pieces.add(piece=token, score=0.0, type=kind)
    return extended


def without_dummy_prefix(model: ModelProto) -> ModelProto:
    """Return a copy that puts no space before a text."""
    changed = _copy(model)
    changed.normalizer_spec.add_dummy_prefix = False
    return changed


def to_fairseq_ids(
    model: ModelProto,
    source: str | Path,
    first: Sequence[str] = FAIRSEQ,
    codes: Iterable[str] = (),
) -> ModelProto:
    """Return a copy with fairseq's ids: its first tokens, all other pieces, <mask>.

    Args:
        model: A model that begins with <unk> <s> </s>.
        source: The file, for messages.
        first: The first tokens: FAIRSEQ or CAMEMBERT.
        codes: mBART's language codes, which come before <mask>.

    Raises:
        TokenizerError: The model begins with other pieces.
    """
    if [entry.piece for entry in model.pieces[:3]] != ["<unk>", "<s>", "</s>"]:
        raise TokenizerError(f"{source}: XLM-R's model begins with <unk>, <s>, </s>.")
    renumbered = _copy(model)
    del renumbered.pieces[:]
    for piece in first:
        kind = UNKNOWN if piece == "<unk>" else CONTROL
        renumbered.pieces.add(piece=piece, score=0.0, type=kind)
    renumbered.pieces.extend(entry for entry in model.pieces[:3] if entry.piece not in first)
    renumbered.pieces.extend(model.pieces[3:])
    for code in codes:
        renumbered.pieces.add(piece=code, score=0.0, type=CONTROL)
    renumbered.pieces.add(piece="<mask>", score=0.0, type=CONTROL)
    ids = {entry.piece: token_id for token_id, entry in enumerate(renumbered.pieces)}
    spec = renumbered.trainer_spec
    spec.unk_id, spec.pad_id = ids["<unk>"], ids["<pad>"]
    spec.bos_id, spec.eos_id = ids["<s>"], ids["</s>"]
    return renumbered


def from_llama2c(path: Path) -> ModelProto:
    """Read the vocabulary of a llama2.c tokenizer file.

    llama2.c merges the neighbours with the best score until none is left, which is SentencePiece's
    BPE with byte fallback: <unk> <s> </s>, 256 bytes, then the pieces.

    Source: github.com/karpathy/llama2.c, `build_tokenizer` of run.c.

    Raises:
        TokenizerError: It is no tokenizer file of llama2.c.
    """
    data = path.read_bytes()
    pieces: list[tuple[str, float, int]] = []
    offset = 4  # behind the length of the longest token
    try:
        while offset < len(data):
            score, size = struct.unpack_from("<fi", data, offset)
            if size < 0 or offset + 8 + size > len(data):
                raise ValueError
            piece = data[offset + 8 : offset + 8 + size].decode("utf-8")
            offset += 8 + size
            piece_id = len(pieces)
            if piece_id < len(LLAMA2C_SPECIALS):
                kind = UNKNOWN if piece_id == 0 else CONTROL
                pieces.append((LLAMA2C_SPECIALS[piece_id], 0.0, kind))
            elif piece_id < len(LLAMA2C_SPECIALS) + 256:
                pieces.append((BYTES[piece_id - len(LLAMA2C_SPECIALS)], 0.0, BYTE))
            else:
                pieces.append((piece.replace(" ", SPACE), score, NORMAL))
    except (ValueError, struct.error):
        pieces = []
    if len(pieces) <= len(LLAMA2C_SPECIALS) + 256:
        raise TokenizerError(
            f"{path}: not a tokenizer file of llama2.c (byte {offset} of {len(data)})."
        )
    model = build(pieces, BPE, byte_fallback=True)
    model.trainer_spec.bos_id, model.trainer_spec.eos_id = 1, 2
    model.trainer_spec.bos_piece, model.trainer_spec.eos_piece = "<s>", "</s>"
    return model
