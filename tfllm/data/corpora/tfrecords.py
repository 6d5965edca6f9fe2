"""Writing of documents as TFRecord files of tf.train.Example, without TensorFlow.

A record has two features: `tokens`, the ids as one string of little-endian uint16 or uint32, and
`sentence_lengths`, one integer for each sentence. The tokens are contiguous, so that a reader who
knows their offset in the file needs no parsing:

    tf.io.parse_single_example(record, {
        "tokens": tf.io.FixedLenFeature((), tf.string),
        "sentence_lengths": tf.io.RaggedFeature(tf.int64),
    })  # tf.io.decode_raw(parsed["tokens"], tf.uint16)

Source: tensorflow/core/lib/io/record_writer.h (framing), tensorflow/core/example/example.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

# Tags of protobuf fields with a length before them: field number * 8 + 2.
FIELD_1, FIELD_2, FIELD_3 = b"\x0a", b"\x12", b"\x1a"
HEADER_BYTES, FOOTER_BYTES = 12, 4  # of a TFRecord: length and its checksum; the data's checksum
MASK_DELTA = 0xA282EAD8


class Encoded(NamedTuple):
    """D documents of S sentences in all, as records of a file, with the offsets of their parts."""

    records: bytes
    """D framed records."""
    sizes: np.ndarray
    """int64 [D]: bytes of every record."""
    payloads: np.ndarray
    """int64 [D]: where the tokens begin inside the record."""
    sentence_counts: np.ndarray
    """int64 [D]"""
    sentence_lengths: np.ndarray
    """int32 [S], tokens."""
    ordinals: np.ndarray
    """int64 [D]: the document's number in the source."""
    characters: np.ndarray
    """int64 [D]: of the document's text."""
    unknown: np.ndarray
    """int64 [D]: tokens that are the unknown token."""


def token_type(vocabulary_size: int) -> np.dtype:
    """Return the dtype of stored ids: little-endian uint16 where it holds every id, else uint32."""
    return np.dtype("<u2" if vocabulary_size <= 2**16 else "<u4")


def build_records(
    documents: Iterable[Sequence[Sequence[int]]],
    dtype: np.dtype,
    ordinals: Sequence[int] | None = None,
    characters: Sequence[int] | None = None,
    unk_token_id: int | None = None,
) -> Encoded:
    """Build the records of documents.

    Args:
        documents: Each a list of sentences of ids; every sentence has a token.
        dtype: See `token_type`.
        ordinals: The documents' numbers in the source; None: from 0.
        characters: The characters of the documents' texts; None: 0.
        unk_token_id: The id of the unknown token, which is counted.
    """
    return records_from_bytes(
        [[np.array(sentence, dtype).tobytes() for sentence in document] for document in documents],
        dtype,
        ordinals,
        characters,
        unk_token_id,
    )


def records_from_bytes(
    documents: Iterable[Sequence[bytes]],
    dtype: np.dtype,
    ordinals: Sequence[int] | None = None,
    characters: Sequence[int] | None = None,
    unk_token_id: int | None = None,
) -> Encoded:
    """Build the records of documents whose sentences are bytes.

    Args:
        documents: Each a list of sentences: ids of type `dtype` as bytes.
        dtype: See `token_type`.
        ordinals: See `build_records`, as for the following.
        characters: See `build_records`.
        unk_token_id: See `build_records`.
    """
    records: list[bytes] = []
    sizes, payloads, counts, unknown = list[int](), list[int](), list[int](), list[int]()
    lengths: list[int] = []
    for sentences in documents:
        ids = b"".join(sentences)
        sentence_lengths = [len(sentence) // dtype.itemsize for sentence in sentences]
        frame, payload = record(ids, sentence_lengths)
        records.append(frame)
        sizes.append(len(frame))
        payloads.append(payload)
        counts.append(len(sentence_lengths))
        lengths.extend(sentence_lengths)
        if unk_token_id is None:
            unknown.append(0)
        else:
            unknown.append(int((np.frombuffer(ids, dtype) == unk_token_id).sum()))
    count = len(records)
    return Encoded(
        b"".join(records),
        np.array(sizes, np.int64),
        np.array(payloads, np.int64),
        np.array(counts, np.int64),
        np.array(lengths, np.int32),
        np.arange(count) if ordinals is None else np.array(ordinals, np.int64),
        np.zeros(count, np.int64) if characters is None else np.array(characters, np.int64),
        np.array(unknown, np.int64),
    )


def record(ids: bytes, sentence_lengths: Sequence[int]) -> tuple[bytes, int]:
    """Build one framed record.

    Args:
        ids: T little-endian numbers.
        sentence_lengths: Tokens of each sentence.

    Returns:
        The record, and the byte where its tokens begin.
    """
    packed = _varints(sentence_lengths)
    numbers = _field(FIELD_3, _field(FIELD_1, packed))  # Feature.int64_list.value, packed
    texts = _field(FIELD_1, _field(FIELD_1, ids))  # Feature.bytes_list.value
    # The entries of the map: key and value. The last one ends where the example ends.
    entries = _field(
        FIELD_1, _field(FIELD_1, b"sentence_lengths") + _field(FIELD_2, numbers)
    ) + _field(FIELD_1, _field(FIELD_1, b"tokens") + _field(FIELD_2, texts))
    data = _field(FIELD_1, entries)
    length = struct.pack("<Q", len(data))
    frame = length + _masked_checksum(length) + data + _masked_checksum(data)
    return frame, len(frame) - FOOTER_BYTES - len(ids)


def _field(tag: bytes, content: bytes) -> bytes:
    return tag + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; all but the last have the high bit."""
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def _varints(numbers: Sequence[int]) -> bytes:
    if max(numbers, default=0) < 0x80:
        return bytes(numbers)
    return b"".join(map(_varint, numbers))


def _masked_checksum(data: bytes) -> bytes:
    """CRC-32C, rotated and shifted as the TFRecord format requires."""
    import google_crc32c

    checksum = google_crc32c.value(data)
    return struct.pack("<I", ((checksum >> 15 | checksum << 17) + MASK_DELTA) & 0xFFFFFFFF)
